"""The installed command, as a person types it: what it prints, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli_cases import answer, call, here, refused, write_folder, write_run
from PIL import Image

from patchdeploy.bundle import open_bundle
from patchdeploy.data import load_packaged
from patchdeploy.patch import Patch

COMMANDS = (
    "demo", "train", "new-config", "export", "add", "replace", "remove", "inspect", "verify", "run",
    "evaluate", "bench", "pack", "sign", "check", "install", "activate", "revert", "list",
    "clean-up", "serve",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two trained patches and a signed bundle of the first, all made by the command."""
    root = tmp_path_factory.mktemp("cli")
    write_folder(root / "faces", "faces", 12)
    write_folder(root / "garments", "fashion", 12, classes=3)
    answer("keys", "new", root / "key.pem", "--trusted", root / "trusted.json")
    for task, by in (("faces", call), ("garments", here)):
        config = write_run(root / f"{task}.toml", root / task, task)
        found = answer("train", config, "--out", root / "runs" / task, by=by)
        assert 0 <= found["tasks"][task]["validation_top1"]["32"] <= 1
        shutil.copytree(root / "runs" / task / "patches" / task, root / "patches" / task)
    report = answer(
        "export", root / "bundle", "--patch", root / "patches/faces", "--fine",
        "--calibration", f"faces={root / 'faces'}", "--head-capacity", "3",
        "--key", root / "key.pem", "--trusted", root / "trusted.json", by=call,
    )  # fmt: skip
    assert set(report["formats"]) == {"tflite", "onnx"}
    return root


