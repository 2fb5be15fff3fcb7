"""Augmentation of one batch: moves, RandAugment, mixup and cutmix, a pure function of a seed.

In: uint8 images and labels on any device, settings, a seed. Out: new images and targets. Nothing
is drawn from a global generator and none is left changed, so a run that goes on from a checkpoint
sees the same pixels. Moves are drawn as fractions of the side: the same seed at another resolution
gives the same move. RandAugment, MixUp and CutMix are torchvision's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from patchdeploy.training.config import TrainConfig

REACH = 0.125
"""The largest shift, as a share of the side."""
GROUP_IMAGES = 4
"""Images that share one draw of RandAugment: torchvision draws once a call, and a call for each
image costs too much."""
SEED_LIMIT = 2**62


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
        pixels = _rand_augment(pixels, rows, len(images), generator)
    targets = labels[rows.to(labels.device)]
    if mixes:
        pixels, targets = _mix(pixels, targets, config, classes, generator)
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


def _rand_augment(pixels: Tensor, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """torchvision's RandAugment (two operations of magnitude 9), one draw for each group of
    GROUP_IMAGES neighbours in the whole batch of ``count``.
    """
    groups = math.ceil(count / GROUP_IMAGES)
    seeds = torch.randint(SEED_LIMIT, (groups,), generator=generator).tolist()
    transform = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
    done = torch.empty_like(pixels)
    owner = rows // GROUP_IMAGES
    for group in sorted(set(owner.tolist())):
        mine = (owner == group).nonzero().flatten().to(pixels.device)
        with _seeded(seeds[group]):
            changed = transform(pixels[mine].permute(0, 3, 1, 2).contiguous())
        done[mine] = changed.permute(0, 2, 3, 1)
    return done


def _mix(
    pixels: Tensor, labels: Tensor, config: TrainConfig, classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image, and its target, with the one before it in the batch.

    One weight a batch, from Beta(alpha, alpha); with both mixup and cutmix, either with equal
    chance. Images stay float32 in 0..255: rounding them again would serve nothing.
    """
    kinds: list[Any] = []
    if config.mixup > 0:
        kinds.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix > 0:
        kinds.append(_RelativeCutMix(alpha=config.cutmix, num_classes=classes))
    which = int(torch.randint(len(kinds), (), generator=generator))
    with _seeded(int(torch.randint(SEED_LIMIT, (), generator=generator))):
        planes, targets = kinds[which](pixels.float().permute(0, 3, 1, 2), labels)
    return planes.permute(0, 2, 3, 1), targets


class _RelativeCutMix(v2.CutMix):  # type: ignore[misc]  # torchvision has no types
    """torchvision's CutMix with the box drawn in fractions of the sides, not in pixels, so that
    one seed cuts the same region at every resolution."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        kept = float(self._dist.sample(()))
        height, width = flat_inputs[0].shape[-2:]
        middle = torch.rand(2, dtype=torch.float64).tolist()
        reach = 0.5 * math.sqrt(1.0 - kept)
        edges = []
        for centre, length in zip(middle, (width, height), strict=True):
            low, high = centre - reach, centre + reach
            edges.append([round(min(max(edge, 0.0), 1.0) * length) for edge in (low, high)])
        (x1, x2), (y1, y2) = edges
        share = (x2 - x1) * (y2 - y1) / (width * height)
        return {"box": (x1, y1, x2, y2), "lam_adjusted": 1.0 - share}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch's global CPU generator at ``seed`` inside, and as it was outside: torchvision's
    transforms draw from it alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
