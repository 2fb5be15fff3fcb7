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

from train_throughput import (  # noqa: E402
    IntervalGoal,
    Setting,
    add_options,
    goals_of,
    judge_kept,
)

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
    ratio = document["candidates"]["16 tasks"]["time_over_patch"]
    assert (goal["low"], goal["high"]) == (ratio["low"], ratio["high"])
    assert goal["limit"] == pytest.approx(1 / 0.9)
    (line,) = [one for one in quick[1].splitlines() if goal["what"] in one]
    assert goal["verdict"] in line


@pytest.mark.parametrize(
    ("low", "median", "high", "verdict"),
    [
        (0.8, 0.9, 1.0, "met"),
        (0.8, 0.9, 2.0, "met"),  # the limit itself meets the goal
        (0.8, 0.9, 2.1, "undecided"),  # by the median it would be met
        (0.8, 2.05, 2.1, "undecided"),  # and here missed
        (2.0, 2.05, 2.1, "undecided"),
        (2.05, 2.1, 2.2, "missed by 5.0%"),
    ],
)
def test_a_goal_is_decided_where_the_whole_interval_is_on_one_side(low, median, high, verdict):
    assert IntervalGoal("it", median, 2.0, low, high).verdict == verdict


def kept_document(low, median, high, verdict):
    """As much of a kept file as its goals come from, and a figure that is none of theirs."""
    ratio = {"low": low, "median": median, "high": high}
    return {
        "taken": "2026-01-02",
        "goals": [{"what": "it", "verdict": verdict}],
        "setting": {"subject": "embedded", "device": "cpu", "px": 64},
        "candidates": {"16 tasks": {"time_over_patch": ratio}},
    }


def test_kept_files_are_judged_again_by_their_own_intervals_and_nothing_else_changes(tmp_path):
    name = "train_throughput_embedded_{}.json"
    before = {
        128: kept_document(0.8, 1.0, 1.1, "undecided"),
        512: kept_document(0.8, 1.0, 1.2, "met"),
    }
    for images, document in before.items():
        (tmp_path / name.format(images)).write_text(json.dumps(document))
    (tmp_path / "patch_bytes.json").write_text("of another benchmark")
    judge_kept(tmp_path)
    for images, verdict in ((128, "met"), (512, "undecided")):
        after = json.loads((tmp_path / name.format(images)).read_text())
        (goal,) = after.pop("goals")
        assert goal["verdict"] == verdict
        assert (goal["value"], goal["low"]) == (1.0, 0.8)
        assert after == {key: value for key, value in before[images].items() if key != "goals"}
    assert (tmp_path / "patch_bytes.json").read_text() == "of another benchmark"


def test_the_committed_goals_are_those_that_the_committed_intervals_give():
    paths = sorted((ROOT / "benchmarks" / "results").glob("train_throughput_*.json"))
    assert len(paths) >= 3
    for path in paths:
        kept = json.loads(path.read_text())
        expected = [{**vars(goal), "verdict": goal.verdict} for goal in goals_of(kept)]
        assert kept["goals"] == expected, path.name


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
