"""Transfer learning: a task's patch over a frozen base, and the two baselines beside it.

In: a base, labelled images, settings. Out: a `Patch` with a variant per resolution, or for the
baselines the accuracy that the last layer alone, or all weights, reach on the same budget.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, split
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import (
    PatchedModel,
    merge_tensors,
    random_head,
    reestimate_statistics,
    trained_names,
)
from patchdeploy.training.config import Scope, TrainConfig
from patchdeploy.training.loop import (
    Samples,
    Trainee,
    accuracy,
    fit,
    normalize,
    predict,
    split_batches,
)
from patchdeploy.training.records import Recorder, open_recorder

SCALE_FLOOR = 1e-3
"""A trained scale stays at or above this share of the base's: its sign never changes, so that the
base's int8 rows serve every task."""


def train_patch(
    base: Base,
    images: ImageDataset,
    config: TrainConfig | None = None,
    patch_config: PatchConfig | None = None,
    *,
    task: str | None = None,
    resolutions: Sequence[int] | None = None,
    validation: ImageDataset | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Patch:
    """Train one task's patch at every resolution, the largest first.

    Each further resolution starts from the one before it. With ``config.share_head`` only the
    first trains the head.

    Args:
        task: by default the data set's name.
        resolutions: sides in pixels; by default the base's own.
        validation: held out for the best epoch; by default a share of ``images``.
        run_dir: metrics and a checkpoint per resolution; ``resume`` goes on from them.

    Raises:
        DataError: an empty set, a single class, or validation images of other classes.
        ConfigError: the patch owns nothing to train.
        TrainingError: the loss is not finite.
    """
    config, patch_config = config or TrainConfig(), patch_config or PatchConfig()
    name = task or images.name
    _check_images(images)
    train, held = _parts(images, validation, config)
    sizes = sorted(set(resolutions or [base.preprocessing.input_size]), reverse=True)
    device = choose_device(config)
    model = PatchedModel(base, device)
    metrics: dict[str, Any] = {"validation_top1": {}, "training_images": len(train)}
    before: dict[str, Tensor] | None = None
    with open_recorder(config.epochs * len(sizes), run_dir, quiet, resume) as recorder:
        for px in sizes:
            model.add_task(name, images.classes, patch_config, px, start=before)
            top1 = _train_resolution(
                model, name, px, train, held, config, before, device, run_dir, resume, recorder
            )
            metrics["validation_top1"][str(px)] = round(top1, 4)
            before = model.tensors(name, px)
    metrics |= {"settings": config.to_json()}
    return model.to_patch(name, metrics)


def _train_resolution(
    model: PatchedModel,
    name: str,
    px: int,
    train: ImageDataset,
    held: ImageDataset,
    config: TrainConfig,
    before: dict[str, Tensor] | None,
    device: torch.device,
    run_dir: Path | None,
    resume: bool,
    recorder: Recorder,
) -> float:
    base = model.base
    samples = [_samples(part, px, base) for part in (train, held)]
    tensors = model.tensors(name, px)
    patch_config = model.config(name)
    if patch_config.statistics == "reestimated":
        batches = split_batches(samples[0].inputs, config.batch_size)
        reestimate_statistics(model, (normalize(b, base.preprocessing) for b in batches))
    trained = trained_names(base, patch_config) & set(tensors)
    if before is not None and config.share_head:
        trained = frozenset(key for key in trained if not key.startswith(f"{base.head_name}."))
    for key, value in tensors.items():
        value.requires_grad_(key in trained)
    if not trained:
        if before is None:
            raise ConfigError(
                f"patch kinds {list(patch_config.kinds)} select nothing to train in base "
                f"{base.name!r}; add a kind or widen include"
            )
        return accuracy(model, samples[1], device)  # a shared head is all there is
    head_only = all(key.startswith(f"{base.head_name}.") for key in trained)
    scope: Scope = "head" if head_only else "patch"
    trainee = Trainee(
        name=f"{name}@{px}",
        forward=model,
        trained={key: tensors[key] for key in sorted(trained)},
        state=tensors,
        floors=_floors(base, tensors, trained),
        scope=scope,
        context=_context(model, name, samples) if run_dir is not None else "",
    )
    if head_only and config.augment == "none":
        trainee, samples = _cached(model, trainee, tensors, samples, device)
    return fit(
        trainee,
        samples[0],
        samples[1],
        config,
        checkpoint=run_dir / f"{px}.pt" if run_dir else None,
        resume=resume,
        on_epoch=recorder,
    )


@dataclass(frozen=True)
class BaselineResult:
    """What a baseline reached.

    Attributes:
        which: "head" (the last layer alone) or "all" (every weight of a copy of the base).
        module: the trained network, sharing nothing.
        parameters: values that were trained.
        validation_top1: in [0, 1], at the best epoch.
    """

    which: Literal["head", "all"]
    module: nn.Module
    parameters: int
    validation_top1: float


def train_baseline(
    base: Base,
    images: ImageDataset,
    which: Literal["head", "all"],
    config: TrainConfig | None = None,
    *,
    resolution: int | None = None,
    validation: ImageDataset | None = None,
    quiet: bool = False,
) -> BaselineResult:
    """Train what the paper compares a patch with, on the same images, epochs and batch.

    "all" starts from the base with a random head; its normalisation statistics stay frozen as the
    patch's do.

    Raises:
        DataError: an empty set, or a single class.
        TrainingError: the loss is not finite.
    """
    config = config or TrainConfig()
    _check_images(images)
    train, held = _parts(images, validation, config)
    px = resolution or base.preprocessing.input_size
    samples = [_samples(part, px, base) for part in (train, held)]
    device = choose_device(config)
    if which == "head":
        model = PatchedModel(base, device)
        model.add_task("baseline", images.classes, PatchConfig(("head",)), px)
        with open_recorder(config.epochs, None, quiet) as recorder:
            top1 = _train_resolution(
                model, "baseline", px, train, held, config, None, device, None, False, recorder
            )
        module = model.merge_and_unload().cpu()
        parameters = sum(value.numel() for value in model.tensors().values())
        return BaselineResult("head", module, parameters, top1)
    module = merge_tensors(base, random_head(base, len(images.classes), 0)).to(device)
    module.requires_grad_(True)
    trained = {
        key: value
        for key, value in module.named_parameters()
        if key.rpartition(".")[0] not in base.unused
    }
    trainee = Trainee(f"{images.name}@{px} all", module, trained, trained, {}, "all")
    with open_recorder(config.epochs, None, quiet) as recorder:
        top1 = fit(trainee, samples[0], samples[1], config, on_epoch=recorder)
    parameters = sum(value.numel() for value in trained.values())
    return BaselineResult("all", module.requires_grad_(False).cpu(), parameters, top1)


@torch.no_grad()
def evaluate(
    model: nn.Module, images: ImageDataset, resolution: int, base: Base
) -> tuple[float, NDArray[np.float32]]:
    """(top-1 in [0, 1], scores float32 [N, classes]) of a float model on labelled images.

    Raises:
        DataError: no image.
    """
    if not len(images):
        raise DataError(f"{images.name}: 0 images; accuracy needs at least 1; add some")
    samples = _samples(images, resolution, base)
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    if isinstance(model, PatchedModel):
        device = model.device
    was_training = model.training
    try:
        scores = predict(model.eval(), samples, device)
    finally:
        model.train(was_training)
    top1 = float((scores.argmax(1) == samples.labels).double().mean())
    return top1, scores.numpy()


def choose_device(config: TrainConfig) -> torch.device:
    """The GPU where there is one and the settings allow it."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device cuda, but torch sees no GPU here; use device auto or cpu")
    return torch.device(config.device)


def _check_images(images: ImageDataset) -> None:
    present = len(set(images.labels.tolist()))
    if present < 2:
        raise DataError(
            f"{images.name}: {len(images)} images of {present} classes; training needs images of "
            "at least 2 classes; add some"
        )


def _parts(
    images: ImageDataset, validation: ImageDataset | None, config: TrainConfig
) -> tuple[ImageDataset, ImageDataset]:
    """What is trained on, and what chooses the epoch; they share no image."""
    if validation is not None:
        if validation.classes != images.classes:
            raise DataError(
                f"{images.name}: validation classes {list(validation.classes)[:5]} are not the "
                f"training classes {list(images.classes)[:5]}; both need the same in the same "
                "order; correct the folders"
            )
        return images, validation
    share = config.validation_fraction
    return split(images, (1.0 - share, share), seed=config.seed)


def _samples(images: ImageDataset, px: int, base: Base) -> Samples:
    pixels = images.at(px, base.preprocessing)
    return Samples.from_arrays(pixels, images.labels, base.preprocessing)


def _floors(base: Base, tensors: dict[str, Tensor], trained: frozenset[str]) -> dict[str, Tensor]:
    """Bounds of the trained scales, with their sign: gamma of a normalisation (negative only where
    no convolution comes before it), and explicit scales.
    """
    state = base.module.state_dict()
    floors = {}
    for key in sorted(trained):
        stem, _, name = key.rpartition(".")
        if name == "patch_scale":
            floors[key] = torch.full_like(tensors[key], SCALE_FLOOR).detach()
        elif name == "weight" and f"{stem}.running_mean" in state:
            floors[key] = SCALE_FLOOR * state[key].to(tensors[key].device)
    return floors


def _context(model: PatchedModel, task: str, samples: list[Samples]) -> str:
    """Digest of what a checkpoint belongs to: base, patch settings, images and labels, and the
    resolutions before it, whose tensors this one begins with.
    """
    before = [px for name, px in model.tasks if name == task]
    settings = [model.config(task).to_json(), before, list(model.classes(task))]
    digest = hashlib.sha256(model.base.sha256.encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for part in samples:
        digest.update(part.inputs.numpy().data)
        digest.update(part.labels.numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _cached(
    model: PatchedModel,
    trainee: Trainee,
    tensors: dict[str, Tensor],
    samples: list[Samples],
    device: torch.device,
) -> tuple[Trainee, list[Samples]]:
    """Only the last layer learns: compute what it reads once, and train on that."""
    name = model.base.head_name
    head = model.structure.get_submodule(name)
    if not isinstance(head, nn.Linear):
        return trainee, samples
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    cached = []
    try:
        for part in samples:
            features.clear()
            predict(trainee.forward, part, device)
            cached.append(Samples(torch.cat(features).cpu(), part.labels, None))
    finally:
        handle.remove()
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    forward = lambda inputs: nn.functional.linear(inputs, weight, bias)  # noqa: E731
    return replace(trainee, forward=forward, uses_images=False), cached
