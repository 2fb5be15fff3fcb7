"""Requantisation, sums, products and means against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.quantize.arithmetic import (
    activation_bounds,
    dequantize,
    quantize,
    requantize,
    requantize_multiplier,
)
from patchdeploy.quantize.model import ActivationParams
from patchdeploy.quantize.runtimes import MACHINES, REFERENCE
from patchdeploy.quantize.sums import NEON_BITS, XNNPACK_BITS, add_multipliers

RUNTIMES = [one for machine in MACHINES.values() for one in machine.values()]

codes = st.integers(-128, 127)
scales = st.floats(2.0**-8, 2.0**-2, width=32)
params = st.builds(lambda s, z: ActivationParams(np.float32(s), z), scales, codes)


def rounded(value: Fraction, zero_point: int) -> int:
    """Round half to even, add the zero point, saturate: Python's round() of a Fraction is exact."""
    return max(-128, min(127, round(value) + zero_point))


def exact(value: float | np.floating) -> Fraction:
    return Fraction(float(value))


def one(code: int) -> np.ndarray:
    return np.array([code], np.int8)


@given(st.integers(-(2**24), 2**24), st.floats(2.0**-32, 255.0, width=32), codes)
def test_requantisation_rounds_the_float32_product_half_to_even(
    accumulator, multiplier, zero_point
):
    # |accumulator| <= 2^24 is exact in float32, so one rounding is left: the product's.
    product = np.float32(np.float32(accumulator) * np.float32(multiplier))
    found = requantize(np.array([accumulator]), np.array([multiplier], np.float32), zero_point)
    assert found[0] == rounded(exact(product), zero_point)


@given(st.integers(-(2**31), 2**31 - 1), codes)
def test_an_accumulator_beyond_2_24_is_rounded_to_float32_once(accumulator, zero_point):
    multiplier = np.array([2.0**-25], np.float32)
    expected = rounded(exact(np.float32(accumulator)) / 2**25, zero_point)
    for dtype in (np.int32, np.float64):
        assert requantize(np.array([accumulator], dtype), multiplier, zero_point)[0] == expected


@pytest.mark.parametrize(("accumulator", "code"), [(1, 0), (3, 2), (5, 2), (-1, 0), (-3, -2)])
def test_halves_go_to_the_even_code(accumulator, code):
    assert requantize(np.array([accumulator]), np.array([0.5], np.float32), 0)[0] == code


def test_the_multiplier_divides_last_and_rounds_each_operation():
    x, w, y = np.float32(0.1), np.array([0.3], np.float32), np.float32(0.7)
    product = np.float32(exact(x) * exact(w[0]))
    assert requantize_multiplier(x, w, y)[0] == np.float32(exact(product) / exact(y))


@given(codes, codes, params, params, params)
def test_a_sum_is_the_rounded_rational_sum(a, b, a_params, b_params, y_params):
    real = exact(a_params.scale) * (a - a_params.zero_point)
    real = (real + exact(b_params.scale) * (b - b_params.zero_point)) / exact(y_params.scale)
    if near_half(real):
        return
    found = REFERENCE.add(one(a), one(b), a_params, b_params, y_params)
    assert found[0] == rounded(real, y_params.zero_point)


@given(codes, codes, params, params, params)
def test_runtime_sums_stay_within_one_step_of_the_reference(a, b, a_params, b_params, y_params):
    reference = int(REFERENCE.add(one(a), one(b), a_params, b_params, y_params)[0])
    for arithmetic in RUNTIMES:
        found = int(arithmetic.add(one(a), one(b), a_params, b_params, y_params)[0])
        assert abs(found - reference) <= 1  # derived in the module's docstring


@given(codes, codes, params, params, params)
def test_a_product_is_the_rounded_rational_product(a, b, a_params, b_params, y_params):
    real = exact(a_params.scale) * (a - a_params.zero_point)
    real = real * exact(b_params.scale) * (b - b_params.zero_point) / exact(y_params.scale)
    if near_half(real):
        return
    found = int(REFERENCE.multiply(one(a), one(b), a_params, b_params, y_params)[0])
    assert found == rounded(real, y_params.zero_point)
    for arithmetic in RUNTIMES:
        runtime = int(arithmetic.multiply(one(a), one(b), a_params, b_params, y_params)[0])
        assert abs(runtime - found) <= 1


@given(st.integers(1, 9), st.integers(1, 9), params, params, st.integers(0, 2**32 - 1))
def test_a_mean_is_the_rounded_rational_mean(height, width, x_params, y_params, seed):
    x = np.random.default_rng(seed).integers(-128, 128, (1, height, width, 1), np.int8)
    total = int(x.sum(dtype=np.int64)) - x_params.zero_point * x.size
    real = exact(x_params.scale) * total / x.size / exact(y_params.scale)
    if near_half(real):
        return
    found = int(REFERENCE.mean(x, x_params, y_params).item())
    assert found == rounded(real, y_params.zero_point)
    for arithmetic in RUNTIMES:
        assert abs(int(arithmetic.mean(x, x_params, y_params).item()) - found) <= 1


def near_half(real: Fraction) -> bool:
    """Within float64's own error of a rounding boundary: a few roundings of 2^-53, times 2^17."""
    return abs(abs(real) % 1 - Fraction(1, 2)) < Fraction(1, 2**30)


@given(codes, params)
def test_quantising_what_was_dequantised_gives_the_code_back(code, one_params):
    assert quantize(dequantize(one(code), one_params), one_params)[0] == code


ratios = st.floats(2.0**-9, 255.0, width=32)


@given(ratios, ratios, st.sampled_from([XNNPACK_BITS, NEON_BITS]))
def test_the_larger_multiplier_of_a_sum_has_one_bit_more_than_asked_for(a_ratio, b_ratio, bits):
    a, b, shift = add_multipliers(np.float32(a_ratio), np.float32(b_ratio), bits)
    assert 2**bits <= max(a, b) <= 2 ** (bits + 1)
    # Rounding to a whole multiplier loses at most half a unit of 2^-shift.
    assert abs(Fraction(a, 1) / Fraction(2) ** shift - exact(a_ratio)) <= Fraction(1, 2) / 2**shift


def test_fused_activations_bound_the_codes():
    params_here = ActivationParams(np.float32(0.05), -20)
    assert activation_bounds("none", params_here) == (-128, 127)
    assert activation_bounds("hard_sigmoid", params_here) == (-128, 127)
    assert activation_bounds("relu", params_here) == (-20, 127)
    assert activation_bounds("relu6", params_here) == (-20, 100)
    six = ActivationParams(np.float32(6.0 / 255.0), -128)
    assert activation_bounds("relu6", six) == (-128, 127)
