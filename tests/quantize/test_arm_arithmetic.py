"""ARM's sums and products against slow forms in whole numbers, written from the runtimes' sources.

`test_runtime_arithmetic.py` compares the same functions with the runtimes themselves, where they
run: in ``make arm``.
"""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdeploy.errors import ConfigError
from patchdeploy.quantize.model import ActivationParams
from patchdeploy.quantize.pointwise import CODES
from patchdeploy.quantize.runtimes import (
    MACHINES,
    MLAS,
    MLAS_ARM,
    REFERENCE,
    XNNPACK,
    XNNPACK_ARM,
    arithmetic_of,
    this_machine,
)

F32 = np.float32
PAIRS = tuple(part.reshape(-1) for part in np.meshgrid(CODES, CODES))

SUMS = [(0.05, -3, 0.11, 20, 0.13, 7), (0.25, 0, 0.125, -128, 0.25, 127), (2**-10, 5, 1, -9, 1, 0)]
"""Scale and zero point of a, b and y: uneven, exact halves, and the least ratio that is written."""
BEYOND = [
    (300, 1, 1, 0, 1, -50),  # a ratio of 2^8 and more
    (0.7, 30, 2**-15, 0, 1, 0),  # one below 2^-14
    (0.0003, 0, 0.0004, -7, 1, 3),  # a shift above 31
    (1.99999994, -77, 0.3, 4, 1, -20),  # a multiplier that rounds up to 2^22
]
PRODUCTS = [(0.05, -3, 0.11, 20, 0.13, 7), (0.5, 1, 0.25, -2, 2, 0), (16, 9, 15, -9, 1, 0)]
"""Uneven, exact halves, and a ratio of 240, whose shift is to the left."""

codes = st.integers(-128, 127)


def params(case: tuple[float, ...]) -> tuple[ActivationParams, ...]:
    return tuple(
        ActivationParams(F32(s), int(z)) for s, z in zip(case[::2], case[1::2], strict=True)
    )


def clip(code: int) -> int:
    return max(-128, min(127, code))


def nearest_float32(value: Fraction) -> np.float32:
    """Rounded once, half to even: of float32's neighbours of ``value``, the nearest."""
    guess = F32(float(value))
    near = [np.nextafter(guess, F32(-np.inf)), guess, np.nextafter(guess, F32(np.inf))]
    even = [one.view(np.uint32) & 1 for one in near]
    gaps = [(abs(Fraction(float(x)) - value), odd) for x, odd in zip(near, even, strict=True)]
    return near[gaps.index(min(gaps))]


def slow_sum(a: int, b: int, case: tuple[ActivationParams, ...]) -> int:
    """qladd.cpp on ARM: int32 products, half away from zero; or float32."""
    a_params, b_params, y_params = case
    ratios = [Fraction(float(F32(one.scale / y_params.scale))) for one in case[:2]]
    shift = 21
    while max(ratios) * 2**shift < 2**21:
        shift += 1
    while max(ratios) * 2**shift >= 2**22:
        shift -= 1
    left, right = (round(ratio * 2**shift) for ratio in ratios)
    within = all(Fraction(1, 2**14) <= ratio < 256 for ratio in ratios)
    if not within or not 13 <= shift <= 31 or max(left, right) >= 2**22:
        return slow_float_sum(a, b, case)
    total = (a - a_params.zero_point) * left + (b - b_params.zero_point) * right
    assert abs(total) < 2**31
    steps = (abs(total) * 2 + 2**shift) // 2 ** (shift + 1)
    return clip((steps if total >= 0 else -steps) + y_params.zero_point)


def slow_float_sum(a: int, b: int, case: tuple[ActivationParams, ...]) -> int:
    """MlasQLinearAddKernelRawHelper on uint8 codes, its first product fused into the sum."""
    a_params, b_params, y_params = case
    right = F32(F32(b - b_params.zero_point) * b_params.scale)
    exact = (a - a_params.zero_point) * Fraction(float(a_params.scale)) + Fraction(float(right))
    zero_point = y_params.zero_point + 128
    steps = F32(nearest_float32(exact) / y_params.scale)
    steps = min(max(steps, F32(-zero_point)), F32(255 - zero_point))
    return int(np.rint(F32(steps + F32(zero_point)))) - 128


