"""The base's integers: made once, the same for every task."""

from dataclasses import replace

import numpy as np
import pytest
from graph_cases import GRAPH_CASES, conv_stack
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchdeploy.errors import HeadCapacityError, QuantizationError
from patchdeploy.fold import fold_patch
from patchdeploy.quantize.base import (
    WEIGHT_SCALE_FLOOR,
    orient,
    quantize_base,
    quantize_folded_base,
    quantize_kernel,
    row_signs,
)

kernels = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.just(1), st.integers(1, 4)),
    elements=st.floats(-100, 100, width=32, allow_subnormal=False),
)


@given(kernels)
def test_a_kernel_is_within_half_a_step_of_its_codes(weight):
    codes, scales = quantize_kernel("conv", weight)
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max() <= 127
    assert (scales >= np.finfo(np.float32).tiny).all()
    # Half a step, and float32's rounding of the scale: 2^-24 of 127 steps.
    bound = (0.5 + 127 * 2.0**-24) * scales.astype(np.float64)[:, None, None, None]
    assert (np.abs(codes * scales.astype(np.float64)[:, None, None, None] - weight) <= bound).all()


@given(kernels, st.integers(-20, 20))
def test_scaling_rows_by_a_power_of_two_leaves_the_codes_unchanged(weight, exponent):
    # The product is exact in float32, so the codes must be the very same, above the scale floor
    # (2^-100, which rows below 127 * 2^-100 meet by being zero).
    peak = np.abs(weight).reshape(len(weight), -1).max(1)
    assume(((peak == 0) | (peak > 1e-20)).all())
    scaled = np.ldexp(weight, exponent).astype(np.float32)
    np.testing.assert_array_equal(
        quantize_kernel("conv", scaled)[0], quantize_kernel("conv", weight)[0]
    )


@given(kernels, st.floats(2.0**-10, 2.0**10, width=32))
def test_scaling_rows_by_any_positive_number_moves_no_code_that_is_clear_of_a_half(weight, factor):
    # Rows whose scale would fall below the floor (2^-100) take the floor, before or after scaling.
    row_peak = np.abs(weight).reshape(len(weight), -1).max(1)
    assume(((row_peak == 0) | (row_peak > 1e-20)).all())
    scaled = weight * np.float32(factor)
    first, second = quantize_kernel("conv", weight)[0], quantize_kernel("conv", scaled)[0]
    peak = np.abs(weight).reshape(len(weight), -1).max(1).astype(np.float64)
    steps = weight * (127 / np.maximum(peak, 1e-30))[:, None, None, None]
    # Numerator and peak are rounded by 2^-24 each: 127 steps move by at most 127 * 2^-22.
    clear = np.abs(np.abs(steps) % 1 - 0.5) > 127 * 2.0**-22
    clear &= (np.abs(scaled) > 1e-30) | (weight == 0)
    assert (first == second)[clear].all()


def test_a_row_of_zeros_has_a_positive_normal_scale():
    weight = np.zeros((2, 1, 1, 3), np.float32)
    weight[1, 0, 0, 0] = 2.0
    codes, scales = quantize_kernel("conv", weight)
    assert not codes[0].any()
    assert scales[0] == WEIGHT_SCALE_FLOOR
    assert scales[0] >= np.finfo(np.float32).tiny
    assert codes[1, 0, 0, 0] == 127


def test_a_kernel_that_is_not_finite_is_refused_by_name_and_row():
    weight = np.ones((3, 1, 1, 2), np.float32)
    weight[2, 0, 0, 1] = np.nan
    with pytest.raises(QuantizationError) as error:
        quantize_kernel("features.3", weight)
    assert str(error.value) == (
        "kernel of 'features.3' has NaN or infinity in row 2 (1 such rows); every weight must be "
        "finite; restore the checkpoint or train again"
    )


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_only_the_head_belongs_to_tasks_and_has_the_capacity(name):
    graph = GRAPH_CASES[name]()
    base = quantize_base(graph, 11)
    assert base.patch_owned == {graph.head}
    assert base.rows(graph.head) == 11
    assert not base.weights[graph.head].any()
    for conv in graph.convolutions():
        inner = conv.in_channels // conv.groups
        rows = 11 if conv.name == graph.head else conv.out_channels
        assert base.weights[conv.name].shape == (rows, *conv.kernel, inner)
        assert base.weight_scales[conv.name].shape == (rows,)


def test_depthwise_kernels_become_slots_when_asked():
    base = quantize_base(conv_stack(), 10, patch_owned_depthwise=True)
    assert base.patch_owned == {"head", "dw1", "dw2"}
    assert not base.weights["dw1"].any()


def test_constant_depthwise_kernels_stay_in_the_base():
    graph = conv_stack()
    operators = tuple(
        replace(op, is_constant=True) if op.name == "dw1" else op for op in graph.operators
    )
    base = quantize_base(replace(graph, operators=operators), 10, patch_owned_depthwise=True)
    assert base.patch_owned == {"head", "dw2"}


def test_the_integers_do_not_depend_on_the_bases_own_scales():
    graph = conv_stack()
    scales = {"stem.patch_scale": np.linspace(0.1, 3, 8).astype(np.float32)}
    plain = quantize_folded_base(fold_patch(graph), 10)
    scaled = quantize_folded_base(fold_patch(graph, scales), 10)
    for name, kernel in plain.weights.items():
        np.testing.assert_array_equal(kernel, scaled.weights[name])


def test_rows_that_the_base_scales_negatively_are_stored_negated():
    graph = conv_stack()
    signs = np.array([1, -1, 1, 1, -1, 1, 1, 1], np.float32)
    base = quantize_folded_base(fold_patch(graph, {"stem.patch_scale": signs}), 10)
    plain = quantize_folded_base(fold_patch(graph), 10)
    expected = plain.weights["stem"] * signs.astype(np.int8)[:, None, None, None]
    np.testing.assert_array_equal(base.weights["stem"], expected)
    weight = fold_patch(graph).convs["stem"].weight
    np.testing.assert_array_equal(row_signs(base.weights["stem"], weight), signs)
    np.testing.assert_array_equal(orient(base.weights["stem"], signs), plain.weights["stem"])


def test_a_head_without_rows_is_refused():
    with pytest.raises(HeadCapacityError) as error:
        quantize_base(conv_stack(), 0)
    assert str(error.value) == (
        "head capacity 0; the exported head needs at least 1 row; pass the largest number of "
        "classes that a task will have"
    )
