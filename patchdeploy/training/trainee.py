"""What a run trains: a `Trainee`, and what must hold of one.

In: a method's batches, tensors and losses. Out: the one form that `training.loop` trains, checked
before the first step, and its fingerprint, which ties a checkpoint to it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from patchdeploy.errors import ConfigError, DataError
from patchdeploy.training.config import Scope, TrainConfig
from patchdeploy.training.samples import Batch, Source
from patchdeploy.training.workers import Workers


def _nothing(epoch: int) -> None:
    """Nothing to prepare."""


@dataclass(frozen=True)
class Trainee:
    """What a run trains.

    Attributes:
        name: of the run.
        sources: where batches come from, one a task or resolution.
        groups: tensors that gradients reach, by the scope that says which learning rate suits them.
        state: every tensor that training may change (statistics too), by a name of its own; what is
            kept.
        floors: bounds that hold after each step, so that no scale changes its sign: a value stays
            at or above a bound that is positive or 0, at or below one that is negative.
        losses: the step's batches -> mean losses by source, in one mapping or several; the loop
            calls backward on each mapping before it asks for the next, so that only one forward
            pass is held.
        predict: (source, inputs) -> scores, for validation.
        coupled: ``losses`` needs the batches of all sources at once; ranks then split images.
        prepare: called before each epoch's first step and before each validation; what it
            makes and training needs must be in ``state``.
        owners: the source that a state tensor belongs to. If each has one, every source keeps its
            own best epoch; else all keep the epoch with the best mean.
        context: what else a checkpoint must agree on: base, patch settings, images.
        former_context: the same as earlier versions wrote it.
        batch_statistics: a batch is normalised by its own mean and variance.
    """

    name: str
    sources: tuple[Source, ...]
    groups: Mapping[Scope, Mapping[str, Tensor]]
    state: Mapping[str, Tensor]
    floors: Mapping[str, Tensor]
    losses: Callable[[Sequence[Batch]], Iterable[Mapping[int, Tensor]]]
    predict: Callable[[int, Tensor], Tensor]
    coupled: bool = False
    prepare: Callable[[int], None] = _nothing
    owners: Mapping[str, int] = field(default_factory=dict)
    context: str = ""
    former_context: Callable[[], str] = str
    batch_statistics: bool = False

    @property
    def trained(self) -> dict[str, Tensor]:
        """What gradients reach, of all groups."""
        return {key: value for group in self.groups.values() for key, value in group.items()}

    @property
    def steps(self) -> int:
        """Steps of one epoch: as many images in all as one pass over every source."""
        images = sum(len(one.train) for one in self.sources)
        return max(1, round(images / sum(one.images_per_step for one in self.sources)))


LEAST_STEPS = 20
"""Fewer optimiser steps than these hardly move a patch; a few hundred are usual."""


def describe_few_steps(trainee: Trainee, config: TrainConfig) -> str | None:
    """A hint where a run has fewer than `LEAST_STEPS`; None where it has enough."""
    total = config.epochs * trainee.steps
    if total >= LEAST_STEPS:
        return None
    images = max(len(one.train) for one in trainee.sources)
    smaller = max(2, images * config.epochs // LEAST_STEPS)
    ways = [f"epochs = {-(-LEAST_STEPS // trainee.steps)}"]
    if smaller < config.batch_size and images * config.epochs >= LEAST_STEPS * smaller:
        ways.append(f"batch_size = {smaller}")
    return (
        f"{trainee.name}: {total} optimiser steps in this run (epochs = {config.epochs}, "
        f"{images} training images, batch_size = {config.batch_size}); a patch wants a few "
        f"hundred; at least {' or '.join(ways)} would help"
    )


def describe_memory(trainee: Trainee) -> str:
    """What takes the memory: ``digits@32: batches of 128 images of 32 x 32 px``."""
    parts = []
    for one in trainee.sources:
        shape = one.train.inputs.shape[1:]
        what = f"images of {shape[0]} x {shape[1]} px" if len(shape) == 3 else "features"
        parts.append(f"{one.name}: batches of {one.batch_size} {what}")
    return "; ".join(parts)


def check_sources(trainee: Trainee, workers: Workers) -> None:
    """There are images to train and to validate on, and enough of them in a batch for its ranks.

    Raises:
        DataError: no image in a set, or a single one to take batch statistics of.
        ConfigError: more ranks than a batch has pairs of images, or than tasks allow; batches of
            one image that are normalised by their own statistics.
    """
    for source in trainee.sources:
        for part, samples in (("train on", source.train), ("validate on", source.validation)):
            if len(samples) == 0:
                raise DataError(
                    f"{source.name}: no image to {part}; at least 1 is needed to choose the best "
                    "epoch by; add images (2 of a class are split between both)"
                )
        if trainee.batch_statistics:
            _check_variance(source)
    names = [one.name for one in trainee.sources]
    shares = workers.shares(names, trainee.coupled)
    for share in shares:
        source = trainee.sources[share.source]
        images = min(source.batch_size, len(source.train))
        if share.parts > max(1, images // 2):
            raise ConfigError(
                f"{source.name}: {share.parts} ranks share batches of {images} images; each rank "
                "takes at least 2 images of a whole batch; start fewer ranks or raise batch_size"
            )


def _check_variance(source: Source) -> None:
    """One image has no variance to normalise by."""
    rule = "statistics 'batch' take the variance of each batch, of at least 2 images"
    if len(source.train) == 1:
        raise DataError(f"{source.name}: 1 image to train on; {rule}; add images")
    if source.batch_size == 1:
        raise ConfigError(
            f"{source.name}: batch_size=1; {rule}; raise it, or choose statistics 'frozen' or "
            "'reestimated'"
        )


@torch.no_grad()
def keep_signs(state: Mapping[str, Tensor], floors: Mapping[str, Tensor]) -> None:
    """Move what passed its floor back to it, in place; see `Trainee.floors`."""
    for key, floor in floors.items():
        value = state[key]
        value.copy_(torch.where(floor < 0, value.minimum(floor), value.maximum(floor)))


def fingerprint(trainee: Trainee, config: TrainConfig, former: bool = False) -> str:
    """What must be equal for a checkpoint to fit: settings, context, and names and shapes of the
    tensors. The number of ranks is not among it.

    Args:
        former: by the context of earlier versions, which named the base by its tensors alone.
    """
    shapes = {key: list(value.shape) for key, value in trainee.state.items()}
    sources = [[one.name, one.batch_size, one.weight, one.stream] for one in trainee.sources]
    settings = json.dumps(
        [
            {key: value for key, value in config.to_json().items() if key != "check_export"},
            trainee.name,
            sources,
            trainee.former_context() if former else trainee.context,
            sorted(trainee.trained),
            shapes,
        ],
        sort_keys=True,
    )
    return hashlib.sha256(settings.encode()).hexdigest()
