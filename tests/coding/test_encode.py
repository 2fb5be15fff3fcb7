"""Values to codes: the nearest ones, and always inside what runtimes take."""

from dataclasses import replace

import numpy as np
import pytest
from coding_cases import SIDES, assert_same, real_case, tiny_table, tiny_values, uniform_steps
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coding import any_values

from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodedRows, CodingSteps, exact_steps
from patchdeploy.errors import PatchRefusedError
from patchdeploy.slots import PatchValues

HALF_FLOAT32 = 2.0**-24
"""Relative error of one rounding to float32."""


def real_shift(values: PatchValues, table, classes: int) -> np.ndarray:
    """bias * x_scale * weight_scale - slope * weight_scale of each coded row: the shift."""
    rows = CodedRows.of(table, classes)
    scale = np.delete(values.weight_scale, rows.spare).astype(np.float64)
    bias = np.delete(values.bias, rows.spare)
    return bias * unit_of(values, table, classes) - rows.slope * scale


def unit_of(values: PatchValues, table, classes: int) -> np.ndarray:
    """x_scale * weight_scale of each coded row."""
    rows = CodedRows.of(table, classes)
    scale = np.delete(values.weight_scale, rows.spare).astype(np.float64)
    return values.activation_scale.astype(np.float64)[rows.x] * scale


def assert_within_half_a_step(found: PatchValues, true: PatchValues, steps, table, classes) -> None:
    rows = CodedRows.of(table, classes)
    t, e = np.array(steps.scale)[rows.conv], np.array(steps.bias)[rows.conv].astype(np.float64)
    one = np.delete(found.weight_scale, rows.spare).astype(np.float64)
    other = np.delete(true.weight_scale, rows.spare).astype(np.float64)
    # The nearest code is half a step away; a decoded scale is rounded to float32 once more.
    bound = np.exp2(t) / 512 + 1.001 * HALF_FLOAT32 / np.log(2)
    assert (np.abs(np.log2(one / other)) <= bound).all()
    moved = real_shift(found, table, classes) - real_shift(true, table, classes)
    # Half a step, and the decoded bias is a whole number of units, half a unit away; the float64
    # sums behind both numbers are within 2^-50 of their largest term.
    units = unit_of(found, table, classes)
    largest = np.abs(rows.slope * one) + np.abs(np.delete(found.bias, rows.spare) * units)
    assert (np.abs(moved) <= np.exp2(e) / 2 + units / 2 + 2.0**-50 * largest).all()


@pytest.mark.parametrize("t", [0, 3, 7, 9])
@pytest.mark.parametrize("case", [("conv_stack", True), ("squeeze_excitation", False)])
def test_a_real_task_decodes_within_half_a_step_of_itself(case, t):
    _, table, values = real_case(*case)
    steps = CodingSteps((t,) * len(table.convs), fine_steps(values, table).bias)
    decoded = decode_values(encode_values(values, 7, table, steps), table)
    for px, one in values.items():
        assert_within_half_a_step(decoded[px], one, steps, table, 7)
        assert decoded[px].weights.tobytes() == one.weights.tobytes()
        assert decoded[px].activation_scale.tobytes() == one.activation_scale.tobytes()
        assert decoded[px].activation_zero_point.tobytes() == one.activation_zero_point.tobytes()
        assert decoded[px].bias.tobytes() != one.bias.tobytes()  # it was rounded at all


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 12), st.integers(-16, 0), st.integers(2, 4))
def test_any_task_near_its_base_decodes_within_half_a_step_of_itself(seed, t, e, classes):
    table, steps = tiny_table(), uniform_steps(tiny_table(), t, e)
    task = {px: tiny_values(classes, seed + px) for px in SIDES[:2]}
    decoded = decode_values(encode_values(task, classes, table, steps), table)
    for px, one in task.items():
        assert_within_half_a_step(decoded[px], one, steps, table, classes)


