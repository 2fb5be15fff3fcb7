"""Several real processes, gloo on the loopback: equal to one process, and how they end.

The ranks are forked from a server that has imported torch once; each is a process of its own.
"""

import json
import multiprocessing
import signal
import socket
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from joint_cases import assert_equal, largest_difference, metric_lines

from patchdeploy.errors import ConfigError, TrainingError
from patchdeploy.training.workers import Workers, open_workers

sys.path.insert(0, str(Path(__file__).parent))
from worker_program import FAILED, INTERRUPTED, Order, run_rank

FORKS = multiprocessing.get_context("forkserver")
# torch's optimisers load torch._dynamo when the first is made: five seconds for each process.
FORKS.set_forkserver_preload(["patchdeploy.training", "torch._dynamo"])
SECONDS = 120.0
PAPER = {"recipe": "paper", "early_best": False}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def start(order: Order, world: int, orders: dict[int, Order] | None = None) -> list[Any]:
    """The ranks of ``order`` (or of another one, by rank), running."""
    common = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = []
    for rank in range(world):
        chosen = (orders or {}).get(rank, order)
        environment = {**common, "RANK": str(rank)} if world > 1 else {}
        ranks.append(FORKS.Process(target=run_rank, args=(chosen, environment)))
        ranks[-1].start()
    return ranks


def finish(ranks: list[Any]) -> list[int]:
    """Exit codes; a rank that hangs is ended."""
    for one in ranks:
        one.join(SECONDS)
    hung = [one for one in ranks if one.is_alive()]
    for one in hung:
        one.kill()
        one.join()
    assert not hung
    return [one.exitcode for one in ranks]


def run(order: Order, world: int = 1) -> dict[str, Any]:
    """What each rank of a run that ends well made; all must have made the same bits."""
    codes = finish(start(order, world))
    assert codes == [0] * world, [errors_of(order, rank) for rank in range(world)]
    made = [
        torch.load(Path(order.folder) / f"result.{rank}.pt", weights_only=False)
        for rank in range(world)
    ]
    for other in made[1:]:
        assert_equal(other["arrays"], made[0]["arrays"])
        assert other["top1"] == made[0]["top1"]
    return dict(made[0])


def errors_of(order: Order, rank: int) -> dict[str, str]:
    path = Path(order.folder) / f"error.{rank}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def assert_same_run(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert_equal(one["arrays"], other["arrays"])
    assert one["top1"] == other["top1"]


def assert_close_run(one: dict[str, Any], other: dict[str, Any], steps: int) -> None:
    """Equal up to the order of summation, for the paper's RMSProp over ``steps`` steps.

    Ranks that split a batch add up its images in another order. A gradient is a sum over at most
    96 images and 8 * 8 places; partial sums that are each rounded to 2**-24 of themselves differ
    by at most 6144 * 2**-24 of the largest of them, and by about its square root, 80 * 2**-24 =
    5e-6, where the errors are random; four layers of that, 2e-5, of gradients of at most 5. With
    epsilon 1 the step is rate * g / (sqrt(v) + 1), so it differs by no more than the rate times
    that; momentum 0.9 adds up to ten of them: 0.045 * 5 * 2e-5 * 10 = 4.5e-5 for each step. (Adam
    would divide by the gradient's own size: nothing bounds what becomes of one that is all
    rounding.)
    """
    tolerance = 4.5e-5 * steps
    assert largest_difference(one["arrays"], other["arrays"]) < tolerance
    # 48 images to validate on: an answer may change only where two classes are as good as equal.
    for key, value in one["top1"].items():
        assert abs(value - other["top1"][key]) <= 2 / 48 + 1e-3


def moved(made: dict[str, Any], fresh: dict[str, Any]) -> float:
    return largest_difference(made["arrays"], fresh["arrays"])


