"""Point-wise functions of one int8 value, as tables of 256 codes.

In: the kind, the parameters of input and output. Out: int8 [256], indexed by code + 128.
ONNX Runtime and XNNPACK compute a sigmoid in float32; LiteRT computes hard-swish in 16-bit
fixed point (its XNNPACK delegate does not take it), which differs from the exact value by at
most 1 LSB; ONNX Runtime dequantises, computes in float32 and quantises.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchdeploy.graph import PointwiseKind
from patchdeploy.quantize.arithmetic import Int8Array, dequantize, quantize, saturate
from patchdeploy.quantize.model import ActivationParams

CODES: Int8Array = np.arange(-128, 128).astype(np.int8)
HIRES_BITS = 7
"""LiteRT's hard-swish works on (code - zero_point) * 2^7 in int16."""
RELUISH_SCALE = np.float32(3.0 / 32768.0)


def exact_table(
    kind: PointwiseKind, x_params: ActivationParams, y_params: ActivationParams
) -> Int8Array:
    """int8 [256]: the output code of every input code, at index code + 128; float64."""
    exact = (CODES.astype(np.float64) - x_params.zero_point) * float(x_params.scale)
    steps = _evaluate(kind, exact) / float(y_params.scale)
    return saturate(np.rint(steps) + y_params.zero_point)


def litert_table(
    kind: PointwiseKind, x_params: ActivationParams, y_params: ActivationParams
) -> Int8Array:
    """`exact_table` as LiteRT rounds it."""
    if kind == "hard_swish":
        return _hard_swish_fixed_point(x_params, y_params)
    return onnxruntime_table(kind, x_params, y_params)


def onnxruntime_table(
    kind: PointwiseKind, x_params: ActivationParams, y_params: ActivationParams
) -> Int8Array:
    """`exact_table` as ONNX Runtime rounds it."""
    x = dequantize(CODES, x_params)
    if kind == "sigmoid":
        return quantize(_evaluate(kind, x.astype(np.float64)).astype(np.float32), y_params)
    gate = x * np.float32(1 / 6) + np.float32(0.5)
    return quantize(x * np.clip(gate, np.float32(0), np.float32(1)), y_params)


def apply_table(codes: Int8Array, table: Int8Array) -> Int8Array:
    """int8 of ``codes``' shape: each code replaced by its entry of ``table``."""
    return table[codes.astype(np.int16) + 128]


def _evaluate(kind: PointwiseKind, x: NDArray[np.float64]) -> NDArray[np.float64]:
    if kind == "sigmoid":
        # exp of a negative number only, so that nothing overflows.
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0 / (1.0 + small), small / (1.0 + small))
    return x * np.clip(x + 3.0, 0.0, 6.0) / 6.0


def _hard_swish_fixed_point(x_params: ActivationParams, y_params: ActivationParams) -> Int8Array:
    """TFLite's int8 HARD_SWISH (reference_ops/hard_swish.h), on every code.

    x is taken to int16 at 2^7 steps; x / y_scale and the gate relu6(x + 3) / 6 (in Q15) are
    rounded products by 16-bit multipliers; their product is truncated, shifted and rounded.
    """
    hires_scale = np.float32(np.float32(1 / (1 << HIRES_BITS)) * x_params.scale)
    y_multiplier, y_exponent = _int16_multiplier(float(hires_scale / y_params.scale))
    gate_multiplier, gate_exponent = _int16_multiplier(
        float(np.float32(hires_scale / RELUISH_SCALE))
    )
    hires = (CODES.astype(np.int64) - x_params.zero_point) << HIRES_BITS
    preshift = _doubling_high_product(hires, y_multiplier)
    gate = _clip_int16(hires << max(gate_exponent - 1, 0))
    gate = _doubling_high_product(gate, gate_multiplier)
    if gate_exponent > 0:
        gate = _clip_int16(gate << 1)
    gate = _rounded_shift(gate, max(-gate_exponent, 0))
    gate = (gate + (1 << 15)) >> 1
    product = gate * preshift
    truncated = _clip_int16(np.where(product >= 0, product >> 15, -((-product) >> 15)))
    steps = _rounded_shift(truncated, max(-y_exponent, 0))
    return saturate(steps + y_params.zero_point)


def _int16_multiplier(real: float) -> tuple[int, int]:
    """(m, e) with real ~ m / 2^15 * 2^e, m in [2^14, 2^15): TFLite's QuantizeMultiplier, halved."""
    fraction, exponent = np.frexp(real)
    q31 = int(np.floor(float(fraction) * 2.0**31 + 0.5))
    if q31 == 1 << 31:
        q31, exponent = q31 // 2, exponent + 1
    return min((q31 + (1 << 15)) >> 16, 0x7FFF), int(exponent)


def _clip_int16(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.clip(values, -32768, 32767)


def _doubling_high_product(values: NDArray[np.int64], multiplier: int) -> NDArray[np.int64]:
    """round(values * multiplier / 2^15), half away from zero: gemmlowp's int16 rounding."""
    product = values * multiplier
    nudged = product + np.where(product >= 0, 1 << 14, 1 - (1 << 14))
    return _clip_int16(np.where(nudged >= 0, nudged >> 15, -((-nudged) >> 15)))


def _rounded_shift(values: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """values / 2^bits, half away from zero (gemmlowp's RoundingDivideByPOT)."""
    mask = (1 << bits) - 1
    threshold = (mask >> 1) + (values < 0)
    return (values >> bits) + ((values & mask) > threshold)
