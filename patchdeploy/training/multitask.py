"""Multi-task learning: all weights learn, each task owns its patch (paper, section 5.3).

In: a base to start from, and a labelled set for each task, with label sets, sizes, losses and
augmentation of its own. Out: one new base and a patch a task over it. Every task's gradient reaches
the shared weights; under torchrun each rank computes the tasks that are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patch.forward import run_structure
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.exportable import check_exportable
from patchdeploy.training.joint import JointModel, Member, make_joint
from patchdeploy.training.loop import FitResult
from patchdeploy.training.objective import autocast, classification_loss, compile_forward
from patchdeploy.training.preparation import (
    check_resolutions,
    choose_device,
    describe_context,
    make_pair,
    refuse_own_settings,
    refuse_settings,
    split_images,
)
from patchdeploy.training.samples import Batch, Source
from patchdeploy.training.session import open_session
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.workers import SINGLE, Workers

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TaskImages:
    """One task of a joint run.

    Attributes:
        images: labelled, to train on.
        name: by default the set's.
        validation: held out for the best epoch; by default a share of ``images``.
        resolution: in pixels; by default the base's own.
        weight: of this task among all: its images in a step are the batch size times weight (at
            least 2, and no more than it has), so a task of weight 2 is drawn twice as often as one
            of weight 1; its loss counts for the images in the step, so that each counts alike.
        loss: (scores [n, classes] float32, targets) -> mean loss; None for cross entropy.
        config: augmentation and label smoothing of this task alone (`OWN_TRAINING`); None for the
            run's. Other settings in it are the run's or at their defaults.
    """

    images: ImageDataset
    name: str | None = None
    validation: ImageDataset | None = None
    resolution: int | None = None
    weight: float = 1.0
    loss: Loss | None = None
    config: TrainConfig | None = None

    @property
    def task(self) -> str:
        """Its name."""
        return self.name or self.images.name


@dataclass(frozen=True)
class MultiTaskResult:
    """What a joint run made.

    Attributes:
        base: with the shared weights as they were learned.
        patches: by task, over ``base``.
        validation_top1: in [0, 1], by task.
    """

    base: Base
    patches: Mapping[str, Patch]
    validation_top1: Mapping[str, float]


def train_tasks(
    base: Base,
    tasks: Sequence[TaskImages],
    config: TrainConfig | None = None,
    patch_config: PatchConfig | None = None,
    *,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> MultiTaskResult:
    """Train all weights for all tasks at once; each keeps a patch of its own.

    ``patch_config`` says what a task owns: by default scales, biases and its head (Table 4's
    first column), with the statistics of its own batches; kinds ("head",) is the baseline that
    shares all but the head. One clock drives every task's learning rate.

    Raises:
        UnsupportedOperatorError, BaseError, ConfigError: it could not be exported
            (`check_exportable`).
        ConfigError: fewer than one task, a name twice, ranks that cannot be divided, a setting
            that is not read, or statistics measured before training, which do not hold while the
            weights change.
        DataError: a set that nothing can be learned from.
        TrainingError: a loss that is not finite, or a rank that stopped.
    """
    config = config or TrainConfig()
    patch_config = patch_config or PatchConfig(statistics="batch")
    refuse_settings(config, "train_tasks")
    _check_tasks(tasks, config)
    _check_statistics(patch_config)
    sizes = [_resolution(base, one) for one in tasks]
    check_resolutions(base, sizes)
    check_exportable(base, {one.task: one.images.classes for one in tasks}, sizes, config)
    members = [Member(one.task, len(one.images.classes), patch_config) for one in tasks]
    run = compile_forward(run_structure, config)
    model = make_joint(base, members, choose_device(config), run=run)
    sources = weigh([_make_source(base, model, one, k, config) for k, one in enumerate(tasks)])
    trainee = Trainee(
        name="tasks",
        sources=tuple(sources),
        groups=model.groups(),
        state=model.state(),
        floors=model.floors(),
        losses=_TaskLosses(model, tasks, config),
        predict=lambda source, inputs: model.forward(members[source].name, inputs),
        owners=model.owners(),
        **(_context(base, tasks, patch_config, sources) if run_dir is not None else {}),
        batch_statistics=patch_config.statistics == "batch",
    )
    with open_session(config.epochs * len(tasks), workers, run_dir, resume, quiet) as session:
        result = session.fit(trainee, config, "tasks.pt")
    return _collect(model, tasks, sources, config, patch_config, result)


def _check_tasks(tasks: Sequence[TaskImages], config: TrainConfig) -> None:
    names = [one.task for one in tasks]
    if not names or len(set(names)) < len(names):
        raise ConfigError(
            f"tasks {names}; a joint run needs at least 1 task, each with a name of its own; "
            "name them"
        )
    for one in tasks:
        if not 0 < one.weight < float("inf"):
            raise ConfigError(f"task {one.task!r}: weight={one.weight}; it must be positive")
        if one.config is not None:
            refuse_own_settings(one.task, one.config, config)


def _check_statistics(patch_config: PatchConfig) -> None:
    if patch_config.statistics == "reestimated":
        raise ConfigError(
            "statistics 'reestimated' while all weights learn; what is measured before training "
            "does not hold after it; choose batch or frozen"
        )


def _resolution(base: Base, task: TaskImages) -> int:
    return task.resolution or base.preprocessing.input_size


def _make_source(
    base: Base, model: JointModel, task: TaskImages, stream: int, config: TrainConfig
) -> Source:
    parts = split_images(task.images, task.validation, config)
    train, held = make_pair(parts, _resolution(base, task), base, model.device)
    return Source(
        name=task.task,
        train=train,
        validation=held,
        classes=len(task.images.classes),
        batch_size=max(2, round(config.batch_size * task.weight)),
        stream=stream,
        config=task.config,
    )


def weigh(sources: Sequence[Source]) -> list[Source]:
    """The sources, each with a loss weight in proportion to the images that it has in a step; the
    mean of the weights is 1. Sources of as many images have weights of exactly 1.
    """
    images = [min(one.batch_size, len(one.train)) for one in sources]
    return [
        replace(one, weight=count * len(sources) / sum(images))
        for one, count in zip(sources, images, strict=True)
    ]


@dataclass(frozen=True)
class _TaskLosses:
    """Each task's batch through its own patch, one after another."""

    model: JointModel
    tasks: Sequence[TaskImages]
    config: TrainConfig

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Mapping[int, Tensor]]:
        for batch in batches:
            task = self.tasks[batch.source]
            config = task.config or self.config
            with autocast(self.config, self.model.device):
                scores = self.model.forward(task.task, batch.inputs)
            if task.loss is not None:
                yield {batch.source: task.loss(scores.float(), batch.targets)}
            else:
                yield {batch.source: classification_loss(scores, batch.targets, config)}