@pytest.mark.parametrize("kinds", [("scale_bias", "head"), ("head",)])
def test_two_tasks_on_two_ranks_are_the_single_process_to_the_bit(
    tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    """With each task's own batch statistics. A gradient is a + b on one process, and on two it is
    (a + 0) + (0 + b): the very same number. (Shared statistics are no sum: frozen there.)
    """
    order = Order("tasks", "", kinds=kinds, statistics="batch" if len(kinds) == 2 else "frozen")
    one = run(replace(order, folder=str(tmp_path / "one")))
    two = run(replace(order, folder=str(tmp_path / "two")), world=2)
    assert_same_run(one, two)
    # Loss and accuracy of both tasks are in rank 0's file, though it computed one of them.
    assert metric_lines(tmp_path / "one" / "run") == metric_lines(tmp_path / "two" / "run")


def test_three_tasks_on_two_ranks_and_two_tasks_on_four_are_the_single_process(
    tmp_path: Path,
) -> None:
    """Three tasks: (a + c) + b for (a + b) + c. Four ranks: two split each task's batch, whose
    statistics are of the whole batch all the same."""
    for name, world, tasks, per_task, statistics in (
        ("three", 2, 3, None, "batch"),
        ("four", 4, 2, (2,), "frozen"),
        ("four joined", 4, 2, (2,), "batch"),
        ("uneven", 3, 2, (2, 1), "batch"),
    ):
        order = Order(
            "tasks",
            str(tmp_path / f"{name} one"),
            {**PAPER, "augment": "shift_flip", "mixup": 0.3, "epochs": 1},
            statistics,
            tasks=tasks,
            images=90,  # the last batch, of 10 images, is split too
        )
        one = run(order)
        several = replace(order, folder=str(tmp_path / name), ranks_per_task=per_task)
        assert_close_run(run(several, world), one, steps=6)
    # What training moved is far outside the tolerance.
    still = {**PAPER, "learning_rate": 1e-30, "shared_learning_rate": 1e-30, "epochs": 1}
    start_of = replace(order, folder=str(tmp_path / "start"), config=still)
    assert moved(one, run(start_of)) > 10 * 4.5e-5 * 6


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
@pytest.mark.parametrize("what", ["resolutions", "patch", "baseline"])
def test_ranks_that_split_every_batch_are_the_single_process(
    tmp_path: Path, what: str, statistics: str
) -> None:
    config = {**PAPER, "augment": "shift"}
    order = Order(what, str(tmp_path / "one"), config, statistics, images=90)
    one = run(order)
    split = run(replace(order, folder=str(tmp_path / "split")), world=3)
    assert_close_run(split, one, steps=12 if what == "resolutions" else 24)
    assert moved(one, split) > 0  # else nothing was split


def test_ranks_that_split_the_batches_of_mixed_tasks_are_the_single_process(
    tmp_path: Path,
) -> None:
    order = Order("many", str(tmp_path / "one"), PAPER, "batch", images=90)
    split = replace(order, folder=str(tmp_path / "split"), ranks_per_task=(2, 1))
    assert_close_run(run(split, world=3), run(order), steps=12)


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
def test_a_last_batch_smaller_than_the_ranks_is_no_error(tmp_path: Path, statistics: str) -> None:
    """50 images in batches of 16: two are left over, which each of three ranks takes whole."""
    order = Order("patch", str(tmp_path / "one"), PAPER, statistics, images=50)
    split = run(replace(order, folder=str(tmp_path / "split")), world=3)
    assert_close_run(split, run(order), steps=16)


def test_frozen_tensors_stay_the_same_bits_on_three_ranks(tmp_path: Path) -> None:
    """Their mean over ranks is taken with what is learned: x / 3 + x / 3 + x / 3 must be x."""
    order = Order("patch", str(tmp_path), kinds=("scale_bias",))
    arrays = run(order, world=3)["arrays"]
    from joint_cases import base_arrays, small_base

    state = base_arrays(small_base())
    frozen = [key for key in arrays if "running" in key]
    assert len(frozen) == 12
    for key in frozen:
        np.testing.assert_array_equal(arrays[key], state[key.partition("/")[2]])
    np.testing.assert_array_equal(arrays["12/11.weight"], arrays["16/11.weight"])


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    run(Order("tasks", str(tmp_path), own_folders=True), world=2)
    assert (tmp_path / "run.0" / "metrics.jsonl").exists()
    assert (tmp_path / "run.0" / "tasks.pt").exists()
    assert not (tmp_path / "run.1").exists()


@pytest.mark.parametrize("again", [2, 1])
def test_a_rank_that_is_killed_ends_the_run_and_it_resumes_to_the_same_result(
    tmp_path: Path, again: int
) -> None:
    """Within the second epoch; the checkpoint is of a step inside it."""
    order = Order("tasks", str(tmp_path / "whole"), {"save_every_steps": 2}, "batch")
    whole = run(order, world=2)
    killed = replace(order, folder=str(tmp_path / "killed"), event=("kill", 1, 10))
    assert finish(start(killed, 2)) == [FAILED, -signal.SIGKILL]
    error = errors_of(killed, 0)
    assert error["kind"] == "TrainingError"
    before, _, after = error["message"].partition("(")
    assert before == "rank 0 of 2: another rank has stopped or did not answer "
    assert after.partition("); ")[2] == (
        "all ranks must run to the end; see its own message; the last checkpoint is whole; go on "
        "with: all ranks started again, with resume=True"
    )
    position = torch.load(tmp_path / "killed" / "run" / "tasks.pt")["position"]
    assert (position["epoch"], position["step"]) == (1, 2)
    resumed = run(replace(killed, event=("", 0, 0), resume=True), world=again)
    assert_same_run(resumed, whole)  # also on one rank: two tasks add up to the same bits
    assert metric_lines(tmp_path / "killed" / "run") == metric_lines(tmp_path / "whole" / "run")


def test_the_first_rank_killed_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    """In a sum inside the forward pass: the statistics of a batch that both hold."""
    config = {**PAPER, "save_every_steps": 3}
    order = Order("resolutions", str(tmp_path / "whole"), config, "batch")
    whole = run(order)
    killed = replace(order, folder=str(tmp_path / "killed"), event=("kill", 0, 8))
    assert finish(start(killed, 2)) == [-signal.SIGKILL, FAILED]
    assert errors_of(killed, 1)["kind"] == "TrainingError"
    resumed = run(replace(killed, event=("", 0, 0), resume=True), world=3)
    assert_close_run(resumed, whole, steps=12)


@pytest.mark.parametrize("where", [1, -1])
def test_ctrl_c_in_one_rank_or_in_all_saves_at_one_step_and_resumes(
    tmp_path: Path, where: int
) -> None:
    order = Order("tasks", str(tmp_path / "whole"), statistics="batch")
    whole = run(order, world=2)
    stopped = replace(order, folder=str(tmp_path / "stopped"), event=("interrupt", where, 9))
    assert finish(start(stopped, 2)) == [INTERRUPTED] * 2
    position = torch.load(tmp_path / "stopped" / "run" / "tasks.pt")["position"]
    # Noted while step 9 begins (3 of epoch 2), told with step 10, saved after it.
    assert (position["epoch"], position["step"]) == (1, 4)
    resumed = run(replace(stopped, event=("", 0, 0), resume=True), world=2)
    assert_same_run(resumed, whole)
    assert metric_lines(tmp_path / "stopped" / "run") == metric_lines(tmp_path / "whole" / "run")


def test_a_loss_that_is_not_finite_in_one_rank_stops_all_with_the_same_words(
    tmp_path: Path,
) -> None:
    order = Order("tasks", str(tmp_path), event=("nan", 1, 9))
    assert finish(start(order, 2)) == [FAILED] * 2
    first, second = errors_of(order, 0), errors_of(order, 1)
    assert first == second
    assert first["message"].startswith("task-1: the loss is nan at epoch 2, step 3 (images ")
    position = torch.load(tmp_path / "run" / "tasks.pt")["position"]
    assert (position["epoch"], position["step"]) == (1, 0)


def test_ranks_of_different_runs_are_told_so(tmp_path: Path) -> None:
    order = Order("tasks", str(tmp_path))
    other = replace(order, config={"seed": 1})
    assert finish(start(order, 2, {1: other})) == [FAILED] * 2
    assert errors_of(order, 0) == errors_of(order, 1)
    assert errors_of(order, 0) == {
        "kind": "TrainingError",
        "message": "rank 1 of 2 has another settings than rank 0; all ranks must train the same "
        "run from the same files; start them with the same arguments, and a run folder that each "
        "of them can read",
    }


def test_a_checkpoint_that_one_rank_cannot_see_is_told_too(tmp_path: Path) -> None:
    order = Order("tasks", str(tmp_path), own_folders=True)
    run(order, world=2)
    again = replace(order, resume=True)
    assert finish(start(again, 2)) == [FAILED] * 2
    assert errors_of(order, 1)["message"].startswith(
        "rank 1 of 2 has another checkpoint than rank 0; "
    )


def test_more_ranks_than_a_batch_has_pairs_of_images_are_refused(tmp_path: Path) -> None:
    order = Order("patch", str(tmp_path), {"batch_size": 4})
    assert finish(start(order, 3)) == [FAILED] * 3
    assert errors_of(order, 2) == {
        "kind": "ConfigError",
        "message": "optical_digits@16: 3 ranks share batches of 4 images; each rank takes at "
        "least 2 images of a whole batch; start fewer ranks or raise batch_size",
    }


NAMES = ("cats", "dogs")


@pytest.mark.parametrize(
    ("world", "per_task", "found"),
    [(3, None, [1, 1]), (4, (1,), [1, 1]), (4, (3, 2), [3, 2]), (2, (2, 0), [2, 0])],
)
def test_ranks_that_tasks_cannot_divide_are_refused(
    world: int, per_task: tuple[int, ...] | None, found: list[int]
) -> None:
    with pytest.raises(ConfigError) as caught:
        Workers(0, world, per_task).shares(NAMES, coupled=False)
    assert str(caught.value) == (
        f"{world} ranks for 2 tasks (cats, dogs) with ranks_per_task={found}; each task takes at "
        "least 1 rank and all ranks have a task; start 2 ranks or a multiple, or set "
        f"ranks_per_task to 2 numbers whose sum is {world}"
    )


@pytest.mark.parametrize("world", [1, 4])
def test_ranks_for_each_task_are_refused_where_ranks_split_every_batch(world: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Workers(0, world, (2,)).shares(NAMES, coupled=True)
    assert str(caught.value) == (
        "ranks_per_task=[2] where every rank takes a part of every batch; it divides ranks among "
        "tasks that train together (train_tasks, train_many_patches); leave it out"
    )


@given(
    per_task=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    divide=st.sampled_from(["evenly", "given", "fewer", "coupled"]),
    batch=st.integers(1, 40),
)
def test_every_image_of_every_task_counts_once(
    per_task: list[int], divide: str, batch: int
) -> None:
    count, given = len(per_task), None
    if divide == "evenly":
        world = count * per_task[0]
    elif divide == "given":
        world, given = sum(per_task), tuple(per_task)
    elif divide == "fewer":
        world = max(1, count - 1)
    else:
        world = per_task[0]
    names = [str(k) for k in range(count)]
    taken: list[dict[int, Fraction]] = [{} for _ in names]
    for rank in range(world):
        for share in Workers(rank, world, given).shares(names, divide == "coupled"):
            first, parts = share.of(batch)
            mine = list(range(batch))[first::parts]
            assert len(mine) >= 2 or batch == 1  # one image has no variance
            # a batch too small to divide is whole in each rank, and counts for its part there
            weight = Fraction(1) if parts == share.parts else Fraction(1, share.parts)
            for image in mine:
                taken[share.source][image] = taken[share.source].get(image, 0) + weight
    assert taken == [dict.fromkeys(range(batch), 1)] * count
    ranks = Workers(0, world, given).owners(names, divide == "coupled")
    if divide in ("given", "coupled"):
        assert list(ranks) == (per_task if divide == "given" else [world] * count)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"WORLD_SIZE": "two"},
            "environment WORLD_SIZE='two'; it must be a whole number; ",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "1"},
            "environment WORLD_SIZE=2 without MASTER_ADDR, MASTER_PORT; several ranks need RANK, "
            "WORLD_SIZE, MASTER_ADDR and MASTER_PORT; ",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "environment RANK=2 with WORLD_SIZE=2; ranks count from 0 to 1; ",
        ),
    ],
)
def test_an_environment_that_is_not_whole_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError) as caught, open_workers():
        pass
    assert str(caught.value) == (
        f"{message}torchrun sets them; start the command with torchrun --nproc-per-node"
    )


def test_ranks_that_do_not_find_each_other_are_a_training_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key, value in (
        ("WORLD_SIZE", "2"),
        ("RANK", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", str(free_port())),
    ):
        monkeypatch.setenv(key, value)
    with pytest.raises(TrainingError) as caught, open_workers(timeout_seconds=1.0):
        pass
    assert str(caught.value).startswith("2 ranks did not find each other (")
    assert str(caught.value).endswith(
        "); each must reach MASTER_ADDR:MASTER_PORT; torchrun sets them; start the command with "
        "torchrun --nproc-per-node"
    )


def test_without_torchrun_there_is_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with open_workers([2]) as workers:
        assert (workers.rank, workers.world, workers.ranks_per_task) == (0, 1, (2,))
