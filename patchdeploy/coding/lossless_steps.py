"""The coarsest steps that move nothing: those that a patch was trained on, found in its values.

In: a task's slot values. Out: `CodingSteps` to stay at or above. A patch that was trained with
``rounding_step`` lies on its grid already, so finer steps would only take more bytes for the same
values. The grid is found in the values and not read from settings: it holds whatever became of the
patch after training, and a patch that lies on no grid gets no bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.grid import (
    INT32_MAX,
    MAX_BIAS_STEP,
    MAX_SCALE_STEP,
    MIN_BIAS_STEP,
    UNITS,
    CodingSteps,
)
from patchdeploy.coding.table import CodingTable
from patchdeploy.quantize.rows import MULTIPLIER_FLOOR, ROUND_UP
from patchdeploy.slots import PatchValues

SCALE_TOLERANCE = 2.0**-10
"""Units of a scale's logarithm. Three float32 roundings (gamma, the slot's scale, the table's) make
3 * 2^-24 * 256 / ln 2 = 6.6e-5 units; by chance a row comes so close once in 512 times."""
BIAS_ROUNDING = 2.0**-21
"""Of the largest term of a shift: eight float32 roundings, in training, folding and the table."""
RAISED = 1.0 / (ROUND_UP * ROUND_UP)
"""Share of `quantize.rows`' bounds from which on a row counts as one whose scale was raised."""

CUT = 1.5
"""Output steps outside the output's range from which on a bias may have been cut, at 2 or more."""


@dataclass(frozen=True, eq=False)
class _ConvRows:
    """The rows of one convolution over all resolutions, float64, that are not constants.

    Attributes:
        units: of the scale's logarithm, away from the base's.
        shift: away from the base's, in units of what the layer puts out; without the rows that
            saturate, whose biases are cut (quantize.rows.quantize_rows).
        tolerance: how far a shift may be from a grid that it was put on.
    """

    units: NDArray[np.float64]
    shift: NDArray[np.float64]
    tolerance: NDArray[np.float64]


def lossless_steps(values: Mapping[int, PatchValues], table: CodingTable) -> CodingSteps:
    """For each convolution the coarsest steps that all ``values`` lie on; 0 and -126, the finest,
    where they lie on no grid or have not moved, and for the head.
    """
    found = [_steps_of(rows) for rows in _rows_by_conv(values, table)]
    return CodingSteps(tuple(t for t, _ in found), tuple(e for _, e in found))


def at_least(steps: CodingSteps, least: CodingSteps) -> CodingSteps:
    """``steps``, none of them finer than those of ``least`` (from `lossless_steps`)."""
    return CodingSteps(
        tuple(max(pair) for pair in zip(steps.scale, least.scale, strict=True)),
        tuple(max(pair) for pair in zip(steps.bias, least.bias, strict=True)),
    )


def _rows_by_conv(
    values: Mapping[int, PatchValues], table: CodingTable
) -> Iterator[_ConvRows | None]:
    """None for the head."""
    ends = np.cumsum([conv.rows for conv in table.convs])
    for conv, end in zip(table.convs, ends, strict=True):
        rows = slice(end - conv.rows, end)
        if rows.start == table.layout.head_row:
            yield None
            continue
        parts = [
            _measure(one, table, rows, conv.taps, (conv.x_index, conv.y_index))
            for one in values.values()
        ]
        yield _ConvRows(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _measure(
    values: PatchValues, table: CodingTable, rows: slice, taps: int, sites: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """units, shift, tolerance of `_ConvRows` at one resolution."""
    x, y = (float(values.activation_scale[site]) for site in sites)
    zero_point = int(values.activation_zero_point[sites[1]])
    scale = values.weight_scale[rows].astype(np.float64)
    bias = values.bias[rows].astype(np.float64)
    # A row whose scale was raised is a constant, on no grid (quantize.rows.quantize_rows).
    raised = np.abs(bias) >= RAISED * (INT32_MAX - 3 * 255 * 127 * taps)
    raised |= x * scale / y <= MULTIPLIER_FLOOR / RAISED
    beta, slope = (one[rows].astype(np.float64) for one in (table.beta, table.slope))
    follows = slope * scale
    real = bias * x * scale
    largest = np.max(np.abs([beta, follows, real]), axis=0)
    tolerance = 0.5 * x * scale + BIAS_ROUNDING * largest
    units = np.log2(scale / table.scale[rows].astype(np.float64)) * UNITS
    cut = (real < (-128 - zero_point - CUT) * y) | (real > (127 - zero_point + CUT) * y)
    kept = ~(raised | cut)
    return units[~raised], (real - follows - beta)[kept], tolerance[kept]


def _steps_of(rows: _ConvRows | None) -> tuple[int, int]:
    if rows is None:
        return 0, MIN_BIAS_STEP
    t = _scale_step(rows.units) if rows.units.size else 0
    return t, _bias_step(rows.shift, rows.tolerance) if rows.shift.size else MIN_BIAS_STEP


def _scale_step(units: NDArray[np.float64]) -> int:
    """Largest t such that all ``units`` are multiples of 2^t; 0 where they are not even whole."""
    whole = np.rint(units)
    if np.max(np.abs(units - whole)) > SCALE_TOLERANCE or not whole.any():
        return 0
    divisor = int(np.gcd.reduce(whole.astype(np.int64)))
    return min((divisor & -divisor).bit_length() - 1, MAX_SCALE_STEP)


def _bias_step(shift: NDArray[np.float64], tolerance: NDArray[np.float64]) -> int:
    """Largest e such that all shifts are multiples of 2^e; the finest where none is above what
    rounding explains."""
    coarsest = math.frexp(float(np.max(np.abs(shift))))[1]
    finest = math.frexp(4.0 * float(np.max(tolerance)))[1]
    for e in range(min(coarsest, MAX_BIAS_STEP), max(finest, MIN_BIAS_STEP) - 1, -1):
        nearest = np.ldexp(np.rint(np.ldexp(shift, -e)), e)
        if (np.abs(shift - nearest) <= tolerance).all():
            return e if nearest.any() else MIN_BIAS_STEP
    return MIN_BIAS_STEP