def _context(
    base: Base, tasks: Sequence[TaskImages], patch_config: PatchConfig, sources: Sequence[Source]
) -> dict[str, Any]:
    settings = [
        patch_config.to_json(),
        [list(one.images.classes) for one in tasks],
        [one.config.to_json() if one.config else None for one in tasks],
    ]
    samples = [part for one in sources for part in (one.train, one.validation)]
    return describe_context(base, settings, samples)


def _collect(
    model: JointModel,
    tasks: Sequence[TaskImages],
    sources: Sequence[Source],
    config: TrainConfig,
    patch_config: PatchConfig,
    result: FitResult,
) -> MultiTaskResult:
    base = model.make_base(f"{model.base.name} for {', '.join(one.task for one in tasks)}")
    top1 = {one.task: value for one, value in zip(tasks, result.validation_top1, strict=True)}
    patches = {}
    for k, one in enumerate(tasks):
        px = _resolution(model.base, one)
        metrics = {
            "validation_top1": {str(px): round(top1[one.task], 4)},
            "training_images": len(sources[k].train),
            "settings": config.to_json(),
        }
        variants = {px: one.task}
        patches[one.task] = model.make_patch(
            base, one.task, one.images.classes, variants, patch_config, metrics
        )
    return MultiTaskResult(base, patches, top1)
