"""The one loop under every method: steps, validation, best epoch, checkpoint, resume.

In: a forward function, the tensors that it trains, images and labels. Out: those tensors at their
best epoch. Each epoch's order and augmentation come from the seed and the epoch's number alone,
and a checkpoint holds the rest, so a run that was killed ends with the same bits as one that was
not.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from patchdeploy.data import Preprocessing
from patchdeploy.errors import CheckpointError, DataError, TrainingError
from patchdeploy.storage import write_atomic
from patchdeploy.training.config import Scope, TrainConfig

Forward = Callable[[Tensor], Tensor]
EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Samples:
    """Inputs and labels, resident in memory.

    Attributes:
        inputs: uint8 [N, px, px, 3] RGB, or float32 features [N, F].
        labels: int64 [N].
        preprocessing: for images; None for features.
    """

    inputs: Tensor
    labels: Tensor
    preprocessing: Preprocessing | None

    @classmethod
    def from_arrays(
        cls, pixels: NDArray[np.uint8], labels: NDArray[np.int64], preprocessing: Preprocessing
    ) -> Samples:
        """From a data set's arrays (copied: a tensor needs writable memory)."""
        return cls(torch.tensor(pixels), torch.tensor(labels), preprocessing)

    def batch(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised inputs (channels last) and labels of ``index``, on ``device``."""
        inputs, labels = self.inputs[index].to(device), self.labels[index].to(device)
        return normalize(inputs, self.preprocessing), labels


def normalize(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """uint8 [N, H, W, 3] RGB -> float32 [N, 3, H, W], channels last; features pass through."""
    if preprocessing is None:
        return inputs
    if preprocessing.channel_order == "BGR":
        inputs = inputs.flip(-1)
    mean = torch.tensor(preprocessing.mean, device=inputs.device)
    std = torch.tensor(preprocessing.std, device=inputs.device)
    return ((inputs.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class EpochRecord:
    """One line of ``metrics.jsonl``."""

    run: str
    epoch: int
    loss: float
    validation_top1: float
    learning_rate: float
    seconds: float
    images_per_second: float


@dataclass(frozen=True)
class Trainee:
    """What a run trains.

    Attributes:
        name: of the run: task and resolution, the checkpoint's name.
        forward: inputs -> scores, reading ``trained`` and ``state``.
        trained: tensors that gradients reach.
        state: every tensor that training may change (statistics too); what is kept.
        floors: bounds that hold after each step, so that no scale changes its sign: a value stays
            at or above a bound that is positive or 0, at or below one that is negative.
        scope: which learning rate suits it.
        uses_images: inputs are images, so augmentation applies.
        context: what else a checkpoint must agree on: base, patch settings, images.
    """

    name: str
    forward: Forward
    trained: Mapping[str, Tensor]
    state: Mapping[str, Tensor]
    floors: Mapping[str, Tensor]
    scope: Scope
    uses_images: bool = True
    context: str = ""


def fit(
    trainee: Trainee,
    train: Samples,
    validation: Samples,
    config: TrainConfig,
    *,
    checkpoint: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> float:
    """Train in place; ``trainee.state`` ends at the best epoch. Returns its validation top-1.

    Raises:
        DataError: no image to train on, or none to validate on.
        TrainingError: a loss that is not finite; the last checkpoint stays.
        CheckpointError: ``resume`` finds a checkpoint of other settings.
        StorageError: the checkpoint cannot be written.
    """
    device = next(iter(trainee.trained.values())).device
    optimizer = make_optimizer(list(trainee.trained.values()), config, trainee.scope)
    best, best_top1, first = snapshot(trainee.state), -1.0, 0
    if checkpoint is not None and resume and checkpoint.exists():
        first, best, best_top1 = restore(checkpoint, trainee, optimizer, config)
    steps = math.ceil(len(train.labels) / config.batch_size)
    _check_enough(trainee, train, validation)
    for epoch in range(first, config.epochs):
        start = time.perf_counter()
        loss = run_epoch(trainee, train, optimizer, config, epoch, steps, device)
        seconds = time.perf_counter() - start
        top1 = accuracy(trainee.forward, validation, device)
        if top1 > best_top1 or not config.early_best:
            best, best_top1 = snapshot(trainee.state), top1
        rate = optimizer.param_groups[0]["lr"]
        speed = len(train.labels) / seconds
        on_epoch(EpochRecord(trainee.name, epoch + 1, loss, top1, rate, seconds, speed))
        if checkpoint is not None:
            save(checkpoint, trainee, optimizer, config, epoch + 1, best, best_top1)
    put_back(trainee.state, best)
    return best_top1


def _check_enough(trainee: Trainee, train: Samples, validation: Samples) -> None:
    for part, samples in (("train on", train), ("validate on", validation)):
        if len(samples.labels) == 0:
            raise DataError(
                f"{trainee.name}: no image to {part}; at least 1 is needed to choose the best "
                "epoch by; add images (2 of a class are split between both)"
            )


def run_epoch(
    trainee: Trainee,
    train: Samples,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    steps: int,
    device: torch.device,
) -> float:
    """One pass over the images; returns the mean loss."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    order = torch.randperm(len(train.labels), generator=generator)
    total = 0.0
    for step, index in enumerate(split_batches(order, config.batch_size)):
        progress = (epoch * steps + step) / (config.epochs * steps)
        factor = schedule(config, progress)
        for group in optimizer.param_groups:
            group["lr"] = config.rate(trainee.scope) * factor
        if trainee.uses_images and config.augment != "none":
            picked = augment(train.inputs[index], config, generator)
            inputs = normalize(picked.to(device), train.preprocessing)
            labels = train.labels[index].to(device)
        else:
            inputs, labels = train.batch(index, device)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda"):
            scores = trainee.forward(inputs)
            loss = functional.cross_entropy(scores, labels, label_smoothing=config.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{trainee.name}: the loss is {value} at epoch {epoch + 1}, step {step + 1}, with "
                f"learning rate {config.rate(trainee.scope) * factor:.3g}; it must stay finite; "
                "try a tenth of the learning rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        keep_signs(trainee.state, trainee.floors)
        total += value * len(index)
    return total / len(train.labels)


def split_batches(order: Tensor, batch_size: int) -> list[Tensor]:
    """``order`` in batches; a last one of a single image joins the one before it, since one image
    has no variance to normalise by.
    """
    batches = list(torch.split(order, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@torch.no_grad()
def keep_signs(state: Mapping[str, Tensor], floors: Mapping[str, Tensor]) -> None:
    """Move what passed its floor back to it, in place; see `Trainee.floors`."""
    for key, floor in floors.items():
        value = state[key]
        value.copy_(torch.where(floor < 0, value.minimum(floor), value.maximum(floor)))


def make_optimizer(
    parameters: list[Tensor], config: TrainConfig, scope: Scope
) -> torch.optim.Optimizer:
    """Adam, or the paper's RMSProp (fused and for all tensors at once: a patch has many small)."""
    rate = config.rate(scope)
    if config.recipe == "paper":
        return torch.optim.RMSprop(parameters, lr=rate, alpha=0.9, eps=1.0, momentum=0.9)
    return torch.optim.Adam(parameters, lr=rate, fused=True)


def schedule(config: TrainConfig, progress: float) -> float:
    """Factor on the learning rate, ``progress`` in [0, 1) through the run."""
    if config.recipe == "paper":
        return float(0.98 ** (progress * config.epochs / 2.5))
    if progress < 0.1:
        return 0.1 + 0.9 * progress / 0.1
    return 0.5 * (1.0 + math.cos(math.pi * (progress - 0.1) / 0.9))


def augment(images: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Shift uint8 [N, H, W, 3] by up to an eighth (edges repeat); mirror half of them."""
    count, height, width, _ = images.shape
    reach_y, reach_x = height // 8, width // 8

    def moved(length: int, reach: int) -> Tensor:
        shift = torch.randint(-reach, reach + 1, (count, 1), generator=generator)
        return (torch.arange(length)[None, :] + shift).clamp(0, length - 1)

    rows, columns = moved(height, reach_y), moved(width, reach_x)
    if config.augment == "shift_flip":
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(count)[:, None, None]
    return images[index, rows[:, :, None], columns[:, None, :]]


@torch.no_grad()
def predict(forward: Forward, samples: Samples, device: torch.device) -> Tensor:
    """Scores float32 [N, classes] on the CPU."""
    parts = []
    for index in torch.split(torch.arange(len(samples.labels)), EVALUATION_BATCH):
        inputs, _ = samples.batch(index, device)
        parts.append(forward(inputs).float().cpu())
    return torch.cat(parts)


def accuracy(forward: Forward, samples: Samples, device: torch.device) -> float:
    """Top-1 in [0, 1]."""
    answers = predict(forward, samples, device).argmax(1)
    return float((answers == samples.labels).double().mean())


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies."""
    return {key: value.detach().clone() for key, value in tensors.items()}


@torch.no_grad()
def put_back(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write ``values`` into ``tensors`` in place."""
    for key, value in values.items():
        tensors[key].copy_(value)


def fingerprint(trainee: Trainee, config: TrainConfig) -> str:
    """What must be equal for a checkpoint to fit: settings, context, and names and shapes of the
    tensors."""
    shapes = {key: list(value.shape) for key, value in trainee.state.items()}
    settings = json.dumps(
        [config.to_json(), trainee.name, trainee.context, sorted(trainee.trained), shapes],
        sort_keys=True,
    )
    return hashlib.sha256(settings.encode()).hexdigest()


def save(
    path: Path,
    trainee: Trainee,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    best: Mapping[str, Tensor],
    best_top1: float,
) -> None:
    """Write a checkpoint after ``epoch`` epochs; the older one stays until it is whole."""
    buffer = io.BytesIO()
    document: dict[str, Any] = {
        "fingerprint": fingerprint(trainee, config),
        "epoch": epoch,
        "state": snapshot(trainee.state),
        "optimizer": optimizer.state_dict(),
        "best": dict(best),
        "best_top1": best_top1,
    }
    torch.save(document, buffer)
    write_atomic(path, buffer.getvalue())


def restore(
    path: Path, trainee: Trainee, optimizer: torch.optim.Optimizer, config: TrainConfig
) -> tuple[int, dict[str, Tensor], float]:
    """Load a checkpoint: (epochs done, best tensors, their validation top-1).

    Raises:
        CheckpointError: damaged, or of other settings.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        same = document["fingerprint"] == fingerprint(trainee, config)
    except Exception as error:  # torch.load has errors of its own; all mean the same here
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); it must be the whole file "
            "that training wrote; remove it to start again"
        ) from error
    if not same:
        raise CheckpointError(
            f"checkpoint {path} was made with other settings, images or task; resume needs the "
            "same; use them, or another run folder"
        )
    put_back(trainee.state, document["state"])
    optimizer.load_state_dict(document["optimizer"])
    return int(document["epoch"]), dict(document["best"]), float(document["best_top1"])
