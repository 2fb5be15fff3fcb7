"""The processes that train one run together, and what each of them does.

In: the environment that torchrun makes (RANK, WORLD_SIZE, MASTER_ADDR ...), or nothing. Out: a
`Workers`: which tasks' batches a rank computes, and sums over ranks. Every rank holds every task's
tensors; a gradient is computed where its task is, summed over all ranks, and applied by each, so
all ranks hold the same bits at every step (the synchronous form of the paper's parameter server,
section 2). Any rank's checkpoint is everybody's, and a run resumes on another number of ranks.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from patchdeploy.errors import ConfigError, TrainingError
from patchdeploy.patch.joined import Partners
from patchdeploy.training.samples import Share

TIMEOUT_SECONDS = 600.0
FROM_PYTHON = "all ranks started again, with resume=True"


@dataclass(frozen=True)
class Workers:
    """One rank's view of all.

    Attributes:
        rank: this process, 0 to world - 1; rank 0 writes files and records.
        world: processes in the run.
        ranks_per_task: how many ranks each task has (one number for all, or one a task); None to
            divide them evenly. Refused where batches are split instead (`Trainee.coupled`).
        again: what goes on with the run where a rank has stopped (`resume_command`).
        timeout_seconds: how long a rank waits for the others in one exchange.
    """

    rank: int = 0
    world: int = 1
    ranks_per_task: tuple[int, ...] | None = None
    again: str = FROM_PYTHON
    timeout_seconds: float = TIMEOUT_SECONDS

    def shares(self, names: Sequence[str], coupled: bool) -> tuple[Share, ...]:
        """What this rank computes in each step.

        Args:
            names: of the sources (tasks).
            coupled: every source's batch is needed at once, so each rank takes a part of all.

        Raises:
            ConfigError: the ranks cannot be divided among the tasks, or ``ranks_per_task`` is given
                where there is nothing to divide.
        """
        count = len(names)
        if coupled and self.ranks_per_task is not None:
            raise ConfigError(
                f"ranks_per_task={list(self.ranks_per_task)} where every rank takes a part of "
                "every batch; it divides ranks among tasks that train together (train_tasks, "
                "train_many_patches); leave it out"
            )
        if self.world == 1 or coupled:
            return tuple(Share(source, self.rank, self.world) for source in range(count))
        if self.ranks_per_task is None and self.world <= count:
            return tuple(Share(source) for source in range(self.rank, count, self.world))
        per_task = self._per_task(names)
        first = 0
        for source, ranks in enumerate(per_task):
            if first <= self.rank < first + ranks:
                return (Share(source, self.rank - first, ranks),)
            first += ranks
        raise AssertionError(f"rank {self.rank} of {self.world} has no task")

    def owners(self, names: Sequence[str], coupled: bool) -> tuple[int, ...]:
        """Ranks that compute each source."""
        views = [
            Workers(rank, self.world, self.ranks_per_task).shares(names, coupled)
            for rank in range(self.world)
        ]
        return tuple(
            sum(any(share.source == source for share in view) for view in views)
            for source in range(len(names))
        )

    def partners(self, names: Sequence[str], coupled: bool) -> Partners | None:
        """The ranks that divide this rank's batches among them; None where they are whole.

        Every rank must call it, as often as the others.

        Raises:
            TrainingError: another rank has stopped, or did not answer in time.
        """
        views = [
            Workers(rank, self.world, self.ranks_per_task).shares(names, coupled)
            for rank in range(self.world)
        ]
        # a rank that divides a batch divides all of its own, among the same ranks
        divided = sorted({one[0].source for one in views if one[0].parts > 1})
        mine = None
        for source in divided:
            ranks = [rank for rank in range(self.world) if views[rank][0].source == source]
            group = self._group(ranks)
            if self.rank in ranks:
                add = partial(self._transfer, group=group)
                mine = Partners(ranks.index(self.rank), len(ranks), add)
        return mine

    def _group(self, ranks: list[int]) -> dist.ProcessGroup | None:
        """For sums over ``ranks`` alone; None where they are all."""
        if len(ranks) == self.world:
            return None
        with self._named_failure():
            group = dist.new_group(ranks, timeout=timedelta(seconds=self.timeout_seconds))
        return group if isinstance(group, dist.ProcessGroup) else None  # a number: not among them

    def _per_task(self, names: Sequence[str]) -> tuple[int, ...]:
        count, given = len(names), self.ranks_per_task
        if given is None:
            given = (self.world // count,)
        per_task = given * count if len(given) == 1 else given
        if len(per_task) != count or sum(per_task) != self.world or min(per_task) < 1:
            raise ConfigError(
                f"{self.world} ranks for {count} tasks ({', '.join(names)}) with ranks_per_task="
                f"{list(per_task)}; each task takes at least 1 rank and all ranks have a task; "
                f"start {count} ranks or a multiple, or set ranks_per_task to {count} numbers "
                f"whose sum is {self.world}"
            )
        return per_task

    @torch.no_grad()
    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Each tensor becomes its sum over all ranks, in one transfer for each dtype.

        Raises:
            TrainingError: another rank has stopped, or did not answer in time.
        """
        if self.world == 1 or not tensors:
            return
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for one in tensors:
            by_dtype.setdefault(one.dtype, []).append(one)
        for same in by_dtype.values():
            flat = torch.cat([one.reshape(-1) for one in same])
            self._transfer(flat)
            sizes = [one.numel() for one in same]
            for one, part in zip(same, torch.split(flat, sizes), strict=True):
                one.copy_(part.reshape(one.shape))

    def check_agreement(self, facts: Mapping[str, str], device: torch.device) -> None:
        """Every rank must say the same of each of ``facts``, else they would part unseen.

        Raises:
            TrainingError: a rank says something else, or has stopped.
        """
        said = torch.zeros(self.world, len(facts), dtype=torch.float64, device=device)
        # 48 bits of a hash: whole numbers that float64 holds and sums with zeros exactly.
        hashes = [hashlib.sha256(value.encode()).digest()[:6] for value in facts.values()]
        numbers = [float(int.from_bytes(one, "big")) for one in hashes]
        said[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        self.sum_in_place([said])
        for column, what in enumerate(facts):
            for rank in range(self.world):
                if said[rank, column] != said[0, column]:
                    raise TrainingError(
                        f"rank {rank} of {self.world} has another {what} than rank 0; all ranks "
                        "must train the same run from the same files; start them with the same "
                        "arguments, and a run folder that each of them can read"
                    )

    def _transfer(self, flat: Tensor, group: dist.ProcessGroup | None = None) -> None:
        with self._named_failure():
            dist.all_reduce(flat, group=group)

    @contextmanager
    def _named_failure(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise TrainingError(
                f"rank {self.rank} of {self.world}: another rank has stopped or did not answer "
                f"({_first_sentence(error)}); all ranks must run to the end; see its own message; "
                f"the last checkpoint is whole; go on with: {self.again}"
            ) from error


def _first_sentence(error: Exception) -> str:
    """Of gloo and NCCL, without the place in their own source that they begin with."""
    line = str(error).splitlines()[0]
    return re.sub(r"^\[[^]]*:\d+\] ", "", line).partition(". ")[0][:200]


def resume_command(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> str:
    """What goes on with a run that was stopped, as a person types it.

    A rank sees its own arguments and how many ranks there are, not torchrun's arguments: for ranks
    of one machine that is enough, for several machines the command is said in words.

    Args:
        command: as typed behind torchrun's part: patchdeploy, train, ...; empty where the run was
            started from Python.
        environment: of this rank.
    """
    if not command:
        return FROM_PYTHON
    again = shlex.join([*command, *(["--resume"] if "--resume" not in command else [])])
    world, local = (environment.get(key, "") for key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world in ("", "1"):
        return again
    if local == world:
        return f"torchrun --nproc-per-node {world} -m {again}"
    if not local:
        return "the same command for each rank, with --resume"
    return "the same torchrun command on each machine, with --resume"


SINGLE = Workers()
REMEDY = "torchrun sets them; start the command with torchrun --nproc-per-node"


def _read_number(key: str, default: str) -> int:
    value = os.environ.get(key, default)
    if not value.isdecimal():
        raise ConfigError(f"environment {key}={value!r}; it must be a whole number; {REMEDY}")
    return int(value)


def _check_environment(world: int) -> None:
    missing = [key for key in ("RANK", "MASTER_ADDR", "MASTER_PORT") if key not in os.environ]
    if missing:
        raise ConfigError(
            f"environment WORLD_SIZE={world} without {', '.join(missing)}; several ranks need "
            f"RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; {REMEDY}"
        )
    rank = _read_number("RANK", "")
    if rank >= world:
        raise ConfigError(
            f"environment RANK={rank} with WORLD_SIZE={world}; ranks count from 0 to {world - 1}; "
            f"{REMEDY}"
        )


@contextmanager
def open_workers(
    ranks_per_task: Sequence[int] | None = None,
    backend: str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
    command: Sequence[str] = (),
) -> Iterator[Workers]:
    """The workers that torchrun's environment describes; one alone without it.

    Args:
        backend: "gloo" or "nccl"; by default nccl where there is a GPU for each rank.
        timeout_seconds: how long a rank waits for the others in one exchange.
        command: see `resume_command`.

    Raises:
        ConfigError: an environment that is not whole, or numbers in it that are none.
        TrainingError: the ranks did not find each other.
    """
    given = tuple(ranks_per_task) if ranks_per_task is not None else None
    world = _read_number("WORLD_SIZE", "1")
    if world == 1:
        yield Workers(ranks_per_task=given)
        return
    _check_environment(world)
    local = _read_number("LOCAL_RANK", os.environ["RANK"])
    # nccl wants a GPU for each rank of this machine; gloo serves ranks that share one, or none
    cuda = torch.cuda.device_count() >= _read_number("LOCAL_WORLD_SIZE", str(world))
    if cuda:
        torch.cuda.set_device(local % torch.cuda.device_count())
    chosen = backend or ("nccl" if cuda else "gloo")
    try:
        dist.init_process_group(chosen, timeout=timedelta(seconds=timeout_seconds))
    except (ValueError, RuntimeError) as error:
        raise TrainingError(
            f"{world} ranks did not find each other ({_first_sentence(error)}); each "
            f"must reach MASTER_ADDR:MASTER_PORT; {REMEDY}"
        ) from error
    try:
        yield Workers(dist.get_rank(), world, given, resume_command(command), timeout_seconds)
    finally:
        dist.destroy_process_group()