def test_steps_differ_by_convolution_and_exact_ones_stand_beside_others():
    table, values = tiny_table(), tiny_values(4)
    steps = CodingSteps((255, 5, 255, 8), (-128, -128, -6, -10))
    found = decode_values(encode_values({16: values}, 4, table, steps), table)[16]
    stem, dw, head, late = (slice(0, 3), slice(3, 6), slice(6, 10), slice(10, 12))
    for rows in (stem, head):
        assert (found.weight_scale[rows] == values.weight_scale[rows]).all()
    for rows in (stem, dw):
        assert (found.bias[rows] == values.bias[rows]).all()
    for rows in (dw, late):
        assert (found.weight_scale[rows] != values.weight_scale[rows]).any()
    for rows in (head, late):
        assert (found.bias[rows] != values.bias[rows]).any()


def test_coding_what_was_decoded_changes_nothing_more():
    table, steps = tiny_table(), uniform_steps(tiny_table(), 6, -6)
    codes = encode_values({24: tiny_values(3), 16: tiny_values(3, 2)}, 3, table, steps)
    once = decode_values(codes, table)
    twice = decode_values(encode_values(once, 3, table, steps), table)
    for px in once:
        assert (twice[px].weight_scale == once[px].weight_scale).all()
        # A bias is a whole number of units: half a unit is less than half a step of 2^-6 here.
        assert (unit_of(once[px], table, 3) < 2.0**-6).all()
        assert_same(twice[px], once[px])


def test_further_resolutions_are_differences_to_the_first_of_the_mapping():
    table = tiny_table()
    one, other = tiny_values(3), tiny_values(3, 2)
    alone = encode_values({16: other}, 3, table, exact_steps(table)).resolutions[16]
    codes = encode_values({24: one, 16: other}, 3, table, exact_steps(table)).resolutions
    np.testing.assert_array_equal(codes[16].scales, alone.scales - codes[24].scales)
    np.testing.assert_array_equal(codes[16].head, alone.head - codes[24].head)
    twins = encode_values({24: one, 16: one}, 3, table, exact_steps(table)).resolutions[16]
    for name in ("scales", "biases", "activation_scales", "zero_points", "kernels", "head"):
        assert not getattr(twins, name).any()


# -- moved inside ----------------------------------------------------------------------------------


def at_multiplier(row: int, multiplier: float, reference: float) -> tuple:
    """`tiny_table` and a task whose ``row`` has this multiplier and reference; x = y = 2^-5."""
    table, values = tiny_table(), tiny_values(4)
    table = replace(table, scale=with_one(table.scale, row, reference))
    flat = replace(
        values,
        activation_scale=np.full(5, 2.0**-5, np.float32),
        weight_scale=with_one(values.weight_scale, row, multiplier),
    )
    return table, flat