def slow_product(a: int, b: int, case: tuple[ActivationParams, ...]) -> int:
    """qs8-vmul, rndnu: shift left, doubled high half, rounding shift right, each in int32."""
    a_params, b_params, y_params = case
    ratio = F32(F32(a_params.scale * b_params.scale) / y_params.scale)
    bits = int(ratio.view(np.uint32))
    multiplier = ((bits & 0x7FFFFF) | 0x800000) << 7
    shift = 126 - (bits >> 23)
    after = max(shift, 1)
    wide = ((a - a_params.zero_point) * (b - b_params.zero_point)) << (after - shift)
    assert abs(wide) < 2**31
    high = floor(Fraction(2 * wide * multiplier, 2**32))
    return clip(((high + 2 ** (after - 1)) >> after) + y_params.zero_point)


@pytest.mark.parametrize("case", [params(one) for one in SUMS])
def test_a_sum_on_arm_equals_the_slow_form_over_every_pair_of_codes(case):
    found = MLAS_ARM.add(*PAIRS, *case)
    slow = [slow_sum(a, b, case) for a, b in zip(*(x.tolist() for x in PAIRS), strict=True)]
    assert found.tolist() == slow
    assert np.abs(found.astype(int) - REFERENCE.add(*PAIRS, *case)).max() <= 1


@pytest.mark.parametrize("case", [params(one) for one in BEYOND])
def test_a_sum_beyond_the_reach_of_fixed_point_is_computed_in_float32(case):
    a, b = (x[::17] for x in PAIRS)  # 17 is odd: every code of both
    pairs = list(zip(a.tolist(), b.tolist(), strict=True))
    found = MLAS_ARM.add(a, b, *case).tolist()
    assert found == [slow_sum(*pair, case) for pair in pairs]
    assert found == [slow_float_sum(*pair, case) for pair in pairs]


@pytest.mark.parametrize("case", [params(one) for one in PRODUCTS])
def test_a_product_on_arm_equals_the_slow_form_over_every_pair_of_codes(case):
    found = XNNPACK_ARM.multiply(*PAIRS, *case)
    slow = [slow_product(a, b, case) for a, b in zip(*(x.tolist() for x in PAIRS), strict=True)]
    assert found.tolist() == slow
    assert np.abs(found.astype(int) - REFERENCE.multiply(*PAIRS, *case)).max() <= 1


# Every ratio that a bundle may have: `quantize.ranges`.
sum_ratios = st.floats(2.0**-10, 255.0, width=32)
product_ratios = st.floats(2.0**-16, 255.0, width=32)
unit = ActivationParams(F32(1), 0)


@given(codes, codes, sum_ratios, sum_ratios, codes, codes, codes)
def test_any_sum_on_arm_equals_the_slow_form(a, b, a_ratio, b_ratio, za, zb, zy):
    case = params((a_ratio, za, b_ratio, zb, 1, zy))
    found = MLAS_ARM.add(np.array([a], np.int8), np.array([b], np.int8), *case)[0]
    assert found == slow_sum(a, b, case)


@given(codes, codes, product_ratios, codes, codes, codes)
def test_any_product_on_arm_equals_the_slow_form(a, b, ratio, za, zb, zy):
    case = params((ratio, za, 1, zb, 1, zy))
    found = XNNPACK_ARM.multiply(np.array([a], np.int8), np.array([b], np.int8), *case)[0]
    assert found == slow_product(a, b, case)


def test_the_two_machines_differ_where_they_should_and_nowhere_else():
    sums, products = params(SUMS[1]), params(PRODUCTS[1])
    assert (MLAS_ARM.add(*PAIRS, *sums) != MLAS.add(*PAIRS, *sums)).any()
    assert (XNNPACK_ARM.multiply(*PAIRS, *products) != XNNPACK.multiply(*PAIRS, *products)).any()
    assert XNNPACK_ARM.add is XNNPACK.add
    assert MLAS_ARM.multiply is MLAS.multiply


@pytest.mark.parametrize(
    ("machine", "kind"),
    [
        ("x86_64", "x86-64"),
        ("AMD64", "x86-64"),
        ("aarch64", "arm64"),  # Linux
        ("arm64", "arm64"),  # macOS
        ("ARM64", "arm64"),  # Windows
        ("riscv64", "x86-64"),
    ],
)
def test_the_arithmetic_is_that_of_the_processor(monkeypatch, machine, kind):
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert this_machine() == kind
    for name in ("tflite", "onnx"):
        assert arithmetic_of(name) is MACHINES[kind][name]
        assert arithmetic_of(name, "arm64") is MACHINES["arm64"][name]
    assert arithmetic_of("another", "arm64") is REFERENCE


def test_an_unknown_machine_is_refused_by_name():
    with pytest.raises(ConfigError) as refused:
        arithmetic_of("onnx", "arm")
    assert str(refused.value) == (
        "arithmetic of machine 'arm'; the reference computes as one of x86-64, arm64 does; choose "
        "one, or leave it out for this machine's"
    )
