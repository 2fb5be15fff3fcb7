"""The sum of two int8 values, each with its own scale: the exact one, and those of the runtimes.

In: int8 codes of one shape, their parameters, and the output's. Out: int8 codes, clipped to
``bounds``. Each runtime's is bit-equal to it over every pair of codes
(tests/quantize/test_runtime_arithmetic.py), and at most 1 LSB from the exact one: see
`quantize.runtimes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.quantize.arithmetic import ALL_CODES, Int8Array, saturate
from patchdeploy.quantize.model import ActivationParams

XNNPACK_BITS = 20
"""XNNPACK scales the larger of a sum's two multipliers into [2^20, 2^21]."""
NEON_BITS = 21
"""MLAS on ARM scales it into [2^21, 2^22), which fits int32 with both products."""
NEON_RATIOS = (np.float32(2.0**-14), np.float32(2.0**8))
"""Both ratios must lie in [low, high), or MLAS computes in float32."""
NEON_SHIFTS = range(13, 32)


def exact_sum(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    bounds: tuple[int, int] = ALL_CODES,
) -> Int8Array:
    """(a_scale (a - za) + b_scale (b - zb)) / y_scale in float64, rounded half to even."""
    real = (a.astype(np.float64) - a_params.zero_point) * float(a_params.scale)
    real += (b.astype(np.float64) - b_params.zero_point) * float(b_params.scale)
    return saturate(np.rint(real / float(y_params.scale)) + y_params.zero_point, *bounds)


def xnnpack_sum(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    bounds: tuple[int, int] = ALL_CODES,
) -> Int8Array:
    """LiteRT: 20-bit multipliers, arithmetic shift, half rounds up (qs8-vadd, minmax)."""
    a_multiplier, b_multiplier, shift = add_multipliers(
        _ratio(a_params, y_params), _ratio(b_params, y_params), XNNPACK_BITS
    )
    accumulator = _accumulate(a, a_params, a_multiplier)
    accumulator += _accumulate(b, b_params, b_multiplier)
    return saturate(_rounded_shift(accumulator, shift) + y_params.zero_point, *bounds)


def mlas_sum(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    bounds: tuple[int, int] = ALL_CODES,
) -> Int8Array:
    """ONNX Runtime on x86-64: fma(a, ra, fma(b, rb, zy - fma(za, ra, rb zb))) on uint8 codes
    (qladd_avx2.cpp)."""
    # A product of an 8-bit and a 24-bit number is exact in float64, so float64 followed by one
    # rounding to float32 is a fused multiply-add (up to float64's own rounding, 2^-29 of it).
    a_ratio, b_ratio = (np.float64(_ratio(one, y_params)) for one in (a_params, b_params))
    za, zb, zy = (p.zero_point + 128 for p in (a_params, b_params, y_params))
    offset = np.float32(zy) - np.float32(za * a_ratio + np.float64(np.float32(b_ratio * zb)))
    inner = ((b.astype(np.float64) + 128) * b_ratio + np.float64(offset)).astype(np.float32)
    outer = ((a.astype(np.float64) + 128) * a_ratio + inner).astype(np.float32)
    return saturate(np.rint(outer) - np.float32(128), *bounds)


def mlas_neon_sum(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    bounds: tuple[int, int] = ALL_CODES,
) -> Int8Array:
    """ONNX Runtime on ARM: 21-bit multipliers, half rounds away from zero (qladd.cpp, NEON)."""
    ratios = _ratio(a_params, y_params), _ratio(b_params, y_params)
    a_multiplier, b_multiplier, shift = add_multipliers(*ratios, NEON_BITS)
    low, high = NEON_RATIOS
    fixed = all(low <= ratio < high for ratio in ratios) and shift in NEON_SHIFTS
    if not fixed or max(a_multiplier, b_multiplier) >> (NEON_BITS + 1):
        return _float_sum(a, b, a_params, b_params, y_params, bounds)
    accumulator = _accumulate(a, a_params, a_multiplier)
    accumulator += _accumulate(b, b_params, b_multiplier)
    accumulator -= accumulator < 0  # so that a negative half goes down
    return saturate(_rounded_shift(accumulator, shift) + y_params.zero_point, *bounds)


def add_multipliers(a_ratio: np.float32, b_ratio: np.float32, bits: int) -> tuple[int, int, int]:
    """Fixed-point (a multiplier, b multiplier, shift) for a sum; ratio = input / output scale.

    The larger multiplier is in [2^bits, 2^(bits + 1)]; both are ratio * 2^shift, rounded half to
    even.
    """
    exponent = int(np.frexp(max(a_ratio, b_ratio))[1]) - 1
    shift = bits - exponent
    a_multiplier, b_multiplier = (
        int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in (a_ratio, b_ratio)
    )
    return a_multiplier, b_multiplier, shift


def _rounded_shift(accumulator: NDArray[np.int64], shift: int) -> NDArray[np.int64]:
    """accumulator / 2^shift, half rounds up; ``shift`` is at least 1."""
    return (accumulator + (1 << (shift - 1))) >> shift


def _ratio(params: ActivationParams, y_params: ActivationParams) -> np.float32:
    return np.float32(params.scale / y_params.scale)


def _accumulate(x: Int8Array, params: ActivationParams, multiplier: int) -> NDArray[np.int64]:
    product: NDArray[np.int64] = np.multiply(x, multiplier, dtype=np.int64)
    product -= params.zero_point * multiplier
    return product


def _float_sum(
    a: Int8Array,
    b: Int8Array,
    a_params: ActivationParams,
    b_params: ActivationParams,
    y_params: ActivationParams,
    bounds: tuple[int, int],
) -> Int8Array:
    """MLAS where fixed point does not reach (MlasQLinearAddKernelRawHelper), as compiled for arm64:
    fma(a_scale, a - za, b_scale (b - zb)) / y_scale in float32, clipped, + zy on uint8 codes."""
    zy = np.float32(y_params.zero_point + 128)
    b_real = (b.astype(np.float32) - np.float32(b_params.zero_point)) * b_params.scale
    a_steps: NDArray[Any] = a.astype(np.float64) - a_params.zero_point
    # Exact product and one rounding, as in `mlas_sum`.
    real = (a_steps * np.float64(a_params.scale) + b_real).astype(np.float32)
    steps = np.clip(real / y_params.scale, -zy, np.float32(255) - zy)
    return saturate(np.rint(steps + zy) - np.float32(128), *bounds)