@pytest.fixture
def bundle(place, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(place / "bundle", tmp_path / "bundle")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_command_and_what_it_does(command):
    assert command in here("--help").stdout
    done = here(command, "--help")
    assert done.returncode == 0
    assert "Usage: patchdeploy " + command in done.stdout
    assert "--json" in done.stdout or command == "new-config"


def test_add_puts_a_task_in_and_leaves_the_base_as_it_was(place, bundle):
    before = {p.name: p.read_bytes() for p in bundle.iterdir() if p.name.startswith("base.")}
    report = answer(
        "add", bundle, "--patch", place / "patches/garments", "--key", place / "key.pem",
        "--calibration", place / "garments", "--expires", "2100-01-01", by=call,
    )  # fmt: skip
    assert set(report["tasks"]) == {"faces", "garments"}
    after = {p.name: p.read_bytes() for p in bundle.iterdir() if p.name.startswith("base.")}
    assert after == before
    assert len(before) == 5
    header = open_bundle(bundle).header("garments")
    assert (header.sequence, header.expires) == (1, 4_102_444_800)


def test_replace_puts_the_next_version_in_and_remove_takes_a_task_out(place, bundle):
    command = (
        "replace", bundle, "--patch", place / "patches/faces", "--key", place / "key.pem",
        "--calibration", place / "faces", "--fine",
    )  # fmt: skip
    for options, sequence in (((), 2), (("--sequence", 9), 9)):
        assert set(answer(*command, *options)["tasks"]) == {"faces"}
        assert open_bundle(bundle).header("faces").sequence == sequence
    refused(here(*command, "--sequence", 9), 2, "sequence 9 for task 'faces'", "give 10 to")
    assert answer("remove", bundle, "--task", "faces")["tasks"] == {}
    refused(here(*command), 2, "no task 'faces'")


def test_inspect_tells_shared_from_private_bytes(place):
    report = answer("inspect", place / "bundle")
    sizes = report["formats"]["tflite"]
    assert sizes["shared_bytes"] + sum(sizes["slot_bytes"].values()) == sizes["file_bytes"]
    assert sizes["duplicated_bytes"] == 0
    assert "faces" in here("inspect", place / "bundle").stdout


def test_verify_passes_on_a_whole_bundle_and_fails_on_one_changed_byte(place, bundle):
    assert answer("verify", bundle, "--images", place / "faces", "--limit", "8", by=call)["ok"]
    data = bytearray((bundle / "base.tflite").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "base.tflite").write_bytes(data)
    done = call("verify", bundle)
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "Traceback" not in done.stderr


def test_verify_compares_with_the_patch_in_float_that_it_is_given(place, tmp_path):
    options = ("--images", place / "faces", "--limit", "8")
    folder = place / "patches" / "faces"
    report = answer("verify", place / "bundle", *options, "--patch", folder, by=call)
    rows = [one for one in report["checks"] if "against the module with its patch" in one["detail"]]
    assert {one["detail"].split()[0] for one in rows} == {"ai-edge-litert", "onnxruntime"}
    assert all(one["passed"] for one in rows)
    patch = Patch.from_pretrained(folder)
    variants = {
        px: {key: -value if key.endswith("weight") else value for key, value in tensors.items()}
        for px, tensors in patch.variants.items()
    }
    replace(patch, variants=variants).save_pretrained(tmp_path / "other")
    done = call("verify", place / "bundle", *options, "--patch", tmp_path / "other", "--json")
    assert done.returncode == 1
    assert "int8 answers otherwise than the float network" in done.stdout
    refused(
        here("verify", place / "bundle", *options, "--patch", place / "patches" / "garments"),
        2,
        "garments",
    )


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_run_classifies_files_and_folders(place, runtime):
    folder = place / "faces" / "face"
    found = answer(
        "run", place / "bundle", folder, next(folder.iterdir()), "--task", "faces",
        "--runtime", runtime, "--top", "2",
    )  # fmt: skip
    assert len(found) == 13
    for one in found:
        chances = [guess["probability"] for guess in one["top"]]
        assert len(chances) == 2
        # Two float32 probabilities of two classes: each rounds by at most 2^-25, the sum once more.
        assert sum(chances) == pytest.approx(1.0, abs=2**-23)


def test_run_goes_on_after_an_unreadable_image_and_ends_with_2(place, tmp_path):
    shutil.copy(next((place / "faces/face").iterdir()), tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    done = call("run", place / "bundle", tmp_path, "--task", "faces", "--json")
    assert done.returncode == 2
    by_name = {Path(one["image"]).name: one for one in json.loads(done.stdout)}
    assert "top" in by_name["good.png"]
    assert "cannot read image" in by_name["broken.png"]["error"]


def test_run_goes_on_after_a_broken_file_that_is_named_itself(place, tmp_path):
    good = next((place / "faces/face").iterdir())
    (tmp_path / "broken.png").write_bytes(b"not an image")
    done = here("run", place / "bundle", tmp_path / "broken.png", good, "--task", "faces", "--json")
    assert done.returncode == 2
    broken, whole = json.loads(done.stdout)
    assert "cannot read image" in broken["error"]
    assert whole["top"]


def test_evaluate_knows_a_class_by_its_name_and_not_by_its_place(place, tmp_path):
    """Folders come sorted by name; the packaged set has its classes in another order."""
    _, test = load_packaged("faces")
    assert test.classes != tuple(sorted(test.classes))
    config = write_run(
        tmp_path / "x.toml", "packaged:faces:train", "packaged", patch={"kinds": ["head"]}
    )
    answer("train", config, "--out", tmp_path / "run")
    copy = shutil.copytree(place / "bundle", tmp_path / "bundle")
    answer(
        "add",
        copy,
        "--fine",
        "--key",
        place / "key.pem",
        "--patch",
        tmp_path / "run/patches/packaged",
        "--calibration",
        place / "faces" / "face",
    )
    for label, title in enumerate(test.classes):
        (tmp_path / "test" / title).mkdir(parents=True)
        for index in np.flatnonzero(test.labels == label):
            picture = Image.fromarray(np.asarray(test.images[index]))
            picture.save(tmp_path / "test" / title / f"{index}.png")
    (folder,) = answer("evaluate", copy, tmp_path / "test", "--task", "packaged")
    (packaged,) = answer("evaluate", copy, "packaged:faces:test", "--task", "packaged")
    assert folder == packaged
    assert folder["top1"] != 0.5  # else swapped labels would give the same


def test_evaluate_counts_the_images_of_the_folder(place):
    (found,) = answer("evaluate", place / "bundle", place / "faces", "--task", "faces", by=call)
    assert found["images"] == 24
    assert found["resolution"] == 32
    assert 0 <= found["top1"] <= 1


def test_bench_says_device_versions_threads_and_rounds(place):
    report = answer("bench", place / "bundle", "--threads", "1", "--rounds", "3", by=call)
    assert report["device"]["versions"]["onnxruntime"]
    assert {row["runtime"] for row in report["latency"]} == {"litert", "onnxruntime"}
    for row in report["latency"]:
        assert row["threads"] == 1
        assert row["rounds"] == 3
        assert row["median_ms"] > 0
    assert {row["kind"] for row in report["swaps"]} == {"cold", "resident"}


def test_usage_errors_end_with_2(place):
    assert call("run", place / "bundle").returncode == 2
    assert call("nonsense").returncode == 2


def test_an_unknown_task_or_resolution_names_what_there_is(place):
    image = next((place / "faces/face").iterdir())
    refused(here("run", place / "bundle", image, "--task", "cats"), 2, "'cats'", "faces")
    refused(
        here("run", place / "bundle", image, "--task", "faces", "--resolution", "48"),
        2,
        "was not exported at 48 px; it has 32",
    )


def test_no_bundle_is_bad_input_and_no_failed_check(tmp_path):
    for command in ("verify", "inspect", "bench"):
        refused(here(command, tmp_path), 2, "is not a bundle", "correct the path")


def test_a_patch_of_another_base_is_refused_and_leaves_no_bundle(place, tmp_path):
    done = here(
        "export", tmp_path / "bundle", "--unsigned", "--patch", place / "patches/faces",
        "--calibration", f"faces={place / 'faces'}", "--base", "torchvision:mobilenet_v2",
    )  # fmt: skip
    refused(done, 2, "was trained on base", "export it with the base that it was trained on")
    assert not (tmp_path / "bundle").exists()


def test_more_classes_than_the_head_has_rows_are_refused(place, tmp_path):
    done = here(
        "export", tmp_path / "bundle", "--unsigned", "--patch", place / "patches/garments",
        "--calibration", f"garments={place / 'garments'}", "--head-capacity", "2",
    )  # fmt: skip
    refused(done, 2, "has 3 classes", "2 rows", "head_capacity >= 3")
    assert not (tmp_path / "bundle").exists()


def test_an_empty_calibration_folder_is_refused(place, tmp_path):
    (tmp_path / "empty/a").mkdir(parents=True)
    (tmp_path / "empty/b").mkdir()
    done = here(
        "export", tmp_path / "bundle", "--unsigned", "--patch", place / "patches/faces",
        "--calibration", f"faces={tmp_path / 'empty'}",
    )  # fmt: skip
    refused(done, 2, "holds no image")


@pytest.mark.parametrize("option", ["--calibration", "--validation"])
def test_images_without_their_task_show_how_to_write_it(place, tmp_path, option):
    given = {"--calibration": f"faces={place / 'faces'}", option: place / "faces"}
    done = here(
        "export", tmp_path / "bundle", "--unsigned", "--patch", place / "patches/faces",
        *(text for pair in given.items() for text in pair),
    )  # fmt: skip
    refused(done, 2, f"{option} is", "it must be TASK=IMAGES")


def test_a_bundle_is_never_written_over_something_else(place):
    before = sorted(p.name for p in (place / "bundle").iterdir())
    done = here(
        "export", place / "bundle", "--unsigned", "--patch", place / "patches/faces",
        "--calibration", f"faces={place / 'faces'}",
    )  # fmt: skip
    refused(done, 2, "is in use")
    assert sorted(p.name for p in (place / "bundle").iterdir()) == before


def test_a_full_disk_ends_with_4_and_leaves_the_bundle_as_it_was(place, bundle):
    before = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file() and p.name != ".lock"}
    # A file size limit makes the kernel fail a write in the middle, as a full disk does.
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from patchdeploy.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "sys.argv = sys.argv[1:]\n"
        "main()\n"
    )
    arguments = [
        "patchdeploy", "add", bundle, "--key", place / "key.pem", "--fine",
        "--patch", place / "patches/garments", "--calibration", place / "garments",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    refused(done, 4, "cannot write", "free space")
    after = {p: p.read_bytes() for p in bundle.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before


def test_a_missing_extra_ends_with_3_and_names_it(place):
    # A module that Python is told not to find stands for one that is not installed.
    program = (
        "import sys\n"
        "for name in ('ai_edge_litert', 'tflite_runtime', 'tensorflow'):\n"
        "    sys.modules[name] = None\n"
        "from patchdeploy.cli import main\n"
        "sys.argv = sys.argv[1:]\n"
        "main()\n"
    )
    arguments = ["patchdeploy", "bench", place / "bundle", "--runtimes", "litert"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    refused(done, 3, "patchdeploy[tflite]")


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "train", ["train", "faces.toml"]),
        ("torch", "train", ["export", "x", "--unsigned", "--patch", "p", "--calibration", "t=i"]),
        (
            "torch",
            "train",
            ["add", "bundle", "--unsigned", "--patch", "p", "--calibration", "i"],
        ),
        ("torch", "train", ["demo"]),
        ("matplotlib", "report", ["demo", "--quick"]),
        ("skimage", "demo", ["evaluate", "bundle", "packaged:faces:test", "--task", "faces"]),
        ("onnxruntime", "onnx", ["bench", "bundle", "--runtimes", "onnxruntime"]),
    ],
)
def test_each_command_names_the_extra_that_it_misses(place, package, extra, arguments):
    program = (
        "import sys\n"
        "class Missing:\n"  # as the import system sees a package that is not installed
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "import importlib.util\n"
        "whole = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda n, *a: None if n == {package!r} else whole(n, *a)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from patchdeploy.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=place,
        check=False,
    )
    refused(done, 3, f"patchdeploy[{extra}]", "not installed")


