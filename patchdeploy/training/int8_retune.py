"""A short re-tune of a trained patch through the int8 base, before it is exported.

In: a base, a patch, its task's images. Out: the patch with scales, biases, head and depthwise
kernels moved a little, so that the exported network answers as the float one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.patch import Patch
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training.accuracy import predict
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.exportable import check_exportable
from patchdeploy.training.int8_aware import Int8Plan, open_int8
from patchdeploy.training.objective import Forward
from patchdeploy.training.parts import Part, part_of
from patchdeploy.training.preparation import (
    choose_device,
    make_pair,
    refuse_settings,
    split_images,
)
from patchdeploy.training.samples import Samples
from patchdeploy.training.session import open_session
from patchdeploy.training.transfer import TransferRun
from patchdeploy.training.workers import SINGLE, Workers

RETUNE = TrainConfig(epochs=2, learning_rate=2e-3, through_int8=True)
"""What `retune_patch_int8` does unless told otherwise."""


def retune_patch_int8(
    base: Base,
    patch: Patch,
    images: ImageDataset,
    config: TrainConfig = RETUNE,
    *,
    resolutions: Sequence[int] | None = None,
    validation: ImageDataset | None = None,
    teacher: Forward | None = None,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Patch:
    """``patch`` after a few epochs through the int8 base; ``patch`` itself is left as it is.

    The statistics stay as they are. A resolution whose int8 network gains nothing on the held-out
    images, neither accuracy nor likelihood, keeps its tensors. Where all resolutions share one
    head (and ``config.share_head`` is on), or the same scales, those stay as they are. It goes
    through int8 whatever ``config.through_int8`` says.

    Args:
        images: the task's training images; export with the same, for the same ranges.
        resolutions: of the patch, in pixels; all unless given. The others are kept as they are.
        validation: held out to choose the epoch by; by default a share of ``images`` (the same
            that `train_patch` with this seed holds out).
        teacher: normalised images -> scores to distil from; by default the float patch itself,
            with ``config.distillation_weight`` (0 for none).
        workers, run_dir, resume: as `train_patch`'s.

    Raises:
        WrongBaseError: the patch was trained on another base.
        UnknownResolutionError: the patch has no such variant.
        DataError: images of other classes than the patch's.
        ConfigError: a setting that is not read, or shared scales that the patch does not have.
        ConfigError, QuantizationError, NegativeScaleError: see `open_int8` and its ``prepare``.
    """
    if images.classes != patch.classes:
        raise DataError(
            f"{images.name}: classes {list(images.classes)[:5]} are not those of patch "
            f"{patch.task!r}, {list(patch.classes)[:5]}; both need the same in the same order; "
            "give the images that it was trained on"
        )
    refuse_settings(config, "retune_patch_int8")
    config = _keep_shared(replace(config, through_int8=True), patch, base)
    parts = split_images(images, validation, config)
    sizes = sorted(set(resolutions or patch.resolutions), reverse=True)
    for px in sizes:
        patch.tensors(px)
    check_exportable(base, {patch.task: patch.classes}, sizes, config)
    device, plan = choose_device(config), Int8Plan(images, 0.0, patch.resolutions)
    models = [PatchedModel(base, device) for _ in range(2)]
    for model in models:
        model.load_patch(replace(patch, config=replace(patch.config, statistics="frozen")))
    model, before = models
    task, several = patch.task, len(patch.variants) > 1
    shared = before.tensors() if several and (config.share_head or config.share_scales) else None
    scores: dict[str, dict[str, float]] = {}
    with open_session(config.epochs * len(sizes), workers, run_dir, resume, quiet) as session:
        for px in sizes:
            model.set_active_task(task, px)
            before.set_active_task(task, px)
            taught: Forward | None = teacher or (before if config.distillation_weight else None)
            run = TransferRun(model, task, config, taught, session, plan)
            samples = make_pair(parts, px, base, device)
            run.train(px, samples, shared)
            start = _score(before, px, plan, samples[1], config)
            end = _score(model, px, plan, samples[1], config)
            if end <= start:
                _put(model.tensors(task, px), before.tensors(task, px))
            told = {"before": start, "after": max(start, end)}
            scores[str(px)] = {when: round(one.top1, 4) for when, one in told.items()}
    retuned = model.to_patch(task)
    settings = {"int8_retune": {"settings": config.to_json(), "validation_top1": scores}}
    return replace(retuned, config=patch.config, metrics=dict(patch.metrics) | settings)


def _keep_shared(config: TrainConfig, patch: Patch, base: Base) -> TrainConfig:
    """``config`` under which what all resolutions of ``patch`` share is trained at none.

    Raises:
        ConfigError: it asks for shared scales that the patch does not have.
    """
    if len(patch.variants) == 1:
        return config
    scales = _is_shared(patch, base, "gamma")
    if config.share_scales and not scales:
        raise ConfigError(
            f"training share_scales=True; the resolutions of patch {patch.task!r} have scales of "
            "their own, and a re-tune keeps those shared that are; leave it out"
        )
    head = config.share_head and _is_shared(patch, base, "head")
    return replace(config, share_head=head, share_scales=scales)


def _is_shared(patch: Patch, base: Base, part: Part) -> bool:
    """Whether the tensors of ``part`` are equal at all resolutions."""
    first, *others = patch.variants.values()
    names = [key for key in first if part_of(base, key) == part]
    return all(np.array_equal(first[key], other[key]) for other in others for key in names)


@dataclass(frozen=True, order=True)
class _Score:
    """Top-1 decides; where it is equal, as it often is on few images, the mean log likelihood."""

    top1: float
    log_likelihood: float


def _score(
    model: PatchedModel, px: int, plan: Int8Plan, held: Samples, config: TrainConfig
) -> _Score:
    """Of the active task on ``held`` if it is exported as it is."""
    forward = open_int8(model, model.active[0], px, plan, config, model)
    forward.prepare()
    scores, labels = predict(forward, held, model.device), held.labels.cpu()
    top1 = float((scores.argmax(1) == labels).double().mean())
    return _Score(top1, -float(functional.cross_entropy(scores.double(), labels)))


@torch.no_grad()
def _put(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for key, value in values.items():
        tensors[key].copy_(value)
