"""Slot values -> codes: the encoder's side of `coding.decode`.

In: the flat slot values of every resolution, a `CodingTable`, steps. Out: the nearest codes. An
encoder may use any arithmetic: what counts is what its codes decode to.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.decode import PatchCodes, ResolutionCodes, combine
from patchdeploy.coding.grid import (
    ACTIVATION_BITS,
    EXACT_BIASES,
    EXACT_SCALES,
    MULTIPLIER_MAX,
    MULTIPLIER_MIN,
    ZERO_POINT,
    CodedRows,
    CodingSteps,
    Int64Array,
    bias_units,
    bits_of,
    multipliers,
    nearest_biases,
    nearest_scales,
    scales_from,
)
from patchdeploy.coding.layout import padding_rows
from patchdeploy.coding.table import CodingTable
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
    scales = nearest_scales(scale, steps, rows)
    biases = nearest_biases(px, scale, bias, values.activation_scale, steps, rows)
    scales = move_inside(scales, biases, values.activation_scale, steps, rows)
    return ResolutionCodes(
        scales=scales,
        biases=biases,
        activation_scales=bits_of(values.activation_scale) - ACTIVATION_BITS,
        zero_points=values.activation_zero_point.view(np.uint8) - np.uint8(ZERO_POINT & 255),
        **_encode_weights(values.weights, classes, table),
    )


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
