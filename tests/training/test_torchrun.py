"""Two ranks as a user starts them: ``torchrun --nproc-per-node 2``."""

import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from joint_cases import assert_equal, base_arrays, patch_arrays

import patchdeploy
from patchdeploy.named import open_base
from patchdeploy.patch import Patch
from patchdeploy.training.run import run_training
from patchdeploy.training.run_config import load_run_config
from patchdeploy.training.workers import resume_command

sys.path.insert(0, str(Path(__file__).parent))
import worker_program
from worker_program import Order

SECONDS = 300.0
PACKAGE = str(Path(patchdeploy.__file__).parent)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
# How a person starts it and what a message says to type, on the loopback and a free port.
AS_TYPED = {
    **ENVIRONMENT,
    "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
    "PET_STANDALONE": "1",
    "PET_LOCAL_ADDR": "127.0.0.1",
}
RUN = """
method = "tasks"
resolutions = [32]
[training]
epochs = 1
batch_size = 16
save_every_steps = 8
device = "cpu"
[[task]]
name = "one"
images = "packaged:optical_digits:test"
[[task]]
name = "two"
images = "packaged:optical_digits:test"
"""


def test_torchrun_starts_two_ranks_that_make_what_one_process_makes(tmp_path: Path) -> None:
    order = Order("tasks", str(tmp_path), {"epochs": 1}, "batch", images=48)
    finished = subprocess.run(
        [
            *(*TORCHRUN, "--local-addr", "127.0.0.1"),
            *(worker_program.__file__, order.to_json()),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=400,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr.decode()
    made = [torch.load(tmp_path / f"result.{rank}.pt", weights_only=False) for rank in range(2)]
    single = tmp_path / "single"
    single.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = worker_program.train(
            Order("tasks", str(single), {"epochs": 1}, "batch", images=48),
            worker_program.Workers(),
        )
    finally:
        torch.set_num_threads(threads)
    for one in made:
        assert_equal(one["arrays"], alone["arrays"])
        assert one["top1"] == alone["top1"]


def start_command(folder: Path) -> subprocess.Popen[str]:
    """``torchrun ... -m patchdeploy train``, each rank through a shell that notes its process."""
    (folder / "run.toml").write_text(RUN)
    (folder / "rank.sh").write_text(f'echo $$ > "{folder}/process.$RANK"\nexec "$@"\n')
    command = [sys.executable, "-m", "patchdeploy", "train", str(folder / "run.toml")]
    return subprocess.Popen(
        [
            *(*TORCHRUN, "--local-addr", "127.0.0.1", "--no-python"),
            *("sh", str(folder / "rank.sh"), *command),
            *("--out", str(folder / "run"), "--quiet"),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_rank_in_the_middle(folder: Path, rank: int) -> str:
    """Once there is a checkpoint, which 8 of 32 steps make; what all have said."""
    ranks = start_command(folder)
    wait_for_checkpoint(folder, ranks)
    os.kill(int((folder / f"process.{rank}").read_text()), signal.SIGKILL)
    said = said_by(folder, ranks)
    position = torch.load(folder / "run" / "tasks.pt", weights_only=True)["position"]
    assert position["epoch"] == 0
    return said


def wait_for_checkpoint(folder: Path, ranks: subprocess.Popen[str]) -> None:
    """Returns while the run goes on."""
    checkpoint, deadline = folder / "run" / "tasks.pt", time.monotonic() + SECONDS
    while not checkpoint.exists() and ranks.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ranks.poll() is None, ranks.communicate()[1]  # else there is nothing to stop


def said_by(folder: Path, ranks: subprocess.Popen[str]) -> str:
    """What all have said of a run that was stopped."""
    _, said = ranks.communicate(timeout=SECONDS)
    assert ranks.returncode != 0
    assert not (folder / "run" / "summary.json").exists()
    return said


def find_error(said: str) -> str:
    """The one line of ours; the traceback beside it is torchrun's own."""
    (line,) = [one for one in said.splitlines() if one.startswith("error: ")]
    assert PACKAGE not in said  # no traceback through our files
    return line


def check_said(said: str, killed: int, folder: Path) -> str:
    """One line of ours, with a remedy: the command in it."""
    before, _, after = find_error(said).partition("(")
    assert before == f"error: rank {1 - killed} of 2: another rank has stopped or did not answer "
    remedy, _, command = after.partition("); ")[2].partition("; go on with: ")
    assert remedy == (
        "all ranks must run to the end; see its own message; the last checkpoint is whole"
    )
    assert shlex.split(command) == [*typed(folder), "--resume"]
    return command


def typed(folder: Path) -> list[str]:
    """What a person types for two ranks (docs/training.md)."""
    return [
        *("torchrun", "--nproc-per-node", "2", "-m", "patchdeploy", "train"),
        *(str(folder / "run.toml"), "--out", str(folder / "run"), "--quiet"),
    ]


def resume_by(command: str, folder: Path) -> None:
    """Type it into a shell; the run goes on, on two ranks again, to its end."""
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=AS_TYPED,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    starts = json.loads((folder / "run" / "environment.json").read_text())["starts"]
    assert [one["ranks"] for one in starts] == [2, 2]
    assert (folder / "run" / "summary.json").exists()


def made_by(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor that a run has left."""
    arrays = base_arrays(open_base(f"trained:{folder / 'networks' / 'base'}"))
    for task in ("one", "two"):
        patch = patch_arrays(Patch.from_pretrained(folder / "patches" / task))
        arrays |= {f"{task}/{key}": value for key, value in patch.items()}
    return arrays


def test_the_last_rank_killed_is_told_by_the_first(tmp_path: Path) -> None:
    check_said(kill_rank_in_the_middle(tmp_path, 1), 1, tmp_path)


def test_the_first_rank_killed_is_told_by_the_last_whose_command_resumes(tmp_path: Path) -> None:
    """Each task's own batch statistics: two ranks make the bits of one process."""
    resume_by(check_said(kill_rank_in_the_middle(tmp_path, 0), 0, tmp_path), tmp_path)
    config = replace(load_run_config(tmp_path / "run.toml"), out=str(tmp_path / "whole"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_training(config, quiet=True)
    finally:
        torch.set_num_threads(threads)
    assert_equal(made_by(tmp_path / "run"), made_by(tmp_path / "whole"))


def test_ctrl_c_is_answered_once_by_a_command_that_goes_on_to_the_end(tmp_path: Path) -> None:
    """So many epochs that the signal comes before the last; the folder's name wants quotes."""
    folder = tmp_path / "two ranks"
    folder.mkdir()
    (folder / "run.toml").write_text(RUN.replace("epochs = 1", "epochs = 3"))
    ranks = subprocess.Popen(
        typed(folder),
        env=AS_TYPED,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_checkpoint(folder, ranks)
    os.killpg(ranks.pid, signal.SIGINT)  # as a terminal does: to all of its foreground group
    line = find_error(said_by(folder, ranks))
    before, _, command = line.partition("; go on with: ")
    assert before == f"error: interrupted; {folder / 'run'} keeps what was done"
    assert shlex.split(command) == [*typed(folder), "--resume"]
    resume_by(command, folder)


TRAIN = ("patchdeploy", "train", "my run.toml")


@pytest.mark.parametrize(
    ("command", "environment", "again"),
    [
        (TRAIN, {}, "patchdeploy train 'my run.toml' --resume"),
        ((*TRAIN, "--resume"), {"WORLD_SIZE": "1"}, "patchdeploy train 'my run.toml' --resume"),
        (
            TRAIN,
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            "torchrun --nproc-per-node 4 -m patchdeploy train 'my run.toml' --resume",
        ),
        (
            TRAIN,
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            "the same torchrun command on each machine, with --resume",
        ),
        (TRAIN, {"WORLD_SIZE": "4"}, "the same command for each rank, with --resume"),
        ((), {"WORLD_SIZE": "4"}, "all ranks started again, with resume=True"),
    ],
)
def test_a_stopped_run_goes_on_with_the_command_that_its_ranks_can_know(
    command: tuple[str, ...], environment: dict[str, str], again: str
) -> None:
    assert resume_command(command, environment) == again
