"""A histogram that grows with its data, and the ranges read off it.

In: batches of real numbers. Out: counts on a grid of bins [k w, (k + 1) w) whose width w is a
power of two. When data fall outside the bins that fit, neighbouring bins are merged and w
doubles: no count is ever split, so the result does not depend on the order of the batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.quantize.ranges import Range

BINS = 2048
"""At most so many bins; an int8 step is then about 8 bins wide."""
CANDIDATES = 96
"""Ends that `mse_range` tries on each side."""


@dataclass(frozen=True)
class Histogram:
    """Counts of real numbers.

    Attributes:
        exponent: bin width is 2^exponent.
        first: index of the first bin; bin k covers [k, k + 1) * 2^exponent.
        counts: int64 [n], n <= BINS.
    """

    exponent: int
    first: int
    counts: NDArray[np.int64]

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    def edges(self) -> NDArray[np.float64]:
        """Bin edges, float64 [n + 1]."""
        return (
            np.arange(self.first, self.first + len(self.counts) + 1, dtype=np.float64) * self.width
        )


def count_values(values: NDArray[np.floating[Any]], exponent: int | None = None) -> Histogram:
    """The histogram of finite, non-empty ``values``, with bins of 2^exponent or wider."""
    low, high = float(np.min(values)), float(np.max(values))
    least = _least_exponent(low, high)
    exponent = least if exponent is None else max(exponent, least)
    first = math.floor(math.ldexp(low, -exponent))
    # float64: scaling a float32 by a power of two is then exact, subnormal numbers included.
    scaled = np.ldexp(np.asarray(values, np.float64).reshape(-1), -exponent)
    index = np.floor(scaled).astype(np.int64) - first
    return Histogram(exponent, first, np.bincount(index))


def merge(a: Histogram, b: Histogram) -> Histogram:
    """Counts of both, on bins as wide as needed."""
    exponent = max(a.exponent, b.exponent)
    while True:
        a, b = _widen(a, exponent), _widen(b, exponent)
        first = min(a.first, b.first)
        count = max(a.first + len(a.counts), b.first + len(b.counts)) - first
        if count <= BINS:
            break
        exponent += 1
    counts = np.zeros(count, np.int64)
    for part in (a, b):
        start = part.first - first
        counts[start : start + len(part.counts)] += part.counts
    return Histogram(exponent, first, counts)


def percentile_range(histogram: Histogram, percentile: float) -> Range:
    """Cut (100 - percentile) % of the values at each end; linear within a bin."""
    total = np.concatenate([[0.0], np.cumsum(histogram.counts, dtype=np.float64)])
    share = (1.0 - percentile / 100.0) * total[-1]
    edges = histogram.edges()
    low, high = np.interp([share, total[-1] - share], total, edges)
    return float(low), float(high)


def mse_range(histogram: Histogram) -> Range:
    """The range of least mean squared error in int8, over `CANDIDATES` ends on each side.

    Inside [l, h] rounding costs (h - l)^2 / (12 * 255^2) a value, outside a value costs its
    squared distance to the range. The bin at 0 counts as free: 0 is always a code, and ReLU
    puts most values exactly there.
    """
    edges = histogram.edges()
    centres = (edges[:-1] + edges[1:]) / 2
    counts = histogram.counts.astype(np.float64)
    counts[(edges[:-1] <= 0) & (edges[1:] > 0)] = 0
    highs = np.linspace(0.0, max(float(edges[-1]), 0.0), CANDIDATES + 1)[1:]
    lows = np.linspace(0.0, min(float(edges[0]), 0.0), CANDIDATES + 1)[1:]
    high_cost, high_count = _tail(centres, counts, highs)
    low_cost, low_count = _tail(-centres, counts, -lows)
    inside = counts.sum() - high_count[:, None] - low_count[None, :]
    step = (highs[:, None] - lows[None, :]) / 255.0
    cost = high_cost[:, None] + low_cost[None, :] + inside * step**2 / 12.0
    best_high, best_low = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return float(lows[best_low]), float(highs[best_high])


def _tail(
    centres: NDArray[np.float64], counts: NDArray[np.float64], ends: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(sum of squared distances, count) of what lies above each of ``ends``."""
    over = np.maximum(centres[None, :] - ends[:, None], 0.0)
    return (over**2) @ counts, (over > 0).astype(np.float64) @ counts


def _least_exponent(low: float, high: float) -> int:
    """The smallest exponent whose bins number at most BINS over [low, high]."""
    span = max(high - low, abs(low), abs(high)) * 2.0**-20
    exponent = math.frexp(max((high - low) / BINS, span, 2.0**-60))[1]
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent


def _widen(histogram: Histogram, exponent: int) -> Histogram:
    """The same counts in bins of 2^exponent >= the present width."""
    shift = exponent - histogram.exponent
    if shift == 0:
        return histogram
    index = (histogram.first + np.arange(len(histogram.counts))) >> shift
    counts = np.bincount(index - index[0], weights=histogram.counts).astype(np.int64)
    return Histogram(exponent, int(index[0]), counts)
