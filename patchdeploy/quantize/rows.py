"""Weight scales and int32 biases of one convolution's rows, safe in every runtime.

In: the real step and bias of every row, the parameters of input and output. Out: float32
scales, positive and normal, int32 biases that cannot overflow an accumulator, and a proven
bound of what that safety costs.

A row whose scale is near zero is a constant: in units of x_scale * weight_scale its bias would
not fit int32. Its scale is raised until it does; the kernel then adds a little noise, which
`error_lsb` bounds, and whose middle the bias takes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import QuantizationError
from patchdeploy.quantize.model import (
    ActivationParams,
    Float32Array,
    Int8Array,
    Int32Array,
)

Float64Array = NDArray[np.float64]

INT32_MAX = 2**31 - 1
LEAST_LIMIT = 1 << 24
"""Least room for a bias: below it a bias of 255 output steps would be coarser than 2^-16 step."""
MULTIPLIER_FLOOR = 2.0**-32
"""XNNPACK's least requantisation multiplier (per tensor; kept per channel as well)."""
ROUND_UP = 1.0 + 2.0**-20
"""Keeps a floor a floor after rounding to float32."""
MASK_DIVISOR = np.float32(256)
MASK_BIAS = -131072
"""A masked row's value is -131072 / 256 = -512 output steps: -128 after saturation, always."""


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of one convolution.

    Attributes:
        weight_scale: float32 [O], positive and normal.
        bias: int32 [O].
        error_lsb: float64 [O]: largest difference, in output steps before rounding, to the row
            without a raised scale; 0 where the scale was not raised. It leaves out the bias's
            own rounding (half a unit of x_scale * weight_scale).
    """

    weight_scale: Float32Array
    bias: Int32Array
    error_lsb: Float64Array


def quantize_rows(
    kernel: Int8Array,
    step: Float64Array,
    bias: Float64Array,
    x: ActivationParams,
    y: ActivationParams,
) -> QuantizedRows:
    """weight_scale = float32(step), bias = round(bias / (x_scale * weight_scale)), made safe.

    1. A bias that saturates the output whatever the input is cut to the least that does.
    2. The scale is raised to max(|step|, 2^-32 y_scale / x_scale, |bias| / (x_scale * limit)),
       limit = 2^31 - 1 - 3 * reach, reach = 255 * max sum|q| >= |accumulator| without bias: one
       reach for the accumulator, two for the shift of 3.
    3. Where it was raised by d > 0, accumulators in [low, high] add d * x_scale * acc; the bias
       takes out the middle (d <= 2 scale, as a negative step is raised to its magnitude), so at
       most d * x_scale * (high - low) / 2 is left. For a constant of v output steps that is
       about v * sum|q| * 127.5 / 2^31 steps: below 1/2 while v * sum|q| < 8.4 million.

    Args:
        kernel: int8 [O, kh, kw, I/groups].
        step: float64 [O]; a negative one is treated as a constant row (see ``error_lsb``).
        bias: float64 [O], real units.

    Raises:
        QuantizationError: so many taps that an int32 accumulator may overflow.
    """
    taps = kernel.reshape(len(kernel), math.prod(kernel.shape[1:]))
    reach = 255 * int(np.abs(taps).sum(axis=1, dtype=np.int64).max(initial=0))
    limit = INT32_MAX - 3 * reach
    if limit < LEAST_LIMIT:
        raise QuantizationError(
            f"a row of {taps.shape[1]} int8 weights can reach {reach}; an int32 accumulator with "
            f"its bias holds {(INT32_MAX - LEAST_LIMIT) // 3}; split the layer"
        )
    x_scale, y_scale = float(x.scale), float(y.scale)
    swing = np.abs(step) * x_scale * reach + 2.0 * y_scale
    low, high = (-128 - y.zero_point) * y_scale, (127 - y.zero_point) * y_scale
    bias = np.clip(bias, low - swing, high + swing)
    needed = np.abs(bias) / (x_scale * limit)
    floor = np.maximum(needed, MULTIPLIER_FLOOR * y_scale / x_scale) * ROUND_UP
    raised = np.flatnonzero(step < floor)
    weight_scale = np.maximum(np.abs(step), floor).astype(np.float32)
    scale = weight_scale.astype(np.float64)
    units = bias / (x_scale * scale)
    error = np.zeros(len(step))
    if raised.size:
        middle, spread = _accumulator_range(taps[raised], x)
        excess = 1.0 - step[raised] / scale[raised]
        units[raised] -= excess * middle
        error[raised] = excess * spread * x_scale * scale[raised] / y_scale
    return QuantizedRows(weight_scale, np.rint(units).astype(np.int32), error)


def _accumulator_range(taps: Int8Array, x: ActivationParams) -> tuple[Float64Array, Float64Array]:
    """(middle, half width) of sum(q * (x - zero_point)) over every int8 x; float64 [rows]."""
    positive = np.sum(taps, axis=1, where=taps > 0, dtype=np.float64)
    negative = np.sum(taps, axis=1, where=taps < 0, dtype=np.float64)
    least, most = -128.0 - x.zero_point, 127.0 - x.zero_point
    low = positive * least + negative * most
    high = positive * most + negative * least
    return np.asarray((high + low) / 2), np.asarray((high - low) / 2)


def mask_rows(
    rows: QuantizedRows, count: int, x: ActivationParams, y: ActivationParams
) -> QuantizedRows:
    """``rows`` and ``count`` more that are -128 in every runtime, whatever the input.

    weight_scale = (y_scale / x_scale) / 256 in float32 and bias = -131072 over a kernel of
    zeros: the multiplier is 2^-8 up to 3 roundings, so the row is -512 steps from the zero point.
    """
    scale = np.float32(np.float32(y.scale / x.scale) / MASK_DIVISOR)
    return QuantizedRows(
        np.concatenate([rows.weight_scale, np.full(count, scale, np.float32)]),
        np.concatenate([rows.bias, np.full(count, MASK_BIAS, np.int32)]),
        np.concatenate([rows.error_lsb, np.zeros(count)]),
    )