def test_nothing_but_errors_goes_to_a_log(place):
    done = call("verify", place / "bundle", "--images", place / "faces", "--limit", "4")
    assert done.returncode == 0
    # LiteRT's own library prints one line when it makes its first interpreter.
    lines = [line for line in done.stderr.splitlines() if "XNNPACK delegate" not in line]
    assert lines == []


def test_ctrl_c_ends_with_130_and_no_traceback():
    program = (
        "import sys\n"
        "import patchdeploy.bundle\n"
        "from patchdeploy.cli import main\n"
        "def interrupted(*arguments): raise KeyboardInterrupt\n"
        "patchdeploy.bundle.open_bundle = interrupted\n"
        "sys.argv = ['patchdeploy', 'inspect', 'somewhere']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_ctrl_c_while_libraries_are_imported_ends_with_130_and_no_traceback():
    program = (
        "import os, signal, sys\n"
        "from patchdeploy.__main__ import main\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'patchdeploy.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 130
    assert done.stderr == "error: interrupted before it began; nothing was written\n"


def test_a_defect_of_ours_says_so_without_a_traceback_unless_asked():
    program = (
        "import sys\n"
        "import patchdeploy.bundle\n"
        "from patchdeploy.cli import main\n"
        "def broken(*arguments): raise ZeroDivisionError('planted')\n"
        "patchdeploy.bundle.open_bundle = broken\n"
        "sys.argv = ['patchdeploy', 'inspect', 'somewhere']\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 70
    assert "defect of patchdeploy" in done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PATCHDEPLOY_TRACEBACK": "1"},
        check=False,
    )
    assert "Traceback" in done.stderr
