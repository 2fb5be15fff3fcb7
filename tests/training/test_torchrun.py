"""Two ranks as a user starts them: ``torchrun --nproc-per-node 2``."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from joint_cases import assert_equal, base_arrays, patch_arrays

import patchdeploy
from patchdeploy.named import open_base
from patchdeploy.patch import Patch
from patchdeploy.training.run import run_training
from patchdeploy.training.run_config import load_run_config

sys.path.insert(0, str(Path(__file__).parent))
import worker_program
from worker_program import Order

SECONDS = 300.0
PACKAGE = str(Path(patchdeploy.__file__).parent)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
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


def start_command(folder: Path, *options: str) -> subprocess.Popen[str]:
    """``torchrun ... -m patchdeploy train``, each rank through a shell that notes its process."""
    (folder / "run.toml").write_text(RUN)
    (folder / "rank.sh").write_text(f'echo $$ > "{folder}/process.$RANK"\nexec "$@"\n')
    command = [sys.executable, "-m", "patchdeploy", "train", str(folder / "run.toml")]
    return subprocess.Popen(
        [
            *(*TORCHRUN, "--local-addr", "127.0.0.1", "--no-python"),
            *("sh", str(folder / "rank.sh"), *command),
            *("--out", str(folder / "run"), "--quiet", *options),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_rank_in_the_middle(folder: Path, rank: int) -> str:
    """Once there is a checkpoint, which 8 of 32 steps make; what all have said."""
    ranks, checkpoint = start_command(folder), folder / "run" / "tasks.pt"
    deadline = time.monotonic() + SECONDS
    while not checkpoint.exists() and ranks.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ranks.poll() is None, ranks.communicate()[1]  # else there is nothing to kill
    os.kill(int((folder / f"process.{rank}").read_text()), signal.SIGKILL)
    _, said = ranks.communicate(timeout=SECONDS)
    assert ranks.returncode != 0
    assert not (folder / "run" / "summary.json").exists()
    position = torch.load(checkpoint, weights_only=True)["position"]
    assert position["epoch"] == 0
    return said


def check_said(said: str, killed: int) -> None:
    """One line of ours, with a remedy; the traceback beside it is torchrun's own."""
    (line,) = [one for one in said.splitlines() if one.startswith("error: ")]
    before, _, after = line.partition("(")
    assert before == f"error: rank {1 - killed} of 2: another rank has stopped or did not answer "
    assert after.partition("); ")[2] == (
        "all ranks must run to the end; see its own message, then start all ranks again and "
        "resume: the last checkpoint is whole"
    )
    assert PACKAGE not in said  # no traceback through our files


def made_by(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor that a run has left."""
    arrays = base_arrays(open_base(f"trained:{folder / 'networks' / 'base'}"))
    for task in ("one", "two"):
        patch = patch_arrays(Patch.from_pretrained(folder / "patches" / task))
        arrays |= {f"{task}/{key}": value for key, value in patch.items()}
    return arrays


def test_the_last_rank_killed_is_told_by_the_first(tmp_path: Path) -> None:
    check_said(kill_rank_in_the_middle(tmp_path, 1), 1)


def test_the_first_rank_killed_is_told_by_the_last_and_the_command_resumes(
    tmp_path: Path,
) -> None:
    """Each task's own batch statistics: two ranks make the bits of one process."""
    check_said(kill_rank_in_the_middle(tmp_path, 0), 0)
    resumed = start_command(tmp_path, "--resume")
    _, said = resumed.communicate(timeout=SECONDS)
    assert resumed.returncode == 0, said
    config = replace(load_run_config(tmp_path / "run.toml"), out=str(tmp_path / "whole"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run_training(config, quiet=True)
    finally:
        torch.set_num_threads(threads)
    assert_equal(made_by(tmp_path / "run"), made_by(tmp_path / "whole"))
