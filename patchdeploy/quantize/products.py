"""The product of two int8 values, and the mean of a map: exact, and as the runtimes round.

In: int8 codes, their parameters, and the output's. Out: int8 codes. Each runtime's is bit-equal to
it (tests/quantize/test_runtime_arithmetic.py), and at most 1 LSB from the exact one: see
`quantize.runtimes`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchdeploy.quantize.arithmetic import Int8Array, saturate
from patchdeploy.quantize.model import ActivationParams


def exact_product(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
) -> Int8Array:
    """(a - za)(b - zb) a_scale b_scale / y_scale in float64, rounded half to even."""
    ratio = float(a_params.scale) * float(b_params.scale) / float(y_params.scale)
    steps = _products(a, b, a_params, b_params) * ratio
    return saturate(np.rint(steps) + y_params.zero_point)


def xnnpack_product(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
) -> Int8Array:
    """LiteRT on x86-64: times (a_scale b_scale) / y_scale in float32, rounded, + zy (qs8-vmul,
    fp32)."""
    # |product| <= 255 * 255 < 2^24: exact in float32.
    scaled = _products(a, b, a_params, b_params).astype(np.float32)
    scaled *= _product_ratio(a_params, b_params, y_params)
    return saturate(np.rint(scaled) + y_params.zero_point)


def xnnpack_neon_product(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
) -> Int8Array:
    """LiteRT on ARM: ratio times product, exact, half rounds up, + zy (qs8-vmul, rndnu).

    XNNPACK's fixed point loses nothing: the ratio's 24 bits are its multiplier, a product of 17
    bits shifted left by at most 8 fits int32, and the bits that the doubled high half drops are
    below those that the rounding shift drops. Here 41 bits and a half fit float64.
    """
    ratio = np.float64(_product_ratio(a_params, b_params, y_params))
    steps = np.floor(_products(a, b, a_params, b_params) * ratio + 0.5)
    return saturate(steps + y_params.zero_point)


def mlas_product(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
) -> Int8Array:
    """ONNX Runtime: the same float32 ratio; adds zy (uint8) in float32, then rounds (qlmul.cpp)."""
    scaled = _products(a, b, a_params, b_params).astype(np.float32)
    scaled *= _product_ratio(a_params, b_params, y_params)
    return saturate(np.rint(scaled + np.float32(y_params.zero_point + 128)) - np.float32(128))


def exact_mean(x: Int8Array, x_params: ActivationParams, y_params: ActivationParams) -> Int8Array:
    """Mean over height and width: int8 [N, H, W, C] -> [N, 1, 1, C]; n = H * W <= 2^16.

    sum(x - zx) * (x_scale / y_scale / n) in float64, rounded half to even.
    """
    total, count = _total(x)
    ratio = float(x_params.scale) / float(y_params.scale) / count
    return saturate(np.rint((total - count * x_params.zero_point) * ratio) + y_params.zero_point)


def xnnpack_mean(x: Int8Array, x_params: ActivationParams, y_params: ActivationParams) -> Int8Array:
    """LiteRT: m = (x_scale / y_scale) * (1 / n); sum(x) * m + (zy - n zx m), rounded (float32)."""
    total, count = _total(x)
    ratio = np.float32(x_params.scale / y_params.scale)
    m = np.float32(ratio * np.float32(np.float32(1) / np.float32(count)))
    offset = np.float32(y_params.zero_point) - np.float32(x_params.zero_point * count) * m
    return saturate(np.rint(total.astype(np.float32) * m + offset))


def mlas_mean(x: Int8Array, x_params: ActivationParams, y_params: ActivationParams) -> Int8Array:
    """ONNX Runtime: m = x_scale / (y_scale * n); sum(x - zx) * m, rounded, + zy (float32)."""
    total, count = _total(x)
    m = np.float32(x_params.scale / np.float32(y_params.scale * np.float32(count)))
    steps = (total - count * x_params.zero_point).astype(np.float32) * m
    return saturate(np.rint(steps) + y_params.zero_point)


def _products(
    a: Int8Array, b: Int8Array, a_params: ActivationParams, b_params: ActivationParams
) -> NDArray[np.int32]:
    left: NDArray[np.int32] = a.astype(np.int32) - a_params.zero_point
    return left * (b.astype(np.int32) - b_params.zero_point)


def _product_ratio(
    a_params: ActivationParams, b_params: ActivationParams, y_params: ActivationParams
) -> np.float32:
    return np.float32(np.float32(a_params.scale * b_params.scale) / y_params.scale)


def _total(x: Int8Array) -> tuple[NDArray[np.int64], int]:
    total: NDArray[np.int64] = np.sum(x, axis=(1, 2), keepdims=True, dtype=np.int64)
    return total, x.shape[1] * x.shape[2]
