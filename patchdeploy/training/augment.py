"""Augmentation of one batch: moves, RandAugment, mixup and cutmix, a pure function of a seed.

In: uint8 images and labels on any device, settings, a seed. Out: new images and targets. Nothing
is drawn from a global generator and none is left changed, so a run that goes on from a checkpoint
sees the same pixels. Moves are drawn as fractions of the side: the same seed at another resolution
gives the same move. RandAugment, MixUp and CutMix are torchvision's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchdeploy.training.config import TrainConfig

REACH = 0.125
"""The largest shift, as a share of the side."""


def augment(
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    seed: int,
    *,
    classes: int,
    part: tuple[int, int] = (0, 1),
) -> tuple[Tensor, Tensor]:
    """Augment the whole batch and return a part of it.

    Args:
        images: uint8 [N, H, W, 3], the whole batch.
        labels: int64 [N].
        config: its ``augment``, ``mixup`` and ``cutmix`` say what is done.
        seed: of every draw.
        classes: width of soft targets.
        part: (k, n) returns rows k, k + n, k + 2n, ...: the very rows of the whole result. Ranks
            that split a batch give their own k.

    Returns:
        (uint8 [M, H, W, 3], int64 [M]); with mixup or cutmix float32 in 0..255 and float32
        [M, classes].
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.arange(len(images))[part[0] :: part[1]]
    mixes = config.mixup > 0 or config.cutmix > 0
    # An image is mixed with the one before it in the batch, which may be another rank's.
    rows = torch.arange(len(images)) if mixes else chosen
    pixels = _move(images, rows, config, generator)
    if config.augment == "randaugment":
        from patchdeploy.training.augment_library import rand_augment

        pixels = rand_augment(pixels, rows, len(images), generator)
    targets = labels[rows.to(labels.device)]
    if mixes:
        from patchdeploy.training.augment_library import mix

        pixels, targets = mix(pixels, targets, config, classes, generator)
        chosen = chosen.to(pixels.device)
        pixels, targets = pixels[chosen], targets[chosen]
    return pixels, targets


def _move(images: Tensor, rows: Tensor, config: TrainConfig, generator: torch.Generator) -> Tensor:
    """Rows of ``images`` shifted by up to REACH (edges repeat), half of them mirrored.

    The draws are for the whole batch, whichever rows are asked for.
    """
    device = images.device
    if config.augment == "none":
        return images[rows.to(device)]
    count, height, width, _ = images.shape
    draws = torch.rand(count, 3, generator=generator, dtype=torch.float64)[rows]
    vertical = _moved(height, draws[:, 0])
    horizontal = _moved(width, draws[:, 1])
    if config.augment != "shift":
        mirrored = draws[:, 2:] < 0.5
        horizontal = torch.where(mirrored, horizontal.flip(1), horizontal)
    index = rows.to(device)[:, None, None]
    return images[index, vertical.to(device)[:, :, None], horizontal.to(device)[:, None, :]]


def _moved(length: int, draw: Tensor) -> Tensor:
    """Source positions int64 [N, length] for shifts of (2 * draw - 1) * REACH of ``length``."""
    shift = torch.round((2.0 * draw - 1.0) * (REACH * length)).to(torch.int64)
    return (torch.arange(length)[None, :] + shift[:, None]).clamp(0, length - 1)
