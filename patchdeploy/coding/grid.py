"""The grid that scales and biases lie on: whole numbers of steps away from the base, and back.

In: a `CodingTable`, the steps of each convolution, whole numbers or values. Out: values, equal bit
for bit in every language: integers, and float64 operations of IEEE 754 that are each rounded on
their own, in the order written here; or the nearest whole numbers, in any arithmetic. Files are
coded on this grid, and training with ``rounding_step`` rounds on it.

With n the coded integer of a row, t and e the steps of its convolution, T[i] = `RATIOS` [i]:

    weight_scale = float32((scale * T[(n << t) & 255]) * 2^((n << t) >> 8))
    bias         = rint(((beta + n_b * 2^e) + slope * weight_scale) / (x_scale * weight_scale))

scale, beta and slope are the coding table's, x_scale the decoded scale of the activation that the
convolution reads; rint rounds half to even. What training moved is coded (the scale's logarithm
in steps of 2^t / 256 octave, the shift in steps of 2^e); what folding makes of it is derived. A
convolution may instead be coded exactly: t = `EXACT_SCALES` adds n to the scale's bit pattern,
e = `EXACT_BIASES` makes n_b the bias itself. At a further resolution n and n_b are differences to
those of the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.layout import padding_rows
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import PatchRefusedError

UNITS = 256
"""Units of a scale's logarithm in one octave; a step is 2^t of them."""
MAX_SCALE_STEP = 12
EXACT_SCALES = 255
MIN_BIAS_STEP, MAX_BIAS_STEP = -126, 127
EXACT_BIASES = -128
ACTIVATION_BITS = 0x3D000000
"""Bit pattern that the activation scales of the first resolution are coded against: 2^-5."""
ZERO_POINT = -128
MULTIPLIER_MIN, MULTIPLIER_MAX = 2.0**-32, 2.0**8
"""What runtimes take for x_scale * weight_scale / y_scale: at least, and below."""
INT32_MAX = 2**31 - 1
NAN_BITS = 0x7FC00000
MAX_CODE = 2**33
"""Codes beyond it cannot come of float32 and int32 values."""

Int64Array = NDArray[np.int64]

_ROOTS = tuple(
    float.fromhex(text)
    for text in (
        "0x1.00b1afa5abcbfp+0",
        "0x1.0163da9fb3335p+0",
        "0x1.02c9a3e778061p+0",
        "0x1.059b0d3158574p+0",
        "0x1.0b5586cf9890fp+0",
        "0x1.172b83c7d517bp+0",
        "0x1.306fe0a31b715p+0",
        "0x1.6a09e667f3bcdp+0",
    )
)
"""2^(2^b / 256) for b = 0..7, each the nearest float64."""


def _make_ratios() -> NDArray[np.float64]:
    """T[0] = 1; T[i] = T[i - 2^b] * root[b] with b the highest bit of i, rounded each time."""
    ratios = np.ones(UNITS)
    for bit, root in enumerate(_ROOTS):
        ratios[1 << bit : 2 << bit] = ratios[: 1 << bit] * root
    return ratios


RATIOS = _make_ratios()
"""float64 [256]: 2^(i / 256) up to 8 roundings; decoding uses these very bits."""


@dataclass(frozen=True)
class CodingSteps:
    """How coarsely each convolution is coded, in graph order.

    Attributes:
        scale: t in 0..12, or `EXACT_SCALES`; the step is 2^t / 256 octave.
        bias: e in -126..127, or `EXACT_BIASES`; the step is 2^e, absolute, in units of what the
            layer puts out: beta + n_b * 2^e. It is no part of an output's int8 step.
    """

    scale: tuple[int, ...]
    bias: tuple[int, ...]


def exact_steps(table: CodingTable) -> CodingSteps:
    """Every value coded exactly: decoding gives the very values that were encoded."""
    count = len(table.convs)
    return CodingSteps((EXACT_SCALES,) * count, (EXACT_BIASES,) * count)


def check_steps(steps: CodingSteps, table: CodingTable) -> None:
    """Check that there is a known step for every convolution.

    Raises:
        PatchRefusedError: code "values".
    """
    count = len(table.convs)
    if (len(steps.scale), len(steps.bias)) != (count, count):
        found = (len(steps.scale), len(steps.bias))
        raise _refuse_steps(f"{count} of scales and {count} of biases", found)
    for index, (t, e) in enumerate(zip(steps.scale, steps.bias, strict=True)):
        if not 0 <= t <= MAX_SCALE_STEP and t != EXACT_SCALES:
            raise _refuse_steps(f"0 to {MAX_SCALE_STEP} or {EXACT_SCALES}", (index, t))
        if not MIN_BIAS_STEP <= e <= MAX_BIAS_STEP and e != EXACT_BIASES:
            expected = f"{MIN_BIAS_STEP} to {MAX_BIAS_STEP} or {EXACT_BIASES}"
            raise _refuse_steps(expected, (index, e))


