"""RandAugment, mixup and cutmix of one batch, by torchvision.

A module of its own, imported where it is used: importing torchvision's transforms takes longer than
all of torch.
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

GROUP_IMAGES = 4
"""Images that share one draw of RandAugment: torchvision draws once a call, and a call for each
image costs too much."""
SEED_LIMIT = 2**62


def rand_augment(pixels: Tensor, rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
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


def mix(
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
