"""``patchdeploy train`` as a person runs it: stopped and gone on with, refused, on two ranks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import numpy as np
import pytest
import torch
from cli_cases import COMMAND, answer, call, here, refused, write_folder, write_run
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from patchdeploy.cli import train
from patchdeploy.patch import Patch
from patchdeploy.training import run
from patchdeploy.training.run_config import METHODS

EPOCHS = 30
"""So many that a signal after the first comes long before the last."""


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "faces", "faces", 12)


@pytest.fixture(scope="module")
def config(tmp_path_factory, faces):
    path = tmp_path_factory.mktemp("config") / "faces.toml"
    return write_run(path, faces, "faces", training={"epochs": EPOCHS, "augment": "shift"})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, config):
    """(folder, what the command printed) of a run that Ctrl-C stopped after its first epoch."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    process = subprocess.Popen(
        [COMMAND, "train", str(config), "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    checkpoint = folder / "32.pt"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert checkpoint.exists(), errors
    return folder, subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def assert_same_patch(folder, other):
    first, second = (Patch.from_pretrained(one / "patches" / "faces") for one in (folder, other))
    assert first.metrics == second.metrics
    for key, value in first.tensors(32).items():
        np.testing.assert_array_equal(value, second.tensors(32)[key], err_msg=key)


def test_ctrl_c_saves_the_run_and_says_how_to_go_on(stopped, config):
    folder, done = stopped
    assert done.returncode == 130
    assert done.stdout == ""
    *epochs, last = done.stderr.strip().splitlines()
    assert last == (
        f"error: interrupted; {folder} keeps what was done; go on with: patchdeploy train {config} "
        f"--out {folder} --resume"
    )
    assert epochs
    assert all("loss" in line and "img/s" in line for line in epochs)
    assert (folder / "curves.png").exists()
    assert not (folder / "patches").exists()
    assert not (folder / "summary.json").exists()


def test_a_stopped_run_goes_on_to_the_bits_of_one_that_was_not(stopped, config, tmp_path):
    folder = shutil.copytree(stopped[0], tmp_path / "resumed")
    before = (folder / "metrics.jsonl").read_text().splitlines()
    assert 0 < len(before) < EPOCHS
    answer("train", config, "--out", folder, "--resume", "--quiet")
    answer("train", config, "--out", tmp_path / "whole", "--quiet")
    assert_same_patch(folder, tmp_path / "whole")
    after = (folder / "metrics.jsonl").read_text().splitlines()
    assert after[: len(before)] == before
    assert [json.loads(line)["epoch"] for line in after] == list(range(1, EPOCHS + 1))
    assert len(json.loads((folder / "environment.json").read_text())["starts"]) == 2


def test_a_disk_that_fills_while_saving_ends_with_4_and_keeps_the_checkpoint(
    stopped, config, tmp_path
):
    folder = shutil.copytree(stopped[0], tmp_path / "full")
    checkpoint = (folder / "32.pt").read_bytes()
    # A file size limit makes the kernel fail a write in the middle, as a full disk does.
    program = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from patchdeploy.cli import main\n"
        f"limit = {len(checkpoint) // 2}\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "sys.argv = sys.argv[1:]\n"
        "main()\n"
    )
    arguments = ["patchdeploy", "train", config, "--out", folder, "--resume", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    refused(done, 4, f"cannot write {folder / '32.pt'}", "what was there is unchanged")
    assert (folder / "32.pt").read_bytes() == checkpoint
    assert sorted(one.name for one in folder.iterdir() if one.name.startswith(".")) == []


def test_two_ranks_train_two_tasks_and_the_first_alone_prints(faces, tmp_path):
    garments = write_folder(tmp_path / "garments", "fashion", 8, classes=2)
    config = tmp_path / "tasks.toml"
    config.write_text(
        'method = "tasks"\nresolutions = [32]\n[training]\nepochs = 1\nbatch_size = 8\n'
        f'[[task]]\nname = "faces"\nimages = "{faces}"\n'
        f'[[task]]\nname = "garments"\nimages = "{garments}"\n'
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "-m", "patchdeploy", "train", str(config), "--out", tmp_path / "run", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)  # one document: the other rank printed none
    assert set(found["tasks"]) == {"faces", "garments"}
    assert [line.split()[0] for line in done.stderr.splitlines() if "loss" in line] == [
        "faces",
        "garments",
    ]
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1
    (start,) = json.loads((tmp_path / "run/environment.json").read_text())["starts"]
    assert start["ranks"] == 2


def test_settings_go_over_the_file_and_are_kept_in_the_folder(config, tmp_path):
    changes = ["--set", "training.epochs=1", "--set", "patch.kinds=['head']"]
    found = answer("train", config, "--out", tmp_path / "run", "--quiet", *changes)
    assert found["out"] == str(tmp_path / "run")
    kept = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert (kept["training"]["epochs"], kept["patch"]["kinds"]) == (1, ["head"])
    (start,) = json.loads((tmp_path / "run/environment.json").read_text())["starts"]
    assert start["command"][:3] == ["patchdeploy", "train", str(config)]
    again = here("train", config, "--out", tmp_path / "run", *changes)
    refused(again, 2, "holds a finished run; a new run needs a folder of its own; add --resume")
    other = here("train", config, "--out", tmp_path / "run", "--resume")
    refused(other, 2, "holds a run with patch.kinds = ('head',), not ('scale_bias', 'head')")
    table = here("train", config, "--out", tmp_path / "run", *changes, "--resume").stdout
    assert "faces" in table
    assert "32 px" in table


def test_a_sweep_keeps_the_best_rate_and_tests_it(config, faces, tmp_path):
    folder = tmp_path / "run"
    changes = ["--set", "training.epochs=2", "--set", "sweep.rates=[1e-6, 0.02, 3e38]"]
    done = call("train", config, "--out", folder, *changes, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [one["rate"] for one in found["sweep"]["results"]] == [1e-6, 0.02, 3e38]
    assert "learning rate 3e+38: faces@32: the loss is" in " ".join(done.stderr.split())
    assert found["sweep"]["best_rate"] in (1e-6, 0.02)
    place = folder / found["tasks"]["faces"]["patch"]
    assert place.parent.parent.name == f"rate-{found['sweep']['best_rate']}"
    assert Patch.from_pretrained(place).task == "faces"
    assert (folder / "sweep.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((folder / "sweep.json").read_text())["results"] == found["sweep"]["results"]
    table = here("train", config, "--out", folder, *changes, "--resume").stdout
    assert "not finite" in table
    assert "best" in table
    refused(
        here("train", config, "--out", folder, "--set", "sweep.rates=[0.1]"),
        2, "[sweep]: sweep rates [0.1]; a sweep compares at least 2 positive rates",
    )  # fmt: skip


def test_a_second_run_in_the_folder_of_one_that_goes_on_is_refused(config, tmp_path):
    folder = tmp_path / "run"
    first = subprocess.Popen(
        [COMMAND, "train", str(config), "--out", str(folder), "--quiet"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 240
        while not (folder / "config.toml").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        for more in ([], ["--resume"]):
            done = here("train", config, "--out", folder, *more)
            refused(done, 2, f"{folder} is in use: a run goes on there (process {first.pid} on")
    finally:
        first.kill()
        first.wait()


def test_a_detectors_checkpoint_is_a_base_in_the_file(faces, tmp_path):
    torch.manual_seed(0)
    trained = ssdlite320_mobilenet_v3_large(weights_backbone=None, num_classes=3)
    torch.save(trained.state_dict(), tmp_path / "objects.pt")
    form = f"detector:ssdlite320_mobilenet_v3_large:{tmp_path / 'objects.pt'}"
    config = write_run(tmp_path / "d.toml", faces, "faces", resolutions=[64], base=form)
    found = answer("train", config, "--out", tmp_path / "run", "--quiet", by=call)
    patch = Patch.from_pretrained(tmp_path / "run" / found["tasks"]["faces"]["patch"])
    assert found["base"]["name"] == "torchvision/ssdlite320_mobilenet_v3_large/features"
    assert patch.base_sha256 == found["base"]["sha256"]
    wrong = here("train", config, "--out", tmp_path / "x", "--set", f"base={form}x")
    refused(wrong, 2, "objects.ptx cannot be read")


def test_a_patch_that_training_destroyed_is_not_saved_though_all_its_values_are_finite(
    config, tmp_path
):
    changes = ("training.learning_rate=1e30", "training.epochs=1", "training.batch_size=24")
    settings = [one for change in changes for one in ("--set", change)]
    for again in ([], ["--resume"]):
        done = here("train", config, "--out", tmp_path / "run", *settings, *again)
        refused(
            done, 5, "faces@32: the loss of validation images is", "after epoch 1",
            "try a tenth of the learning rate",
        )  # fmt: skip
    assert not (tmp_path / "run" / "patches").exists()


def test_a_loss_that_is_not_finite_ends_with_5_and_says_what_to_try(config, tmp_path):
    done = here("train", config, "--out", tmp_path / "run", "--set", "training.learning_rate=3e38")
    refused(
        done, 5, "faces@32: the loss is", "at epoch 1, step", "images", "learning rate",
        "try a tenth of the learning rate",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("training.epoch=3", ["[training]: unknown key 'epoch'", "did you mean 'epochs'?"]),
        ("task.faces.name='My Task'", ["[[task]] 'My Task'", "rename it"]),
        ("resolutions=[0]", ["resolutions = [0]; they must be positive"]),
        ("resolutions=[8]", ["resolution 8 px", "choose 32 or more"]),
        ("patch.kinds=['scales']", ["[patch]: kinds = ['scales']", "'head'"]),
        ("base=torchvision:nonet", ["torchvision has no 'nonet'"]),
        ("base=checkpoint:resnet18:no.pt", ["checkpoint no.pt cannot be"]),
        ("base=mobilenet", ["base 'mobilenet' is none of the forms embedded,"]),
        ("base=trained:nowhere", ["nowhere/network.json cannot be read"]),
        ("task.faces.images=nowhere", ["nowhere"]),
    ],
)
def test_a_bad_setting_is_refused_before_training(config, tmp_path, change, words):
    done = here("train", config, "--out", tmp_path / "x", "--set", change)
    refused(done, 2, *words)
    assert not (tmp_path / "x" / "patches").exists()


@pytest.mark.parametrize("sweep", [(), ("--set", "sweep.rates=[0.01, 0.02]")])
def test_resume_where_there_is_nothing_to_go_on_with_is_a_warning_before_a_new_run(
    config, tmp_path, sweep
):
    """A folder that is not there, and for a sweep one that is empty."""
    folder = tmp_path / "mistyped"
    if sweep:
        folder.mkdir()
    once = ("--set", "training.epochs=1", "--quiet", *sweep)
    done = here("train", config, "--out", folder, "--resume", *once)
    assert done.returncode == 0
    assert done.stderr == (
        f"warning: --resume: nothing to go on with in {folder}; a new run begins\n"
    )
    again = here("train", config, "--out", folder, "--resume", *once)
    assert again.stderr == ""


NOTHING = "error: interrupted; nothing was trained yet; run the same command again\n"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_torch_is_imported_says_that_nothing_was_trained_yet(config, tmp_path, name):
    program = (
        "import os, signal, sys\n"
        "from patchdeploy.cli import main\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'torch': os.kill(os.getpid(), signal.{name})\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "sys.argv = sys.argv[1:]\n"
        "main()\n"
    )
    typed = ["patchdeploy", "train", config, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, typed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (130, NOTHING)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("last", ["open_base", "make_run_folder"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_says_that_nothing_was_trained_yet(
    config, tmp_path, monkeypatch, last, number
):
    """Before the folder is there, and after."""
    does = getattr(run, last)

    def signalled(*arguments):
        found = does(*arguments)
        # without a handler of the command's this would end the tests
        assert callable(signal.getsignal(number))
        signal.raise_signal(number)
        return found

    monkeypatch.setattr(run, last, signalled)
    before = signal.getsignal(number)
    done = here("train", config, "--out", tmp_path / "run", "--quiet")
    assert (done.returncode, done.stderr) == (130, NOTHING)
    assert (tmp_path / "run" / "config.toml").exists() == (last == "make_run_folder")
    assert signal.getsignal(number) is before


def test_under_torchrun_sigterm_before_training_ends_a_rank_at_once(monkeypatch):
    """A rank that waits for another in the exchange's own code would not hear of an interrupt."""
    handlers = []
    for world in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", world)
        with train._sigterm_as_ctrl_c():
            handlers.append(signal.getsignal(signal.SIGTERM))
    assert handlers == [signal.default_int_handler, signal.SIG_DFL]


def test_a_file_that_is_no_config_shows_how_to_write_one(faces, tmp_path):
    refused(here("train", tmp_path / "no.toml"), 2, "patchdeploy new-config transfer")
    refused(here("train", faces), 2, "is not a regular file")


def test_a_place_that_cannot_be_written_is_refused_before_training(config, tmp_path):
    (tmp_path / "file").write_text("kept")
    done = here("train", config, "--out", tmp_path / "file" / "x")
    refused(done, 4, "cannot write", "choose another place")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_broken_training_image_is_named(config, faces, tmp_path):
    copy = shutil.copytree(faces, tmp_path / "faces")
    (copy / "face" / "0.png").write_bytes(b"not an image")
    done = here("train", config, "--set", f"task.faces.images={copy}", "--out", tmp_path / "x")
    refused(done, 2, "cannot read image", "0.png", "convert it again or remove it")
    assert not (tmp_path / "x" / "patches").exists()


def test_test_images_among_the_training_images_are_a_warning_of_one_line(config, faces, tmp_path):
    done = here(
        "train", config, "--out", tmp_path / "run", "--quiet", "--set", "training.epochs=1",
        "--set", f"task.faces.test={faces}",
    )  # fmt: skip
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: 24 of 24 test images")


@pytest.mark.parametrize("method", METHODS)
def test_a_new_config_is_printed_for_each_method(method):
    done = here("new-config", method)
    assert done.returncode == 0
    assert tomllib.loads(done.stdout)["method"] == method


def test_a_new_config_of_an_unknown_method_names_those_that_there_are():
    refused(here("new-config", "tranfer"), 2, "method 'tranfer'; the methods are transfer,")
