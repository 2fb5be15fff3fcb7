"""int8 codes, and the requantisation of a convolution: what every runtime computes alike.

In: int8 codes in [-128, 127] with their `ActivationParams`, int32 accumulators. Out: int8 codes.
Sums, products, means and point-wise functions differ between runtimes: see `quantize.runtimes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.graph import Activation
from patchdeploy.quantize.model import ActivationParams

Int8Array = NDArray[np.int8]
Float32Array = NDArray[np.float32]

INT8_MIN, INT8_MAX = -128, 127
ALL_CODES = (INT8_MIN, INT8_MAX)


def quantize(real: NDArray[np.floating[Any]], params: ActivationParams) -> Int8Array:
    """int8 codes: round half to even of real / scale (float32), + zero_point, saturated."""
    steps = np.rint(np.asarray(real, np.float32) / params.scale)
    return saturate(steps + np.float32(params.zero_point))


def dequantize(codes: Int8Array, params: ActivationParams) -> Float32Array:
    """float32 scale * (code - zero_point): the difference is exact, the product rounds once."""
    return (codes.astype(np.float32) - np.float32(params.zero_point)) * params.scale


def saturate(codes: NDArray[Any], low: int = INT8_MIN, high: int = INT8_MAX) -> Int8Array:
    """Whole numbers of any dtype, clipped to [low, high], as int8."""
    clipped: Int8Array = np.clip(codes, low, high).astype(np.int8)
    return clipped


def activation_bounds(activation: Activation, params: ActivationParams) -> tuple[int, int]:
    """Codes [low, high] that a fused activation leaves reachable.

    ``relu`` clips at q(0), ``relu6`` at q(0) and q(6). ``none`` and ``hard_sigmoid`` saturate
    only (hard_sigmoid's output range is exactly [0, 1]).
    """
    low, high = INT8_MIN, INT8_MAX
    if activation in ("relu", "relu6"):
        low = max(low, params.zero_point)
    if activation == "relu6":
        high = int(quantize(np.array([6.0], np.float32), params)[0])
    return low, high


def requantize_multiplier(
    x_scale: np.float32, weight_scale: Float32Array, y_scale: np.float32
) -> Float32Array:
    """float32 [O]: (x_scale * weight_scale[c]) / y_scale, each operation rounded on its own.

    XNNPACK (operators/convolution-nhwc.c, requantization_scale) and ORT (qlinearconv.cc,
    output_scales) compute it in this order.
    """
    product = np.multiply(np.float32(x_scale), weight_scale, dtype=np.float32)
    return np.divide(product, np.float32(y_scale), dtype=np.float32)


def requantize(
    accumulator: NDArray[Any],
    multiplier: Float32Array,
    zero_point: int,
    low: int = INT8_MIN,
    high: int = INT8_MAX,
) -> Int8Array:
    """int8 [..., O] = clip(round_half_even(float32(acc) * multiplier[c]) + zero_point).

    Args:
        accumulator: [..., O] whole numbers in the int32 range, any dtype that holds them
            exactly (int32, float64, or float32 below 2^24); rounded once to float32.
        multiplier: float32 [O], from `requantize_multiplier`.
    """
    scaled = np.multiply(accumulator.astype(np.float32, copy=False), multiplier, dtype=np.float32)
    # Clipping at whole numbers commutes with rounding, and keeps rint inside int8's range.
    np.clip(scaled, np.float32(low - zero_point), np.float32(high - zero_point), out=scaled)
    np.rint(scaled, out=scaled)
    scaled += np.float32(zero_point)
    return scaled.astype(np.int8)