def _refuse_steps(expected: str, got: object) -> PatchRefusedError:
    return PatchRefusedError(
        "values", "steps", expected, str(got), "pack the task again with its base"
    )


@dataclass(frozen=True, eq=False)
class CodedRows:
    """What coding reads at each row that a file holds: all but the head's spare ones.

    Attributes:
        conv: intp [n], index of the row's convolution; x, y: of its activation sites.
        scale, beta, slope: float64 [n], the table's.
        limit: float64 [n], the greatest bias beside which no int8 kernel can overflow.
        spare: slice of the flat arrays that `masked_scale` fills.
    """

    conv: NDArray[np.intp]
    x: NDArray[np.intp]
    y: NDArray[np.intp]
    scale: NDArray[np.float64]
    beta: NDArray[np.float64]
    slope: NDArray[np.float64]
    limit: NDArray[np.float64]
    spare: slice

    @classmethod
    def of(cls, table: CodingTable, classes: int) -> CodedRows:
        spare, _ = padding_rows(classes, table.layout)
        conv = np.delete(table.row_conv, spare)
        taps = np.array([one.taps for one in table.convs])
        limit = np.maximum(INT32_MAX - 255 * 127 * taps, 1 << 24)
        return cls(
            conv=conv,
            x=np.array([one.x_index for one in table.convs], np.intp)[conv],
            y=np.array([one.y_index for one in table.convs], np.intp)[conv],
            scale=np.delete(table.scale, spare).astype(np.float64),
            beta=np.delete(table.beta, spare).astype(np.float64),
            slope=np.delete(table.slope, spare).astype(np.float64),
            limit=limit[conv].astype(np.float64),
            spare=spare,
        )


def scales_from(codes: Int64Array, steps: CodingSteps, rows: CodedRows) -> NDArray[np.float32]:
    """weight_scale float32 [n], whatever comes of the codes."""
    t = np.array(steps.scale)[rows.conv]
    exact = t == EXACT_SCALES
    units = codes << np.where(exact, 0, t)
    with np.errstate(over="ignore", under="ignore"):  # check_scales refuses what comes of it
        exponent = np.clip(units >> 8, -400, 400).astype(np.int32)
        scale = np.ldexp(rows.scale * RATIOS[units & 255], exponent).astype(np.float32)
    if exact.any():
        bits = bits_of(rows.scale.astype(np.float32))
        scale = np.where(exact, from_bits(bits + units), scale)
    return np.asarray(scale, np.float32)


def bias_units(
    codes: Int64Array,
    scale: NDArray[np.float32],
    activation_scale: NDArray[np.float32],
    steps: CodingSteps,
    rows: CodedRows,
) -> NDArray[np.float64]:
    """The bias before it is an int32, float64 [n]; the formula and its order are the module's."""
    wide = scale.astype(np.float64)
    e = np.array(steps.bias)[rows.conv]
    exact = e == EXACT_BIASES
    beta = rows.beta + np.ldexp(codes.astype(np.float64), np.where(exact, 0, e))
    product = rows.slope * wide
    unit = activation_scale.astype(np.float64)[rows.x] * wide
    return np.where(exact, codes.astype(np.float64), np.rint((beta + product) / unit))


def nearest_scales(scale: NDArray[np.float32], steps: CodingSteps, rows: CodedRows) -> Int64Array:
    t = np.array(steps.scale)[rows.conv]
    exact = t == EXACT_SCALES
    octaves = np.log2(scale.astype(np.float64) / rows.scale)
    nearest = np.rint(octaves * UNITS / np.exp2(np.where(exact, 0, t))).astype(np.int64)
    difference = bits_of(scale) - bits_of(rows.scale.astype(np.float32))
    return np.where(exact, difference, nearest)


def nearest_biases(
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


def multipliers(
    scale: NDArray[np.float32], activation_scale: NDArray[np.float32], rows: CodedRows
) -> NDArray[np.float64]:
    wide = activation_scale.astype(np.float64)
    ratio: NDArray[np.float64] = wide[rows.x] * scale.astype(np.float64) / wide[rows.y]
    return ratio


def bits_of(value: NDArray[np.float32]) -> Int64Array:
    """The bit patterns of positive float32 values, int64."""
    return np.ascontiguousarray(value).view(np.int32).astype(np.int64)


def from_bits(bits: Int64Array) -> NDArray[np.float32]:
    """The inverse of `bits_of`; a pattern outside 0..2^31 - 1 gives NaN, which checks refuse."""
    inside = (bits >= 0) & (bits <= INT32_MAX)
    return np.where(inside, bits, NAN_BITS).astype(np.int32).view(np.float32)


def refuse_value(px: int, field: str, expected: str, got: object) -> PatchRefusedError:
    return PatchRefusedError(
        "values", f"{px} px {field}", expected, str(got), "pack the task again with its base"
    )
