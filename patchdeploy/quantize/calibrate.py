"""Activation ranges of a folded network, from one forward pass per calibration image.

In: a `FoldedNetwork` and uint8 images. Out: a `Calibration`: (low, high) of every value and the
mean of each channel. Every method takes the same single pass: minima, maxima and means are
exact; percentile and mean squared error read a histogram of a regular sample of each value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError, EmptyCalibrationError, QuantizationError
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import FoldedNetwork
from patchdeploy.graph import Add, Conv2d, Graph, Operator, Pointwise
from patchdeploy.quantize.histogram import (
    Histogram,
    count_values,
    merge,
    mse_range,
    percentile_range,
)
from patchdeploy.quantize.ranges import Calibration, Range

RangeMethod = Literal["minmax", "percentile", "mse"]
SAMPLE = 1 << 16
"""About so many elements of a value enter its histogram per batch."""
BATCH_PIXELS = 1 << 20
"""Default batch: about this many input pixels."""


@dataclass(frozen=True)
class CalibrationConfig:
    """How activation ranges are found.

    Attributes:
        images: at most so many of the task's training images, one forward pass each.
        method: "minmax", "percentile" or "mse".
        correct_bias: shift each bias by the mean error that weight rounding makes.
    """

    images: int = 256
    method: RangeMethod = "minmax"
    correct_bias: bool = False


@dataclass
class _Statistics:
    """What is kept of one value."""

    low: float
    high: float
    total: NDArray[np.float64]
    count: int
    histogram: Histogram | None


def calibrate(
    network: FoldedNetwork,
    images: NDArray[np.uint8],
    method: RangeMethod = "minmax",
    percentile: float = 99.999,
    batch: int | None = None,
) -> Calibration:
    """Find the range of every value of ``network`` on ``images`` (uint8 [N, H, W, 3], RGB).

    On the embedded base ``minmax``, ``mse`` and the percentile 99.999 give the same error of the
    logits within noise; the percentile 99.99 cuts too much (its squared error is 1.1 to 1.3 times
    that of ``minmax``).

    Args:
        method: ``minmax``: the least and the greatest value seen. ``percentile``: all but
            (100 - percentile) % at each end. ``mse``: the range of least squared error in int8.
        percentile: in (50, 100].
        batch: images per forward pass; about 2^20 pixels unless given.

    Raises:
        EmptyCalibrationError: ``images`` is empty.
        ConfigError: unknown method or percentile out of range.
        QuantizationError: a value that is NaN or infinite.
    """
    _check(method, percentile, len(images))
    runner = FloatRunner(network)
    kept: dict[str, _Statistics] = {}
    graph = network.graph
    producers: dict[str, Operator | None] = {op.output: op for op in graph.operators}

    def observe(value: str, tensor: Any) -> None:
        array = tensor.permute(0, 2, 3, 1).numpy()
        sampled = method != "minmax" and needs_range(graph, producers.get(value), value)
        _update(kept, value, array, sampled)

    size = batch or max(1, BATCH_PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), size):
        runner(images[start : start + size], observe)
    ranges = {value: _range(one, method, percentile) for value, one in kept.items()}
    means = {value: one.total / one.count for value, one in kept.items()}
    return Calibration(ranges, means)


def spread(dataset: ImageDataset, count: int) -> ImageDataset:
    """At most ``count`` images, evenly spaced: a set sorted by class keeps all its classes."""
    total = len(dataset)
    if total <= count:
        return dataset
    return dataset.subset([k * total // count for k in range(count)])


def needs_range(graph: Graph, producer: Operator | None, value: str) -> bool:
    """Whether calibration decides the range: not for pixels, sigmoid or hard-sigmoid."""
    if value == graph.input:
        return False
    if isinstance(producer, Pointwise):
        return producer.kind != "sigmoid"
    return not (isinstance(producer, Conv2d | Add) and producer.activation == "hard_sigmoid")


def _check(method: str, percentile: float, count: int) -> None:
    if method not in get_args(RangeMethod):
        raise ConfigError(
            f"calibration method {method!r}; the methods are {', '.join(get_args(RangeMethod))}; "
            "choose one of them"
        )
    if not 50.0 < percentile <= 100.0:
        raise ConfigError(
            f"percentile {percentile}; it must lie in (50, 100], 99.999 is usual; choose one there"
        )
    if count == 0:
        raise EmptyCalibrationError(
            "0 calibration images; activation ranges need at least 1 (64 to 512 are usual); "
            "pass images of the task's training set"
        )


def _update(
    kept: dict[str, _Statistics], value: str, array: NDArray[np.float32], sampled: bool
) -> None:
    """Add one batch, float32 [n, H, W, C], to the statistics of ``value``."""
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise QuantizationError(
            f"value {value!r} is NaN or infinite on a calibration image; ranges need finite "
            "values; check the patch's parameters and the checkpoint"
        )
    total = array.sum(axis=(0, 1, 2), dtype=np.float64)
    count = array.size // array.shape[3]
    new = count_values(_sample(array)) if sampled else None
    old = kept.get(value)
    if old is not None:
        low, high = min(low, old.low), max(high, old.high)
        total, count = total + old.total, count + old.count
        if new is not None and old.histogram is not None:
            new = merge(old.histogram, new)
    kept[value] = _Statistics(low, high, total, count, new)


def _sample(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every k-th element, k coprime to the channels, so that all of them are met."""
    stride = max(1, array.size // SAMPLE)
    while math.gcd(stride, array.shape[3]) > 1:
        stride += 1
    return array.reshape(-1)[::stride]


def _range(statistics: _Statistics, method: RangeMethod, percentile: float) -> Range:
    low, high = statistics.low, statistics.high
    if method == "minmax" or statistics.histogram is None or low == high:
        return low, high
    if method == "percentile":
        cut = percentile_range(statistics.histogram, percentile)
    else:
        cut = mse_range(statistics.histogram)
    # Bins reach past the extremes, by less than one width: never claim what was not seen.
    return max(low, cut[0]), min(high, cut[1])
