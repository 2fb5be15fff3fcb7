"""A whole run: open the images and the base, train by the method that is asked for, report.

In: a `RunConfig`. Out: a `RunResult`: the run's folder with patches or networks in it, and a
summary of plain numbers. What a method does is `patchdeploy.training.run_methods`'s matter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from patchdeploy.data import warn_overlap
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.named import open_base, open_images
from patchdeploy.training.run_config import LoaderConfig, RunConfig, TaskConfig
from patchdeploy.training.run_folder import hold_run_folder, make_run_folder, write_summary
from patchdeploy.training.run_methods import METHODS, Job, Summary, TaskData
from patchdeploy.training.run_sweep import sweep_job
from patchdeploy.training.workers import Workers, open_workers


@dataclass(frozen=True)
class RunResult:
    """What a run has left.

    Attributes:
        folder: the run's.
        summary: plain JSON values: method, base, seconds, and by task what was reached; the same
            as ``summary.json``.
    """

    folder: Path
    summary: Summary


def run_training(
    config: RunConfig, *, resume: bool = False, quiet: bool = False, command: Sequence[str] = ()
) -> RunResult:
    """Do what ``config`` says, in ``config.out``.

    Under torchrun every rank calls this; the first one writes.

    Args:
        resume: go on with the run in that folder.
        quiet: no progress on standard error.
        command: as typed, to be noted, and to say how a run that was stopped goes on.

    Raises:
        ConfigError, DataError, BaseError: something asked for that cannot be had.
        TrainingError: the loss is not finite, or another rank has stopped.
        StorageError: the disk is full; the last checkpoint is whole.
        KeyboardInterrupt: Ctrl-C; the run is saved and can go on.
    """
    begun = time.perf_counter()
    check_ranks(config)
    given = config.workers
    opened = open_workers(given.ranks_per_task, given.backend, given.timeout_seconds, command)
    with opened as workers, _hold_folder(config, resume, workers):
        tasks = tuple(open_task(one, config.loader) for one in config.tasks)
        base = open_base(config.base)
        folder = make_run_folder(config, command) if workers.rank == 0 else Path(config.out)
        job = Job(config, base, tasks, workers, folder, resume, quiet)
        found = sweep_job(job) if config.sweep.rates else METHODS[config.method](job)
        summary = {
            "method": config.method,
            "base": {"name": job.base.name, "sha256": job.base.sha256},
            "seconds": round(time.perf_counter() - begun, 1),
            **found,
        }
        if job.first:
            write_summary(folder, summary)
    return RunResult(folder, summary)


def _hold_folder(config: RunConfig, resume: bool, workers: Workers) -> AbstractContextManager[None]:
    """The first rank holds the folder for all."""
    return hold_run_folder(config, resume) if workers.rank == 0 else nullcontext()


def check_ranks(config: RunConfig) -> None:
    """Refuse settings for several ranks where torchrun has started one.

    Raises:
        ConfigError: ranks_per_task asks for more ranks than there are.
    """
    wanted = config.workers.ranks_per_task
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if wanted is not None and world == 1 and max(wanted) > 1:
        raise ConfigError(
            f"[workers] ranks_per_task = {list(wanted)} and 1 rank; torchrun starts several; run "
            "torchrun --nproc-per-node N -m patchdeploy train CONFIG.toml, or remove the line"
        )


def open_task(task: TaskConfig, loader: LoaderConfig) -> TaskData:
    """Open a task's images, and look whether any is in two sets.

    Raises:
        DataError: images that cannot be used, or test images of other classes.

    Warns:
        OverlapWarning: training images among those to validate or test with.
    """
    load = loader.to_load()
    train = open_images(task.images, load)
    others = {
        part: open_images(name, load) if name else None
        for part, name in (("validation", task.validation), ("test", task.test))
    }
    for part, images in others.items():
        if images is None:
            continue
        if images.classes != train.classes:
            raise DataError(
                f"task {task.name!r}: the {part} images have classes {list(images.classes)[:5]}, "
                f"the training images {list(train.classes)[:5]}; both need the same; correct the "
                "folders"
            )
        warn_overlap(train, images, part)
    return TaskData(task, train, others["validation"], others["test"])