def with_one(array: np.ndarray, place: int, value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize("row", [0, 4, 7, 11])
@pytest.mark.parametrize("t", [4, 10])
def test_a_scale_that_rounding_would_carry_below_the_bound_goes_one_step_up(row, t):
    step = 2.0 ** (2**t / 256)
    # 0.4 steps above the reference, which is 0.1 steps below the least: rounds down to it.
    reference = 2.0**-32 / step**0.1
    table, values = at_multiplier(row, 2.0**-32 * step**0.3, reference)
    values = replace(values, bias=with_one(values.bias, row, 0))
    table = replace(table, beta=with_one(table.beta, row, 0), slope=with_one(table.slope, row, 0))
    codes = encode_values({16: values}, 4, table, uniform_steps(table, t, -8))
    assert codes.resolutions[16].scales[row] == 1
    found = decode_values(codes, table)[16].weight_scale[row]
    assert found == np.float32(np.float32(reference) * 2.0 ** (2**t / 256))
    assert found >= 2.0**-32


@pytest.mark.parametrize("row", [0, 4, 7, 11])
@pytest.mark.parametrize("t", [4, 10])
def test_a_scale_that_rounding_would_carry_to_the_upper_bound_goes_one_step_down(row, t):
    step = 2.0 ** (2**t / 256)
    table, values = at_multiplier(row, 2.0**8 / step**0.3, 2.0**8 * step**0.1)
    codes = encode_values({16: values}, 4, table, uniform_steps(table, t, -8))
    assert codes.resolutions[16].scales[row] == -1
    assert decode_values(codes, table)[16].weight_scale[row] < 2.0**8


def test_a_scale_whose_bias_no_longer_fits_an_accumulator_goes_up_until_it_does():
    """A row with a tiny scale and a bias at the limit; half a step less would overflow."""
    table, values = at_multiplier(1, 0.01 * 2.0**-20, 0.01 * 2.0**-20 / 2.0**0.49)
    table = replace(table, slope=with_one(table.slope, 1, 0))
    limit = 2**31 - 1 - 255 * 127 * 27
    values = replace(values, bias=with_one(values.bias, 1, limit - 1))
    steps = uniform_steps(table, 8, -20)  # whole octaves
    codes = encode_values({16: values}, 4, table, steps)
    assert codes.resolutions[16].scales[1] == 1
    found = decode_values(codes, table)[16]
    assert 0 < found.bias[1] <= limit
    moved = np.log2(found.weight_scale[1] / values.weight_scale[1])
    assert 0 < moved <= 1.5


def test_a_scale_beside_an_exact_bias_stays_whatever_the_bias_is():
    """Raising the scale would not shrink a bias that is stored as it is."""
    table, values = tiny_table(), tiny_values(4)
    values = replace(values, bias=with_one(values.bias, 1, 2**31 - 1))
    steps = uniform_steps(table, 4, -128)
    found = decode_values(encode_values({16: values}, 4, table, steps), table)[16]
    assert found.bias[1] == 2**31 - 1
    moved = np.abs(np.log2(found.weight_scale[1] / values.weight_scale[1].astype(np.float64)))
    assert moved <= 2**4 / 512 + 1.001 * HALF_FLOAT32 / np.log(2)


def test_exact_scales_are_never_moved():
    table, values = at_multiplier(1, 2.0**-32, 2.0**-20)
    found = decode_values(encode_values({16: values}, 4, table, exact_steps(table)), table)[16]
    assert_same(found, values)


@settings(deadline=None)
@given(st.data(), st.integers(2, 4), st.integers(0, 12), st.integers(-126, 127))
def test_what_decodes_is_inside_what_runtimes_take(data, classes, t, e):
    """Values of every magnitude and every step: good values, or a typed refusal."""
    table = tiny_table()
    task = {px: data.draw(any_values(classes)) for px in SIDES[:2]}
    try:
        codes = encode_values(task, classes, table, uniform_steps(table, t, e))
        decoded = decode_values(codes, table)
    except PatchRefusedError as error:
        assert error.code == "values"  # noqa: PT017
        return
    x = np.array([conv.x_index for conv in table.convs])[table.row_conv]
    y = np.array([conv.y_index for conv in table.convs])[table.row_conv]
    for values in decoded.values():
        scale, wide = values.weight_scale, values.activation_scale.astype(np.float64)
        assert np.isfinite(scale).all()
        assert (scale >= np.finfo(np.float32).tiny).all()
        multiplier = wide[x] * scale / wide[y]
        assert (multiplier >= 2.0**-32).all()
        assert (multiplier < 2.0**8).all()
        assert (values.bias > -(2**31)).all()
        assert (values.weights > -128).all()


def test_a_shift_that_its_step_cannot_reach_is_refused_not_cut():
    table, values = tiny_table(), tiny_values(4)
    with pytest.raises(PatchRefusedError) as caught:
        encode_values({16: values}, 4, table, uniform_steps(table, 0, -60))
    error = caught.value
    assert (error.code, error.field) == ("values", "16 px shift[0]")
    assert error.expected == "at most 2^33 steps of 2^-60 from the base's"
    assert str(error) == (
        f"patch refused (values): 16 px shift[0] is {error.got}; it must be at most 2^33 steps of "
        "2^-60 from the base's; pack the task again with its base"
    )


def test_encoding_leaves_the_values_alone():
    table, values = tiny_table(), tiny_values(4)
    before = replace(values, weight_scale=values.weight_scale.copy(), bias=values.bias.copy())
    encode_values({16: values}, 4, table, uniform_steps(table, 7, -4))
    assert_same(values, before)
