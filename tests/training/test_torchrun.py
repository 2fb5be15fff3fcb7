"""Two ranks as a user starts them: ``torchrun --nproc-per-node 2``."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from joint_cases import assert_equal

sys.path.insert(0, str(Path(__file__).parent))
import worker_program
from worker_program import Order


def test_torchrun_starts_two_ranks_that_make_what_one_process_makes(tmp_path: Path) -> None:
    order = Order("tasks", str(tmp_path), {"epochs": 1}, "batch", images=48)
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "--local-addr", "127.0.0.1"),
            *(worker_program.__file__, order.to_json()),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
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
