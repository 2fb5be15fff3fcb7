"""Many tasks' patches at once over one frozen base: every step is one batch of all tasks' images.

In: a base and a labelled set for each task. Out: a patch for each, the very ones that training them
one after another on the same batches gives (with frozen statistics; with batch statistics too, as
each task's images have statistics of their own). The shared convolutions run once a step, which
pays where tasks have small batches and on devices that want large ones. Under torchrun each rank
takes some of the tasks, as the paper's worker groups do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patch.forward import reestimate_tensors, share_structure
from patchdeploy.patched_model.mixed import MixedTaskModel
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.exportable import check_exportable
from patchdeploy.training.objective import autocast, classification_loss, compile_forward
from patchdeploy.training.optimizer import choose_scope
from patchdeploy.training.preparation import (
    check_resolutions,
    choose_device,
    describe_context,
    make_pair,
    refuse_settings,
    scale_floors,
    split_images,
)
from patchdeploy.training.samples import Batch, Source
from patchdeploy.training.session import open_session
from patchdeploy.training.statistics import draw_statistics_batches
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.workers import SINGLE, Workers


def train_many_patches(
    base: Base,
    tasks: Mapping[str, ImageDataset],
    config: TrainConfig | None = None,
    patch_config: PatchConfig | None = None,
    *,
    resolution: int | None = None,
    validation: Mapping[str, ImageDataset] | None = None,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Patch]:
    """Train a patch for every task in one run; each keeps its own best epoch.

    ``config.batch_size`` is of each task, so a step takes as many images as there are tasks times
    that. An epoch is as many images as one pass over all sets; a small set is passed over more
    often than a large one.

    Args:
        tasks: labelled images by task.
        patch_config: what each patch owns; the same for all.
        resolution: side in pixels; by default the base's own.
        validation: held out for the best epoch, by task; by default a share of each set.
        workers: the ranks that share the tasks (`open_workers`).
        run_dir: metrics and a checkpoint; ``resume`` goes on from it.

    Raises:
        UnsupportedOperatorError, BaseError, ConfigError: it could not be exported
            (`check_exportable`).
        DataError: an empty set, a single class, or validation images of other classes.
        ConfigError: no task, nothing to train, a resolution below the base's stride, or settings
            that a run of one task alone understands.
        TrainingError: the loss of a task is not finite, or another rank has stopped.
    """
    config, patch_config = config or TrainConfig(), patch_config or PatchConfig()
    px = resolution or base.preprocessing.input_size
    refuse_settings(config, "train_many_patches")
    _check(base, tasks, patch_config)
    check_resolutions(base, [px])
    check_exportable(base, {name: one.classes for name, one in tasks.items()}, [px], config)
    model = MixedTaskModel(base, px, choose_device(config))
    for task, images in tasks.items():
        model.add_task(task, images.classes, patch_config)
    sources = _make_sources(model, tasks, validation or {}, config)
    if patch_config.statistics == "reestimated":
        _measure_statistics(model, sources, config)
    settings = [patch_config.to_json(), px, list(tasks)]
    pairs = [part for one in sources for part in (one.train, one.validation)]
    trainee = make_trainee(model, sources, config, patch_config)
    if run_dir is not None:
        trainee = replace(trainee, **describe_context(base, settings, pairs))
    with open_session(config.epochs * len(tasks), workers, run_dir, resume, quiet) as session:
        result = session.fit(trainee, config, "many.pt")
    return {
        source.name: model.to_patch(
            source.name,
            {
                "validation_top1": {str(px): round(top1, 4)},
                "training_images": len(source.train),
                "settings": config.to_json(),
            },
        )
        for source, top1 in zip(sources, result.validation_top1, strict=True)
    }


def make_trainee(
    model: MixedTaskModel,
    sources: Sequence[Source],
    config: TrainConfig,
    patch_config: PatchConfig,
) -> Trainee:
    """All of ``model``'s tasks for the loop; source k is the task with number k.

    A state tensor is a row of one task (`RowLayout`), named ``task/row``.
    """
    state = {
        f"{task}/{row}": value for task in model.tasks for row, value in model.rows(task).items()
    }
    trained = {key: value for key, value in state.items() if value.requires_grad}
    scope = choose_scope(model.base, "head" if patch_config.kinds == ("head",) else "patch")
    bounds = model.pack(scale_floors(model.base, model.tensors(model.tasks[0])))
    forward = MixedForward(model, compile_forward(model, config))
    return Trainee(
        name="many",
        sources=tuple(sources),
        groups={scope: trained},
        state=state,
        floors={
            f"{task}/scale": bounds["scale"] for task in model.tasks if f"{task}/scale" in trained
        },
        losses=MixedLosses(forward, config),
        predict=lambda source, inputs: forward(inputs, [source], [len(inputs)])[0],
        owners={key: k for k, task in enumerate(model.tasks) for key in _keys(model, task)},
        batch_statistics=patch_config.statistics == "batch",
    )


@dataclass(frozen=True)
class MixedForward:
    """Scores of several tasks' images that follow one another in a batch.

    Attributes:
        model: for its classes and device.
        forward: the model itself, or its compiled form.
    """

    model: MixedTaskModel
    forward: object

    def __call__(
        self, inputs: Tensor, numbers: Sequence[int], counts: Sequence[int]
    ) -> list[Tensor]:
        """By task [n, classes]: ``counts[k]`` images in a row belong to task ``numbers[k]``."""
        tasks = torch.repeat_interleave(torch.tensor(numbers), torch.tensor(counts))
        assert callable(self.forward)
        parts = torch.split(self.forward(inputs, tasks), list(counts))
        names = self.model.tasks
        return [
            part[:, : len(self.model.classes(names[number]))]
            for part, number in zip(parts, numbers, strict=True)
        ]


@dataclass(frozen=True)
class MixedLosses:
    """One forward pass for all batches of a step, a loss for each."""

    forward: MixedForward
    config: TrainConfig

    def __call__(self, batches: Sequence[Batch]) -> Iterator[Mapping[int, Tensor]]:
        """See `Trainee.losses`."""
        inputs = torch.cat([one.inputs for one in batches])
        numbers = [one.source for one in batches]
        with autocast(self.config, self.forward.model.device):
            scores = self.forward(inputs, numbers, [len(one.inputs) for one in batches])
        yield {
            one.source: classification_loss(part, one.targets, self.config)
            for one, part in zip(batches, scores, strict=True)
        }


def _keys(model: MixedTaskModel, task: str) -> list[str]:
    return [f"{task}/{row}" for row in model.rows(task)]


def _make_sources(
    model: MixedTaskModel,
    tasks: Mapping[str, ImageDataset],
    validation: Mapping[str, ImageDataset],
    config: TrainConfig,
) -> list[Source]:
    sources = []
    for stream, (task, images) in enumerate(tasks.items()):
        parts = split_images(images, validation.get(task), config)
        train, held = make_pair(parts, model.resolution, model.base, model.device)
        classes = len(images.classes)
        sources.append(Source(task, train, held, classes, config.batch_size, stream=stream))
    return sources


def _measure_statistics(
    model: MixedTaskModel, sources: Sequence[Source], config: TrainConfig
) -> None:
    """Each task's mean and variance, on its own training images; see `reestimate_tensors`."""
    structure = share_structure(model.base.module)
    for one in sources:
        batches = draw_statistics_batches(
            one.train, one.batch_size, config.seed, model.device, one.stream
        )
        reestimate_tensors(structure, model.tensors(one.name), batches)


def _check(
    base: Base,
    tasks: Mapping[str, ImageDataset],
    patch_config: PatchConfig,
) -> None:
    if not tasks:
        raise ConfigError("tasks are empty; a run of many patches needs at least 1 task; name them")
    probe = MixedTaskModel(base)
    probe.add_task("probe", ("a", "b"), patch_config)
    if not any(row.requires_grad for row in probe.rows("probe").values()):
        raise ConfigError(
            f"patch kinds {list(patch_config.kinds)} select nothing to train in base "
            f"{base.name!r}; add a kind or widen include"
        )
