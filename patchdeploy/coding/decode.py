"""Whole numbers of steps -> slot values, the very same bits in every language.

In: `PatchCodes`, integers that code small, and a `CodingTable`. Out: slot values on the grid of
`coding.grid`, every one inside what runtimes take. At a further resolution scales and biases are
differences to those of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.grid import (
    ACTIVATION_BITS,
    INT32_MAX,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ZERO_POINT,
    CodedRows,
    CodingSteps,
    Int64Array,
    bias_units,
    from_bits,
    multipliers,
    refuse_value,
    scales_from,
)
from patchdeploy.coding.layout import MASKED_BIAS, masked_scale, padding_rows
from patchdeploy.coding.table import CodingTable
from patchdeploy.slots import PatchValues


@dataclass(frozen=True, eq=False)
class ResolutionCodes:
    """One resolution; at a further one, differences to the first (kernels: modulo 256).

    Attributes:
        scales, biases: int64 [rows less the head's spare ones].
        activation_scales: int64 [sites], differences of bit patterns.
        zero_points: uint8 [sites], modulo 256.
        kernels: uint8 [elements less the head's], modulo 256.
        head: uint8 [classes * head_row_elements], modulo 256.
    """

    scales: Int64Array
    biases: Int64Array
    activation_scales: Int64Array
    zero_points: NDArray[np.uint8]
    kernels: NDArray[np.uint8]
    head: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class PatchCodes:
    """All resolutions, in the order of the file; the first is coded against the base."""

    steps: CodingSteps
    classes: int
    resolutions: Mapping[int, ResolutionCodes]


def decode_values(
    codes: PatchCodes, table: CodingTable, resolution: int | None = None
) -> dict[int, PatchValues]:
    """The slot values of every resolution (or of one), every one inside what runtimes take.

    Raises:
        PatchRefusedError: code "values", naming the resolution and the first bad value.
    """
    rows = CodedRows.of(table, codes.classes)
    decoded: dict[int, PatchValues] = {}
    first: ResolutionCodes | None = None
    for px, one in codes.resolutions.items():
        plain = one if first is None else combine(np.add, one, first)
        first = first or plain
        if resolution in (None, px):
            decoded[px] = _decode_plain(px, plain, codes, table, rows)
    return decoded


def combine(
    operation: Callable[..., Any], one: ResolutionCodes, first: ResolutionCodes
) -> ResolutionCodes:
    """Field by field; uint8 wraps, int64 codes are far from their ends."""
    names = [each.name for each in fields(ResolutionCodes)]
    return ResolutionCodes(
        **{name: operation(getattr(one, name), getattr(first, name)) for name in names}
    )


def _decode_plain(
    px: int, plain: ResolutionCodes, codes: PatchCodes, table: CodingTable, rows: CodedRows
) -> PatchValues:
    activation_scale = from_bits(ACTIVATION_BITS + plain.activation_scales)
    check_scales(px, "activation_scale", activation_scale)
    scale = scales_from(plain.scales, codes.steps, rows)
    check_scales(px, "weight_scale", scale)
    _check_multipliers(px, scale, activation_scale, rows)
    units = bias_units(plain.biases, scale, activation_scale, codes.steps, rows)
    bias = _check_biases(px, units)
    layout = table.layout
    x, y = activation_scale[[layout.head_input, layout.head_output]]
    wide = _widen(scale, rows.spare, masked_scale(x, y))
    check_scales(px, "weight_scale", wide)
    return PatchValues(
        weight_scale=wide,
        bias=_widen(bias, rows.spare, np.int32(MASKED_BIAS)),
        activation_scale=activation_scale,
        activation_zero_point=(plain.zero_points + np.uint8(ZERO_POINT & 255)).view(np.int8),
        weights=_decode_weights(px, plain, codes.classes, table),
    )


def _check_biases(px: int, units: NDArray[np.float64]) -> NDArray[np.int32]:
    bad = ~(np.abs(units) <= INT32_MAX)
    if bad.any():
        k = int(np.argmax(bad))
        raise refuse_value(px, f"bias[{k}]", "an integer of at most 31 bits", units[k])
    return units.astype(np.int32)


def _decode_weights(
    px: int, plain: ResolutionCodes, classes: int, table: CodingTable
) -> NDArray[np.int8]:
    layout = table.layout
    first = layout.head_element
    _, padding = padding_rows(classes, layout)
    weights = np.zeros(layout.elements, np.int8)
    reference = table.kernels.view(np.uint8)
    bytes_ = weights.view(np.uint8)
    bytes_[:first] = plain.kernels[:first] + reference[:first]
    bytes_[first : padding.start] = plain.head
    bytes_[padding.stop :] = plain.kernels[first:] + reference[padding.stop :]
    if weights.size and weights.min() < -127:
        raise refuse_value(px, f"weights[{int(weights.argmin())}]", "an int8 in [-127, 127]", -128)
    return weights


def _check_multipliers(
    px: int,
    scale: NDArray[np.float32],
    activation_scale: NDArray[np.float32],
    rows: CodedRows,
) -> None:
    """Check x_scale * weight_scale / y_scale of every coded row.

    Raises:
        PatchRefusedError: code "values": a runtime would refuse the model.
    """
    multiplier = multipliers(scale, activation_scale, rows)
    bad = (multiplier < MULTIPLIER_MIN) | (multiplier >= MULTIPLIER_MAX)
    if bad.any():
        k = int(np.argmax(bad))
        raise refuse_value(
            px, f"x_scale * weight_scale[{k}] / y_scale", "in [2^-32, 2^8)", multiplier[k]
        )


def check_scales(px: int, name: str, scales: NDArray[np.float32]) -> None:
    """Check that scales are finite, positive and normal.

    Raises:
        PatchRefusedError: code "values", naming the first that is not.
    """
    good = np.isfinite(scales) & (scales >= np.finfo(np.float32).tiny)
    if not good.all():
        k = int(np.argmin(good))
        raise refuse_value(px, f"{name}[{k}]", "a finite, positive, normal float32", scales[k])


def _widen(stored: NDArray[Any], run: slice, value: Any) -> NDArray[Any]:
    """``stored`` with ``value`` put in at the places of ``run``."""
    wide = np.empty(len(stored) + run.stop - run.start, stored.dtype)
    wide[: run.start], wide[run], wide[run.stop :] = stored[: run.start], value, stored[run.start :]
    return wide
