"""A tiny network and real images for runs that share weights, and how to compare what they make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged
from patchdeploy.patch import Patch
from patchdeploy.training.curves import METRICS_FILE

PX = 16


def small_base(seed: int = 0) -> Base:
    """Normalised, depthwise and pointwise convolutions: 805 parameters, stride 2."""
    torch.manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 32, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    return Base.from_module(module, Preprocessing((0.5,) * 3, (0.25,) * 3, PX), "small")


def digits(count: int = 96, every: int = 12) -> tuple[ImageDataset, ImageDataset]:
    """Handwritten digits: to train on, and to validate on."""
    train, test = load_packaged("optical_digits")
    return train.subset(range(0, every * count, every)), test.subset(range(0, 480, 10))


def odd_or_even(count: int = 96) -> tuple[ImageDataset, ImageDataset]:
    """Other digits, of two classes."""
    train, test = load_packaged("optical_digits")
    return tuple(
        ImageDataset("parity", one.images, one.labels % 2, ("even", "odd"))
        for one in (train.subset(range(5, 5 + 12 * count, 12)), test.subset(range(1, 481, 10)))
    )  # type: ignore[return-value]


def base_arrays(base: Base) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in base.module.state_dict().items()}


def patch_arrays(patch: Patch) -> dict[str, np.ndarray]:
    return {
        f"{px}/{key}": value for px in patch.resolutions for key, value in patch.tensors(px).items()
    }


def assert_equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """The same names and bits."""
    assert set(one) == set(other)
    for key, value in one.items():
        np.testing.assert_array_equal(value, other[key], err_msg=key)


def largest_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Over all tensors of the same names."""
    assert set(one) == set(other)
    return max(float(np.abs(one[key] - other[key]).max()) for key in one)


def metric_lines(folder: Path) -> list[tuple[str, int, float, float]]:
    """What a run recorded, but for its seconds."""
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [(row["run"], row["epoch"], row["loss"], row["validation_top1"]) for row in rows]


class Killed(BaseException):
    """What no handler expects, as a kill."""


class DeadlyLoss:
    """Cross entropy that stops the run when it is asked for the ``at``-th time (from 1)."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise Killed
        return nn.functional.cross_entropy(scores, targets)
