"""What each method of a run does: call its training function, save what comes out, test it.

In: a `Job`: settings, base, images, folder. Out: patches and networks in the folder, and the
method's part of the summary. A method is a row of `METHODS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.named_trained import save_network
from patchdeploy.patch import Patch, count_parameters
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training.accuracy import accuracy
from patchdeploy.training.baseline import evaluate, train_baseline
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.int8_aware import Int8Plan, open_int8
from patchdeploy.training.int8_retune import retune_patch_int8
from patchdeploy.training.mixed import train_many_patches
from patchdeploy.training.multitask import TaskImages, train_tasks
from patchdeploy.training.objective import Forward
from patchdeploy.training.preparation import (
    READERS,
    TEACHER,
    choose_device,
    make_samples,
)
from patchdeploy.training.resolutions import train_resolutions
from patchdeploy.training.run_config import Method, RunConfig, TaskConfig
from patchdeploy.training.run_teacher import open_teacher
from patchdeploy.training.transfer import train_patch
from patchdeploy.training.workers import Workers

PATCHES, NETWORKS = "patches", "networks"
SHARED_NETWORK = "base"
"""Folder of the base that methods tasks and resolutions make, in the folder of networks."""
Summary = Mapping[str, Any]


@dataclass(frozen=True)
class TaskData:
    """A task with its images open."""

    config: TaskConfig
    train: ImageDataset
    validation: ImageDataset | None
    test: ImageDataset | None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.config.name


@dataclass(frozen=True)
class Job:
    """What a method is given.

    Attributes:
        base: open.
        tasks: with their images open.
        workers: this rank among all.
        folder: the run's.
        resume: go on from checkpoints.
        quiet: no progress.
    """

    config: RunConfig
    base: Base
    tasks: tuple[TaskData, ...]
    workers: Workers
    folder: Path
    resume: bool
    quiet: bool

    @property
    def first(self) -> bool:
        """Whether this rank writes files."""
        return self.workers.rank == 0

    @property
    def resolution(self) -> int:
        """Of a method that takes one."""
        given = self.config.resolutions
        return given[0] if given else self.base.preprocessing.input_size

    def run_dir(self, task: TaskData) -> Path:
        """Where a task that is trained on its own keeps metrics and checkpoints."""
        return self.folder if len(self.tasks) == 1 else self.folder / task.name


def train_transfer(job: Job) -> Summary:
    """A patch for each task, each on its own."""
    reports = {}
    for task in job.tasks:
        patch = train_patch(
            job.base,
            task.train,
            _settings(job, task),
            job.config.patch,
            task=task.name,
            resolutions=job.config.resolutions or None,
            validation=task.validation,
            teacher=_teacher(job, task),
            workers=job.workers,
            run_dir=job.run_dir(task),
            resume=job.resume,
            quiet=job.quiet,
        )
        reports[task.name] = finish_patch(job, task, patch, job.base)
    return {"tasks": reports}


def finish_patch(job: Job, task: TaskData, patch: Patch, base: Base) -> dict[str, Any]:
    """Save a patch, test it, and say what it reached."""
    place = Path(PATCHES) / task.name
    if job.first:
        patch.save_pretrained(job.folder / place)
    report = describe_task(task) | {
        "patch": str(place),
        "trained_parameters": count_parameters(base, patch.config, len(patch.classes))["trained"],
        "validation_top1": patch.metrics.get("validation_top1", {}),
    }
    if task.test is not None and job.first:
        report["test_images"] = len(task.test)
        report["test_top1"] = measure_patch(job, task, task.test, patch, base)
    return report


def measure_patch(
    job: Job, task: TaskData, test: ImageDataset, patch: Patch, base: Base
) -> dict[str, float]:
    """Top-1 in [0, 1] by resolution; of the int8 network where that is what was trained."""
    config = job.config.training
    model = PatchedModel(base, choose_device(config))
    model.load_patch(patch)
    found = {}
    for px in patch.resolutions:
        model.set_active_task(patch.task, px)
        if not config.through_int8:
            top1, _ = evaluate(model, test, px, base)
        else:
            plan = Int8Plan(task.train, 0.0, patch.resolutions)
            network = open_int8(model, patch.task, px, plan, config, model)
            network.prepare()
            top1 = accuracy(network, make_samples(test, px, base, model.device), model.device)
        found[str(px)] = round(top1, 4)
    return found


def describe_task(task: TaskData) -> dict[str, Any]:
    """How much there was to learn from."""
    return {
        "classes": len(task.train.classes),
        "images": len(task.train),
        "skipped_images": task.train.skipped.count,
    }


def train_baselines(job: Job) -> Summary:
    """For each task a network of its own: all weights, or the last layer alone."""
    reports = {}
    for task in job.tasks:
        result = train_baseline(
            job.base,
            task.train,
            job.config.trained,
            _settings(job, task),
            resolution=job.resolution,
            validation=task.validation,
            statistics=job.config.statistics,
            teacher=_teacher(job, task),
            workers=job.workers,
            run_dir=job.run_dir(task),
            resume=job.resume,
            quiet=job.quiet,
        )
        place = Path(NETWORKS) / task.name
        name = f"{job.base.name}+{task.name}"
        trained = Base.from_module(result.module, job.base.preprocessing, name, job.base.head_name)
        if job.first:
            save_network(job.folder / place, trained, job.config.base, task.train.classes)
        px = str(job.resolution)
        reports[task.name] = describe_task(task) | {
            "network": str(place),
            "trained_parameters": result.parameters,
            "validation_top1": {px: round(result.validation_top1, 4)},
        }
        if task.test is not None and job.first:
            top1, _ = evaluate(trained.module, task.test, job.resolution, trained)
            reports[task.name] |= {"test_images": len(task.test), "test_top1": {px: round(top1, 4)}}
    return {"tasks": reports}


def _teacher(job: Job, task: TaskData) -> Forward | None:
    name = task.config.teacher
    if name is None:
        return None
    device = choose_device(job.config.training)
    return open_teacher(name, task.name, task.train.classes, job.base.preprocessing, device)


def _settings(job: Job, task: TaskData) -> TrainConfig:
    """The run's; a task without a teacher has none of a teacher's keys, which are for others."""
    given = job.config.training
    if task.config.teacher is not None or not any(one.config.teacher for one in job.tasks):
        return given
    plain = TrainConfig()
    own = {key: getattr(plain, key) for key, needs in READERS.items() if TEACHER in needs.values()}
    return replace(given, **own)


def train_together(job: Job) -> Summary:
    """Shared weights of all tasks, and a patch for each."""
    config = job.config
    given = [
        TaskImages(
            task.train,
            task.name,
            task.validation,
            task.config.resolution or job.resolution,
            task.config.weight,
            config=task.config.training(config.training),
        )
        for task in job.tasks
    ]
    result = train_tasks(
        job.base,
        given,
        config.training,
        config.patch,
        workers=job.workers,
        run_dir=job.folder,
        resume=job.resume,
        quiet=job.quiet,
    )
    reports = {
        task.name: finish_patch(job, task, result.patches[task.name], result.base)
        for task in job.tasks
    }
    return {"network": save_shared(job, result.base), "tasks": reports}


def train_at_resolutions(job: Job) -> Summary:
    """One network, one patch with a variant for each resolution."""
    (task,) = job.tasks
    result = train_resolutions(
        job.base,
        task.train,
        job.config.resolutions,
        job.config.training,
        job.config.sharing,
        task=task.name,
        validation=task.validation,
        workers=job.workers,
        run_dir=job.folder,
        resume=job.resume,
        quiet=job.quiet,
    )
    report = {task.name: finish_patch(job, task, result.patch, result.base)}
    if result.base is job.base:
        return {"tasks": report}
    return {"network": save_shared(job, result.base), "tasks": report}


def train_over_one_base(job: Job) -> Summary:
    """A patch for each task, all of them in the same batches over the frozen base."""
    patches = train_many_patches(
        job.base,
        {task.name: task.train for task in job.tasks},
        job.config.training,
        job.config.patch,
        resolution=job.resolution,
        validation={task.name: task.validation for task in job.tasks if task.validation},
        workers=job.workers,
        run_dir=job.folder,
        resume=job.resume,
        quiet=job.quiet,
    )
    return {
        "tasks": {
            task.name: finish_patch(job, task, patches[task.name], job.base) for task in job.tasks
        }
    }


def retune_for_int8(job: Job) -> Summary:
    """Each task's existing patch, trained further through the int8 base."""
    training = replace(job.config.training, through_int8=True)
    job = replace(job, config=replace(job.config, training=training))
    reports = {}
    for task in job.tasks:
        assert task.config.patch is not None  # the method's rule
        patch = Patch.from_pretrained(task.config.patch)
        retuned = retune_patch_int8(
            job.base,
            patch,
            task.train,
            job.config.training,
            resolutions=job.config.resolutions or None,
            validation=task.validation,
            teacher=_teacher(job, task),
            workers=job.workers,
            run_dir=job.run_dir(task),
            resume=job.resume,
            quiet=job.quiet,
        )
        report = finish_patch(job, task, retuned, job.base)
        reached = retuned.metrics["int8_retune"]["validation_top1"]
        report["validation_top1"] = {px: one["after"] for px, one in reached.items()}
        report["validation_top1_before"] = {px: one["before"] for px, one in reached.items()}
        reports[task.name] = report
    return {"tasks": reports}


def save_shared(job: Job, base: Base) -> str:
    """Save the base that a run made; its folder within the run's."""
    place = Path(NETWORKS) / SHARED_NETWORK
    if job.first:
        save_network(job.folder / place, base, job.config.base)
    return str(place)


METHODS: Mapping[Method, Callable[[Job], Summary]] = MappingProxyType(
    {
        "transfer": train_transfer,
        "baseline": train_baselines,
        "tasks": train_together,
        "resolutions": train_at_resolutions,
        "many": train_over_one_base,
        "int8_retune": retune_for_int8,
    }
)
