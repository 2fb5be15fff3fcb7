"""The integer arithmetic of every operator, in NumPy: the truth that writers are held to.

In: int8 codes in [-128, 127] with their `ActivationParams`. Out: int8 codes. A convolution's
requantisation is the same in every runtime; for sums, products and means the runtimes round
differently, so each takes an `Arithmetic`:

- ``reference``: the exact value (float64), rounded half to even;
- ``xnnpack``: LiteRT with its XNNPACK delegate (fixed-point sums, float32 elsewhere);
- ``mlas``: ONNX Runtime's QLinearAdd, QLinearMul and QLinearGlobalAveragePool on x86-64.

``xnnpack`` and ``mlas`` are bit-equal to ai-edge-litert 2.3 and onnxruntime 1.32 on x86-64 over
every pair of inputs (tests/quantize/test_runtime_arithmetic.py). Each differs from ``reference``
by at most 1 LSB: with input / output scale ratios below 2^8 (XNNPACK's own limit) the value
before rounding is off by less than 2^-4 LSB (a sum: two multipliers off by 2^-21 of the larger
ratio, times 255; float32: a few roundings of 2^-24 of at most 255 * 2^8), so the two can only fall
on different sides of one rounding boundary.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdeploy.graph import Activation
from patchdeploy.quantize.model import ActivationParams

Arithmetic = Literal["reference", "xnnpack", "mlas"]
Int8Array = NDArray[np.int8]
Float32Array = NDArray[np.float32]

INT8_MIN, INT8_MAX = -128, 127
ADD_MULTIPLIER_BITS = 20
"""XNNPACK scales the larger of a sum's two multipliers into [2^20, 2^21)."""


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


def add(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    arithmetic: Arithmetic = "reference",
    bounds: tuple[int, int] = (INT8_MIN, INT8_MAX),
) -> Int8Array:
    """Sum of two int8 arrays, each with its own scale, in ``y_params``.

    reference: (a_scale (a - za) + b_scale (b - zb)) / y_scale in float64.
    xnnpack: 20-bit multipliers, arithmetic shift, half rounds up (qs8-vadd, minmax).
    mlas: fma(a, ra, fma(b, rb, zy - fma(za, ra, rb zb))) on uint8 codes (qladd_avx2.cpp).
    """
    if arithmetic == "xnnpack":
        steps = _add_fixed_point(a, b, a_params, b_params, y_params)
    elif arithmetic == "mlas":
        steps = _add_fused(a, b, a_params, b_params, y_params)
    else:
        real = (a.astype(np.float64) - a_params.zero_point) * float(a_params.scale)
        real += (b.astype(np.float64) - b_params.zero_point) * float(b_params.scale)
        steps = np.rint(real / float(y_params.scale)) + y_params.zero_point
    return saturate(steps, *bounds)


def add_multipliers(a_ratio: np.float32, b_ratio: np.float32) -> tuple[int, int, int]:
    """XNNPACK's (a multiplier, b multiplier, shift) for a sum; ratio = input / output scale.

    The larger multiplier is in [2^20, 2^21]; both are ratio * 2^shift, rounded half to even.
    """
    exponent = int(np.frexp(max(a_ratio, b_ratio))[1]) - 1
    shift = ADD_MULTIPLIER_BITS - exponent
    a_multiplier, b_multiplier = (
        int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in (a_ratio, b_ratio)
    )
    return a_multiplier, b_multiplier, shift


def _add_fixed_point(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
) -> NDArray[Any]:
    a_multiplier, b_multiplier, shift = add_multipliers(
        np.float32(a_params.scale / y_params.scale), np.float32(b_params.scale / y_params.scale)
    )
    start = (1 << (shift - 1)) - a_multiplier * a_params.zero_point
    accumulator = np.multiply(a, a_multiplier, dtype=np.int64)
    accumulator += np.multiply(b, b_multiplier, dtype=np.int64)
    accumulator += start - b_multiplier * b_params.zero_point
    accumulator >>= shift
    accumulator += y_params.zero_point
    return accumulator


def _add_fused(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
) -> NDArray[Any]:
    # A product of an 8-bit and a 24-bit number is exact in float64, so float64 followed by one
    # rounding to float32 is a fused multiply-add (up to float64's own rounding, 2^-29 of it).
    a_ratio = np.float64(np.float32(a_params.scale / y_params.scale))
    b_ratio = np.float64(np.float32(b_params.scale / y_params.scale))
    za, zb, zy = (p.zero_point + 128 for p in (a_params, b_params, y_params))
    offset = np.float32(zy) - np.float32(za * a_ratio + np.float64(np.float32(b_ratio * zb)))
    inner = ((b.astype(np.float64) + 128) * b_ratio + np.float64(offset)).astype(np.float32)
    outer = ((a.astype(np.float64) + 128) * a_ratio + inner).astype(np.float32)
    return np.rint(outer) - np.float32(128)


def multiply(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    arithmetic: Arithmetic = "reference",
) -> Int8Array:
    """Product of two int8 arrays (broadcasting) in ``y_params``.

    reference: (a - za)(b - zb) a_scale b_scale / y_scale in float64.
    xnnpack: float32 ratio (a_scale b_scale) / y_scale; round, then add zy (qs8-vmul, fp32).
    mlas: the same ratio; adds zy (uint8) in float32, then rounds (qlmul.cpp).
    """
    product = (a.astype(np.int32) - a_params.zero_point) * (
        b.astype(np.int32) - b_params.zero_point
    )
    if arithmetic == "reference":
        ratio = float(a_params.scale) * float(b_params.scale) / float(y_params.scale)
        return saturate(np.rint(product * ratio) + y_params.zero_point)
    # |product| <= 255 * 255 < 2^24: exact in float32.
    scaled = product.astype(np.float32) * np.float32(
        np.float32(a_params.scale * b_params.scale) / y_params.scale
    )
    if arithmetic == "xnnpack":
        return saturate(np.rint(scaled) + y_params.zero_point)
    return saturate(np.rint(scaled + np.float32(y_params.zero_point + 128)) - np.float32(128))


def mean(
    x: Int8Array,
    x_params: ActivationParams,
    y_params: ActivationParams,
    arithmetic: Arithmetic = "reference",
) -> Int8Array:
    """Mean over height and width: int8 [N, H, W, C] -> [N, 1, 1, C]; n = H * W <= 2^16.

    reference: sum(x - zx) * (x_scale / y_scale / n) in float64.
    xnnpack: m = (x_scale / y_scale) * (1 / n); sum(x) * m + (zy - n zx m), rounded (float32).
    mlas: m = x_scale / (y_scale * n); sum(x - zx) * m, rounded, + zy (float32).
    """
    count = x.shape[1] * x.shape[2]
    total = np.sum(x, axis=(1, 2), keepdims=True, dtype=np.int64)
    if arithmetic == "xnnpack":
        ratio = np.float32(x_params.scale / y_params.scale)
        m = np.float32(ratio * np.float32(np.float32(1) / np.float32(count)))
        offset = np.float32(y_params.zero_point) - np.float32(x_params.zero_point * count) * m
        return saturate(np.rint(total.astype(np.float32) * m + offset))
    total -= count * x_params.zero_point
    if arithmetic == "mlas":
        m = np.float32(x_params.scale / np.float32(y_params.scale * np.float32(count)))
        return saturate(np.rint(total.astype(np.float32) * m) + y_params.zero_point)
    exact = total * (float(x_params.scale) / float(y_params.scale) / count)
    return saturate(np.rint(exact) + y_params.zero_point)
