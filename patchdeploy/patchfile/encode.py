"""Slot values -> codes: the encoder's side of `patchfile.coding`.

In: the flat slot values of every resolution, a `CodingTable`, steps. Out: the nearest codes. An
encoder may use any arithmetic: what counts is what its codes decode to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchdeploy.patchfile.coding import (
    ACTIVATION_BITS,
    EXACT_BIASES,
    EXACT_SCALES,
    MAX_CODE,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    UNITS,
    ZERO_POINT,
    CodedRows,
    CodingSteps,
    Int64Array,
    PatchCodes,
    ResolutionCodes,
    bias_units,
    bits_of,
    combine,
    multipliers,
    refuse_value,
    scales_from,
)
from patchdeploy.patchfile.table import CodingTable
from patchdeploy.patchfile.values import padding_rows
from patchdeploy.slots import PatchValues

MOST_MOVES = 4096
"""Steps that a scale may be moved to come inside."""


def encode_values(
    values: Mapping[int, PatchValues], classes: int, table: CodingTable, steps: CodingSteps
) -> PatchCodes:
    """The nearest codes of ``values``, each resolution against the first in ``values``.

    A scale that rounding would carry outside what runtimes take, or whose derived bias would no
    longer fit an accumulator, goes to the next step inside.

    Args:
        values: checked (`check_patch`); head rows from ``classes`` on masked.

    Raises:
        PatchRefusedError: code "values": a value that its convolution's step cannot code.
    """
    rows = CodedRows.of(table, classes)
    coded: dict[int, ResolutionCodes] = {}
    first: ResolutionCodes | None = None
    for px, one in values.items():
        plain = _encode_plain(px, one, classes, table, steps, rows)
        coded[px] = plain if first is None else combine(np.subtract, plain, first)
        first = first or plain
    return PatchCodes(steps, classes, coded)


def _encode_plain(
    px: int,
    values: PatchValues,
    classes: int,
    table: CodingTable,
    steps: CodingSteps,
    rows: CodedRows,
) -> ResolutionCodes:
    """Codes of one resolution as if it were the first."""
    scale = np.delete(values.weight_scale, rows.spare)
    bias = np.delete(values.bias, rows.spare)
    scales = _nearest_scales(scale, steps, rows)
    biases = _nearest_biases(px, scale, bias, values.activation_scale, steps, rows)
    scales = move_inside(scales, biases, values.activation_scale, steps, rows)
    return ResolutionCodes(
        scales=scales,
        biases=biases,
        activation_scales=bits_of(values.activation_scale) - ACTIVATION_BITS,
        zero_points=values.activation_zero_point.view(np.uint8) - np.uint8(ZERO_POINT & 255),
        **_encode_weights(values.weights, classes, table),
    )


def _nearest_scales(scale: NDArray[np.float32], steps: CodingSteps, rows: CodedRows) -> Int64Array:
    t = np.array(steps.scale)[rows.conv]
    exact = t == EXACT_SCALES
    octaves = np.log2(scale.astype(np.float64) / rows.scale)
    nearest = np.rint(octaves * UNITS / np.exp2(np.where(exact, 0, t))).astype(np.int64)
    difference = bits_of(scale) - bits_of(rows.scale.astype(np.float32))
    return np.where(exact, difference, nearest)


def _nearest_biases(
    px: int,
    scale: NDArray[np.float32],
    bias: NDArray[np.int32],
    activation_scale: NDArray[np.float32],
    steps: CodingSteps,
    rows: CodedRows,
) -> Int64Array:
    """From the shift of the scale that was trained, not of the one that is decoded: then a rounded
    scale leaves the mean of a channel where it was.
    """
    e = np.array(steps.bias)[rows.conv]
    exact = e == EXACT_BIASES
    wide = scale.astype(np.float64)
    real = bias * (activation_scale.astype(np.float64)[rows.x] * wide)
    moved = real - rows.slope * wide - rows.beta
    nearest = np.rint(np.ldexp(moved, np.where(exact, 0, -e)))
    codes = np.where(exact, bias, nearest)
    far = np.abs(codes) > MAX_CODE
    if far.any():
        k = int(np.argmax(far))
        steps_away = f"at most 2^33 steps of 2^{e[k]} from the base's"
        raise refuse_value(px, f"shift[{k}]", steps_away, f"{codes[k]:.6g}")
    return codes.astype(np.int64)


def move_inside(
    scales: Int64Array,
    biases: Int64Array,
    activation_scale: NDArray[np.float32],
    steps: CodingSteps,
    rows: CodedRows,
) -> Int64Array:
    """``scales`` one step up or down where what they decode to is outside; exact ones stay."""
    movable = np.array(steps.scale)[rows.conv] != EXACT_SCALES
    derived = np.array(steps.bias)[rows.conv] != EXACT_BIASES
    for _ in range(MOST_MOVES):
        scale = scales_from(scales, steps, rows)
        multiplier = multipliers(scale, activation_scale, rows)
        units = bias_units(biases, scale, activation_scale, steps, rows)
        up = (multiplier < MULTIPLIER_MIN) | (derived & (np.abs(units) > rows.limit))
        down = multiplier >= MULTIPLIER_MAX
        move = np.where(movable, up.astype(np.int64) - down, 0)
        if not move.any():
            break
        scales = scales + move
    return scales


def _encode_weights(
    weights: NDArray[np.int8], classes: int, table: CodingTable
) -> dict[str, NDArray[np.uint8]]:
    first = table.layout.head_element
    _, padding = padding_rows(classes, table.layout)
    moved = weights.view(np.uint8) - table.kernels.view(np.uint8)
    return {
        "kernels": np.concatenate([moved[:first], moved[padding.stop :]]),
        "head": weights.view(np.uint8)[first : padding.start],
    }
