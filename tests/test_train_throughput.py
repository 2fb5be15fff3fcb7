"""The benchmark of training throughput: its --quick form runs, and says what it measured.

The command runs once over the embedded base, in a process of its own that starts one more for each
candidate's memory: seconds of computing, and six times the imports, which are nearly all of it.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "benchmarks") not in sys.path:
    sys.path.insert(0, str(ROOT / "benchmarks"))

from train_throughput import Setting, add_options  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "train_throughput.py"
CANDIDATES = ("last layer", "patch", "all weights", "16 tasks", "5 resolutions")
IMAGES, PX = 48, 64
PNG = b"\x89PNG\r\n\x1a\n"


def run_script(folder, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, "--out", folder / "out", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """(folder, what was printed) of one run; it may warn of nothing."""
    folder = tmp_path_factory.mktemp("throughput")
    options = ("--subject", "embedded", "--images", str(IMAGES), "--rounds", "2")
    done = run_script(folder, "--quick", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


@pytest.fixture(scope="module")
def document(quick):
    return json.loads((quick[0] / f"out/train_throughput_embedded_{IMAGES}.json").read_text())


def test_every_candidate_has_a_rate_a_share_of_the_roofline_and_a_peak_of_memory(document):
    rows = document["candidates"]
    assert tuple(rows) == CANDIDATES
    for name, row in rows.items():
        assert row["images"] == IMAGES * (5 if name == "5 resolutions" else 1), name
        assert row["images_per_second"] == pytest.approx(1e3 * row["images"] / row["ms"])
        for key in ("ms", "flops", "share_of_peak_flops", "share_of_roofline", "peak_bytes"):
            assert math.isfinite(row[key]), (name, key)
            assert row[key] > 0, (name, key)
    # Forward and backward of every kernel, against the forward pass and the last layer alone.
    assert rows["all weights"]["flops"] > rows["patch"]["flops"] > rows["last layer"]["flops"]


def test_a_step_s_memory_holds_at_least_what_its_backward_pass_wants(document):
    """The first convolution's output, which the patch behind it must keep: float32, 16 channels,
    half the side."""
    kept = IMAGES * 16 * (PX // 2) ** 2 * 4
    for name in CANDIDATES[1:]:
        assert document["candidates"][name]["peak_bytes"] > kept, name


def test_the_file_says_what_was_measured_how_often_and_how_busy_the_machine_was(document):
    assert document["benchmark"] == f"train_throughput_embedded_{IMAGES}"
    assert document["quick"] is True
    assert (document["rounds"], document["threads"]) == (2, 1)
    assert document["load_average_before"] >= 0
    setting = document["setting"]
    assert (setting["subject"], setting["images"], setting["px"]) == ("embedded", IMAGES, PX)
    assert setting["device"] == "cpu"


def test_the_goal_of_16_tasks_is_printed_and_kept(quick, document):
    (goal,) = document["goals"]
    assert goal["what"] == "16 tasks / one task, time of as many images, embedded, cpu"
    assert goal["value"] == document["candidates"]["16 tasks"]["time_over_patch"]["median"]
    assert goal["limit"] == pytest.approx(1 / 0.9)
    (line,) = [one for one in quick[1].splitlines() if goal["what"] in one]
    assert goal["verdict"] in line


def test_a_quick_run_writes_under_out_alone(quick):
    folder, _ = quick
    written = {str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file()}
    picture = "out/train_throughput.png"
    assert written == {f"out/train_throughput_embedded_{IMAGES}.json", picture}
    assert (folder / picture).read_bytes().startswith(PNG)


def test_images_that_16_tasks_cannot_share_are_refused_before_anything_is_measured(tmp_path):
    done = run_script(tmp_path, "--quick", "--images", "40")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        "train_throughput.py: error: argument --images: "
        "40 images; 16 tasks share a step evenly; give a multiple of 16"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("images", ["8", "0", "-16", "16.0", "many", ""])
def test_what_is_no_number_of_images_is_refused_in_the_same_words(images, capsys):
    parser = argparse.ArgumentParser(prog="it")
    add_options(parser)
    assert parser.parse_args(["--images", "128"]).images == 128
    with pytest.raises(SystemExit):
        parser.parse_args([f"--images={images}"])
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"it: error: argument --images: {images} images; 16 tasks share a step evenly; "
        "give a multiple of 16"
    )


def test_results_lie_in_a_file_for_each_subject_number_of_images_and_device():
    names = {
        Setting(subject, 64, images, device).file_name
        for subject in ("embedded", "mobilenet_v2")
        for images in (64, 128)
        for device in ("cpu", "cuda")
    }
    assert len(names) == 8
    assert "train_throughput_mobilenet_v2_64" in names
    assert "train_throughput_embedded_128_cuda" in names


def test_every_benchmark_is_in_the_script_that_runs_all():
    script = (ROOT / "benchmarks" / "run_all.sh").read_text()
    texts = {path.stem: path.read_text() for path in (ROOT / "benchmarks").glob("*.py")}
    # What measures prints goals by results.py and is a command; the rest are its parts.
    measure = {
        name
        for name, text in texts.items()
        if re.search("^from results import", text, re.M) and "def main()" in text
    }
    assert {"latency", "train_throughput", "patch_bytes"} <= measure
    assert {name for name in measure if not re.search(rf"\b{name}\b", script)} == set()
