"""From the ranges of real values to scales and zero points that every runtime takes.

In: (low, high) of every value, the steps of every convolution. Out: `ActivationParams` by
activation site. Every range holds 0 (zero padding and ReLU need it exactly); operators whose
output is bounded get their bounds; scales grow where a runtime could not represent a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import QuantizationError
from patchdeploy.graph import (
    Add,
    Conv2d,
    GlobalAvgPool,
    Graph,
    Mul,
    Operator,
    Pointwise,
    tied_values,
)
from patchdeploy.quantize.model import SIGMOID_SCALE, ActivationParams

Range = tuple[float, float]

SCALE_FLOOR = 2.0**-20
"""Smallest scale of an activation: what a value that calibration saw constant at 0 gets."""
MARGIN = 1.0 - 2.0**-10
"""Ratios are kept this far inside a runtime's limits, so that rounding cannot reach them."""
MULTIPLIER_MAX = 256.0 * MARGIN
"""XNNPACK refuses requantisation multipliers of 2^8 and above (operators/convolution-nhwc.c)."""
ADD_RATIO_MIN = 2.0**-10 / MARGIN
"""XNNPACK's sums want input scale / output scale in [2^-10, 2^8) (operators/binary-elementwise)."""
MUL_RATIO_MIN = 2.0**-16 / MARGIN
"""XNNPACK's products want a_scale * b_scale / y_scale in [2^-16, 2^8)."""
MEAN_RATIO_MIN = 2.0**-8 / MARGIN
"""XNNPACK's global average pooling wants x_scale / y_scale in [2^-8, 2^8)."""


@dataclass(frozen=True)
class Calibration(Mapping[str, Range]):
    """What calibration images showed: a mapping from value to (low, high), and means.

    Attributes:
        ranges: (low, high) of every value, after its activation.
        means: float64 [C] per value: the mean of each channel over images and positions.
    """

    ranges: Mapping[str, Range]
    means: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __getitem__(self, value: str) -> Range:
        return self.ranges[value]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)


@dataclass(frozen=True)
class _Site:
    """Range of one activation site; ``params`` where the graph fixes scale and zero point."""

    low: float
    high: float
    params: ActivationParams | None = None


def choose_activations(
    graph: Graph,
    input_zero_point: int,
    ranges: Mapping[str, Range],
    steps: Mapping[str, float],
) -> dict[str, ActivationParams]:
    """Scale and zero point of every activation site.

    Args:
        steps: by convolution, the largest weight_scale of its rows (bounds the multiplier).

    Raises:
        QuantizationError: a range is missing or not finite, or no scale satisfies a runtime.
    """
    ties = tied_values(graph)
    sites = _site_ranges(graph, ties, input_zero_point, ranges)
    scales = {name: _natural_scale(site) for name, site in sites.items()}
    fixed = {name for name, site in sites.items() if site.params is not None}
    _grow_scales(graph, ties, scales, fixed, steps)
    return {
        name: site.params or params_for_range(site.low, site.high, scales[name])
        for name, site in sites.items()
    }


def params_for_range(low: float, high: float, scale: float = 0.0) -> ActivationParams:
    """int8 parameters that cover [low, high], which holds 0; ``scale`` if that is larger.

    scale = (high - low) / 255, zero_point = round(-128 - low / scale): -128 exactly for
    low = 0 and 127 for high = 0, so 0 is a code in every case.
    """
    chosen = np.float32(max((high - low) / 255.0, scale, SCALE_FLOOR))
    if low == 0.0:
        return ActivationParams(chosen, -128)
    if high == 0.0:
        return ActivationParams(chosen, 127)
    zero_point = int(np.clip(np.rint(-128.0 - low / float(chosen)), -128, 127))
    return ActivationParams(chosen, zero_point)


def value_range(operator: Operator | None, value: str, seen: Range) -> Range:
    """``seen`` widened to hold 0 and cut to what the operator that writes the value can give.

    Raises:
        QuantizationError: ``seen`` is not finite or its low end lies above its high end.
    """
    low, high = float(seen[0]), float(seen[1])
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise QuantizationError(
            f"value {value!r} has calibration range [{low}, {high}]; both ends must be finite and "
            "in order; check the calibration images and the patch for NaN or infinity"
        )
    low, high = min(low, 0.0), max(high, 0.0)
    if isinstance(operator, Conv2d | Add):
        if operator.activation == "hard_sigmoid":
            return 0.0, 1.0
        if operator.activation in ("relu", "relu6"):
            low = 0.0
        if operator.activation == "relu6":
            high = min(high, 6.0)
    return low, high


def _site_ranges(
    graph: Graph, ties: Mapping[str, str], input_zero_point: int, ranges: Mapping[str, Range]
) -> dict[str, _Site]:
    """The union of the ranges of each site's values, or what the graph fixes."""
    producers = {operator.output: operator for operator in graph.operators}
    unions: dict[str, Range] = {}
    for value, site in ties.items():
        producer = producers.get(value)
        bounded = isinstance(producer, Conv2d | Add) and producer.activation == "hard_sigmoid"
        if value in ranges or bounded:
            low, high = value_range(producer, value, ranges.get(value, (0.0, 1.0)))
            before = unions.get(site, (0.0, 0.0))
            unions[site] = min(low, before[0]), max(high, before[1])
    fixed: dict[str, ActivationParams] = {}
    for operator in graph.operators:
        if isinstance(operator, Pointwise) and operator.kind == "sigmoid":
            fixed[ties[operator.output]] = ActivationParams(SIGMOID_SCALE, -128)
        elif isinstance(operator, Conv2d) and operator.activation == "hard_sigmoid":
            site = ties[operator.output]
            if unions[site] == (0.0, 1.0):
                fixed.setdefault(site, ActivationParams(np.float32(1.0 / 255.0), -128))
    fixed[ties[graph.input]] = ActivationParams(np.float32(1.0), input_zero_point)
    missing = [site for site in ties.values() if site not in fixed and site not in unions]
    if missing:
        raise QuantizationError(
            f"value {missing[0]!r} has no calibration range; every value of the graph needs one; "
            "calibrate with the same folded network"
        )
    return {
        site: _Site(*unions.get(site, (0.0, 1.0)), fixed.get(site))
        for site in dict.fromkeys(ties.values())
    }


def _natural_scale(site: _Site) -> float:
    if site.params is not None:
        return float(site.params.scale)
    return max((site.high - site.low) / 255.0, SCALE_FLOOR)


def _grow_scales(
    graph: Graph,
    ties: Mapping[str, str],
    scales: dict[str, float],
    fixed: set[str],
    steps: Mapping[str, float],
) -> None:
    """Raise scales in place, until every operator's ratios lie within XNNPACK's limits.

    A larger scale only makes codes coarser. Fixed sites stay; where a sum, product or mean
    cannot be helped for that reason, LiteRT runs it outside XNNPACK, so only a convolution
    whose multiplier stays too large is an error.
    """
    for _ in range(len(scales) + 1):
        before = dict(scales)
        for operator in graph.operators:
            for site, least in _least_scales(operator, ties, scales, steps):
                if site not in fixed:
                    scales[site] = max(scales[site], least)
        if scales == before:
            break
    for conv in graph.convolutions():
        x, y = scales[ties[conv.input]], scales[ties[conv.output]]
        if not x * steps[conv.name] / y < 256.0:
            raise QuantizationError(
                f"convolution {conv.name!r} needs the requantisation multiplier "
                f"{x * steps[conv.name] / y:.6g} (input scale {x:.6g}, largest weight scale "
                f"{steps[conv.name]:.6g}, output scale {y:.6g}); XNNPACK takes less than 256; "
                "check the patch's scales, or calibrate on images that reach this layer"
            )


def _least_scales(
    operator: Operator,
    ties: Mapping[str, str],
    scales: Mapping[str, float],
    steps: Mapping[str, float],
) -> Iterator[tuple[str, float]]:
    """(site, least scale) that ``operator`` asks for, given the other scales."""
    y, inputs = ties[operator.output], [ties[value] for value in operator.inputs]
    if isinstance(operator, Conv2d):
        yield y, scales[inputs[0]] * steps[operator.name] / MULTIPLIER_MAX
    elif isinstance(operator, Add):
        yield y, max(scales[site] for site in inputs) / MULTIPLIER_MAX
        for site in inputs:
            yield site, scales[y] * ADD_RATIO_MIN
    elif isinstance(operator, Mul):
        yield y, scales[inputs[0]] * scales[inputs[1]] / MULTIPLIER_MAX
        yield inputs[0], scales[y] * MUL_RATIO_MIN / scales[inputs[1]]
    elif isinstance(operator, GlobalAvgPool):
        yield y, scales[inputs[0]] / MULTIPLIER_MAX
        yield inputs[0], scales[y] * MEAN_RATIO_MIN
