"""Codes to values: the frozen arithmetic, exact coding, and every rule of a value."""

import hashlib
import struct
from dataclasses import replace
from decimal import Decimal, localcontext
from functools import cache

import numpy as np
import pytest
import slow_decoder
from coding_cases import (
    SIDES,
    assert_same,
    layout_of,
    real_case,
    tiny_table,
    tiny_values,
    uniform_steps,
    with_classes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.coding.decode import PatchCodes, ResolutionCodes, decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import (
    EXACT_BIASES,
    EXACT_SCALES,
    RATIOS,
    CodingSteps,
    bias_units,
    bits_of,
    check_steps,
    exact_steps,
    scales_from,
)
from patchdeploy.coding.grid import CodedRows as Rows
from patchdeploy.coding.layout import masked_head_rows, masked_scale
from patchdeploy.errors import PatchRefusedError
from patchdeploy.slots import PatchValues

CASES = [
    ("conv_stack", False),
    ("conv_stack", True),
    ("residual", False),
    ("squeeze_excitation", True),
    ("grouped_dilated", True),
]
END = "; pack the task again with its base"


# -- the arithmetic --------------------------------------------------------------------------------


def test_roots_are_the_nearest_float64_and_ratios_are_products_of_them():
    with localcontext() as context:
        context.prec = 60
        for bit in range(8):
            exact = Decimal(2) ** (Decimal(2**bit) / 256)
            assert RATIOS[1 << bit] == float(exact)  # float() of a Decimal is rounded correctly
        for i in range(256):
            exact = Decimal(2) ** (Decimal(i) / 256)
            # A root is rounded once and each product of them once: 2 bits - 1 roundings of at
            # most 2^-53 of the value, 15 at most, which is within 8 of its last places.
            roundings = max(0, 2 * i.bit_count() - 1)
            error = abs(Decimal(float(RATIOS[i])) / exact - 1)
            assert error <= roundings * Decimal(2) ** -53 * (1 + Decimal(2) ** -40)


def test_ratios_are_frozen():
    """They are the format: a change breaks every patch that is out."""
    assert RATIOS.dtype == np.float64
    assert RATIOS.tolist() == slow_decoder.RATIOS
    assert hashlib.sha256(RATIOS.astype("<f8").tobytes()).hexdigest() == FROZEN_RATIOS


FROZEN_RATIOS = "ca971808b899e338de49841dbd24b5253b1a55cd5ac34831d60d07c6c5af3a68"


@cache
def steep_table():
    """Slopes so steep that sums cancel, and the order of operations tells."""
    table, rng = tiny_table(), np.random.default_rng(11)
    count = table.layout.rows
    slope = rng.choice([-1, 1], count) * 2.0 ** rng.uniform(44, 48, count)
    beta = rng.normal(0, 1, count)
    return replace(table, slope=slope.astype(np.float32), beta=beta.astype(np.float32))


def test_where_sums_cancel_the_order_of_operations_decides_and_it_is_that_of_the_page():
    table = steep_table()
    rows, rng = Rows.of(table, 4), np.random.default_rng(3)
    steps = CodingSteps((3,) * 4, (4,) * 4)
    told = 0
    for _ in range(50):
        n = rng.integers(-200, 200, len(rows.scale))
        scale = scales_from(n, steps, rows)
        x = rng.uniform(0.02, 0.05, 5).astype(np.float32)
        m = np.rint(-rows.slope * scale.astype(np.float64) / 2.0**4).astype(np.int64)
        m += rng.integers(-(2**10), 2**10, len(m))
        units = bias_units(m, scale, x, steps, rows)
        for k in range(len(m)):
            s, x_scale = float(scale[k]), float(x[rows.x[k]])
            assert s == slow_decoder.decode_scale(float(rows.scale[k]), int(n[k]), 3)
            beta, slope = float(rows.beta[k]), float(rows.slope[k])
            shift = float(m[k]) * 2.0**4
            assert units[k] == round(((beta + shift) + slope * s) / (x_scale * s))
            told += units[k] != round((beta + (shift + slope * s)) / (x_scale * s))
    assert told > 50  # of 600: another order would have been noticed


@settings(deadline=None)
@given(
    st.integers(-(2**39), 2**39),
    st.sampled_from([0, 1, 5, 12, 255]),
    st.floats(2.0**-126, 2.0**127, width=32),
)
def test_a_scale_is_the_slow_decoders_or_no_scale_in_both(n, t, reference):
    table = replace(tiny_table(), scale=np.full(12, reference, np.float32))
    found = scales_from(np.full(12, n), uniform_steps(table, t, 0), Rows.of(table, 4))[0]
    try:
        expected = slow_decoder.decode_scale(reference, n, t)
    except slow_decoder.Refused:
        assert not (np.isfinite(found) and found >= 2.0**-126)
    else:
        assert found == expected


@settings(deadline=None)
@given(st.integers(-(2**36), 2**36), st.integers(-126, 127), st.floats(-1e6, 1e6, width=32))
def test_a_bias_is_the_slow_decoders_or_too_large_in_both(m, e, beta):
    table = replace(tiny_table(), beta=np.full(12, beta, np.float32))
    rows = Rows.of(table, 4)
    scale = rows.scale.astype(np.float32)
    x = np.full(5, 0.03, np.float32)
    units = bias_units(np.full(12, m), scale, x, uniform_steps(table, 0, e), rows)
    for k in range(12):
        given_ = (float(rows.slope[k]), float(scale[k]), float(x[0]))
        try:
            expected = slow_decoder.decode_bias(m, e, float(beta), *given_)
        except slow_decoder.Refused:
            assert abs(units[k]) > 2**31 - 1
        else:
            assert units[k] == expected


# -- exact coding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("case", CASES)
def test_exact_coding_gives_back_every_bit_of_a_real_task(case, count):
    _, table, values = real_case(*case)
    values = {px: values[px] for px in SIDES[:count]}
    for classes in (2, 7):
        task = with_classes(values, classes, table)
        codes = encode_values(task, classes, table, exact_steps(table))
        decoded = decode_values(codes, table)
        assert list(decoded) == list(task)
        for px, one in task.items():
            assert_same(decoded[px], one)
    other = with_classes(real_case(*case, seed=2)[2], 7, table)
    assert other[SIDES[0]].bias.tobytes() != decoded[SIDES[0]].bias.tobytes()


@st.composite
def any_values(draw, classes: int) -> PatchValues:
    """Values of every magnitude that a runtime takes, over `tiny_table`."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    table, layout = tiny_table(), tiny_table().layout
    width = draw(st.sampled_from([0, 3, 40]))
    activation = np.exp2(rng.uniform(-width, width, layout.sites)).astype(np.float32)
    x = np.array([conv.x_index for conv in table.convs])[table.row_conv]
    y = np.array([conv.y_index for conv in table.convs])[table.row_conv]
    multiplier = np.exp2(rng.uniform(-31.9, 7.9, layout.rows))
    scale = (multiplier * activation[y].astype(np.float64) / activation[x]).astype(np.float32)
    bias = rng.integers(-(2**31) + 1, 2**31, layout.rows).astype(np.int32)
    small = draw(st.booleans())
    values = PatchValues(
        weight_scale=scale,
        bias=bias >> 16 if small else bias,
        activation_scale=activation,
        activation_zero_point=rng.integers(-128, 128, layout.sites, np.int8),
        weights=rng.integers(-127, 128, layout.elements, np.int8),
    )
    return masked_head_rows(values, classes, layout)


@settings(deadline=None)
@given(st.data(), st.integers(2, 4), st.integers(1, 3))
def test_exact_coding_gives_back_every_bit_of_any_values(data, classes, count):
    table = tiny_table()
    task = {px: data.draw(any_values(classes)) for px in SIDES[:count]}
    decoded = decode_values(encode_values(task, classes, table, exact_steps(table)), table)
    for px, one in task.items():
        assert_same(decoded[px], one)


@pytest.mark.parametrize("steps", [(255, -128), (4, -8)])
def test_one_resolution_alone_decodes_as_among_all(steps):
    table = tiny_table()
    task = {px: tiny_values(3, px) for px in SIDES}
    codes = encode_values(task, 3, table, uniform_steps(table, *steps))
    every = decode_values(codes, table)
    for px in SIDES:
        alone = decode_values(codes, table, px)
        assert list(alone) == [px]
        assert_same(alone[px], every[px])


def test_spare_head_rows_are_masked_and_the_rows_after_the_head_are_coded():
    table, values = tiny_table(), tiny_values(2)
    decoded = decode_values(encode_values({16: values}, 2, table, exact_steps(table)), table)[16]
    x, y = values.activation_scale[[2, 3]]
    assert (decoded.weight_scale[8:10] == np.float32(np.float32(y / x) / 256)).all()
    assert (decoded.bias[8:10] == -131072).all()
    assert not decoded.weights[33:39].any()
    assert decoded.weights[39:].any()
    assert (decoded.weight_scale[10:] == values.weight_scale[10:]).all()


# -- every rule of a value -------------------------------------------------------------------------


def refused(codes: PatchCodes, table=None) -> str:
    with pytest.raises(PatchRefusedError) as caught:
        decode_values(codes, table or tiny_table())
    assert caught.value.code == "values"
    return str(caught.value)


def coded(classes: int = 3, sides: int = 1, steps=(EXACT_SCALES, EXACT_BIASES)) -> PatchCodes:
    table = tiny_table()
    task = {px: tiny_values(classes, px) for px in SIDES[:sides]}
    return encode_values(task, classes, table, uniform_steps(table, *steps))


def changed(codes: PatchCodes, px: int, name: str, place: int, value: int) -> PatchCodes:
    """``codes`` whose code at ``place`` of the first resolution is another."""
    one = codes.resolutions[px]
    array = getattr(one, name).copy()
    array[place] = value
    return replace(codes, resolutions={**codes.resolutions, px: replace(one, **{name: array})})


BAD_BITS = {
    "nan": 0x7FC00000,
    "inf": 0x7F800000,
    "0.0": 0,
    "1.1754942e-38": 0x007FFFFF,
}
SCALE_RULE = "it must be a finite, positive, normal float32" + END


@pytest.mark.parametrize("shown", BAD_BITS)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_activation_scale_that_is_none_is_refused(place, shown):
    codes = changed(coded(), 24, "activation_scales", place, BAD_BITS[shown] - 0x3D000000)
    assert refused(codes) == (
        f"patch refused (values): 24 px activation_scale[{place}] is {shown}; {SCALE_RULE}"
    )


@pytest.mark.parametrize("bits", [-1, 2**31, 2**31 + 0x3F800000, -(2**31)])
def test_a_bit_pattern_outside_positive_floats_is_refused_and_never_wraps(bits):
    codes = changed(coded(), 24, "activation_scales", 1, bits - 0x3D000000)
    assert refused(codes) == (
        f"patch refused (values): 24 px activation_scale[1] is nan; {SCALE_RULE}"
    )
    own = int(bits_of(tiny_table().scale)[4])
    codes = changed(coded(), 24, "scales", 4, bits - own)
    assert refused(codes) == f"patch refused (values): 24 px weight_scale[4] is nan; {SCALE_RULE}"


@pytest.mark.parametrize("shown", BAD_BITS)
@pytest.mark.parametrize("place", [0, 5, 10])
def test_a_weight_scale_that_is_none_is_refused(place, shown):
    row = place if place < 9 else place + 1  # one row of the head is spare
    own = int(bits_of(tiny_table().scale)[row])
    codes = changed(coded(), 24, "scales", place, BAD_BITS[shown] - own)
    assert refused(codes) == (
        f"patch refused (values): 24 px weight_scale[{place}] is {shown}; {SCALE_RULE}"
    )


@pytest.mark.parametrize("t", [0, 7, 12])
def test_a_stepped_scale_beyond_float32_is_refused(t):
    high = changed(coded(steps=(t, -8)), 24, "scales", 0, 2**39)
    assert refused(high) == f"patch refused (values): 24 px weight_scale[0] is inf; {SCALE_RULE}"
    low = changed(coded(steps=(t, -8)), 24, "scales", 0, -(2**39))
    assert refused(low) == f"patch refused (values): 24 px weight_scale[0] is 0.0; {SCALE_RULE}"


def test_a_spare_rows_scale_that_is_none_is_refused():
    """y / x of the head reaches beyond float32 while every coded row's multiplier is in range."""
    table, values = tiny_table(), tiny_values(3)
    activation, scale = values.activation_scale.copy(), values.weight_scale.copy()
    activation[2], activation[3], activation[4] = 2.0**-65, 2.0**65, 2.0**-65
    scale[6:9] = np.float32(2.0**126)  # multiplier 2^-65 * 2^126 / 2^65 = 2^-4
    scale[10:] = 1.0
    scale[3:6] = np.float32(2.0**-64)
    wide = replace(values, activation_scale=activation, weight_scale=scale)
    assert masked_scale(activation[2], activation[3]) == np.inf
    codes = encode_values({24: wide}, 3, table, exact_steps(table))
    assert refused(codes) == f"patch refused (values): 24 px weight_scale[9] is inf; {SCALE_RULE}"
    full = encode_values({24: wide}, 4, table, exact_steps(table))
    full = changed(full, 24, "scales", 9, 0x7E800000 - int(bits_of(table.scale)[9]))
    assert decode_values(full, table)[24].weight_scale[9] == 2.0**126  # no spare row: no rule


def with_multiplier(multiplier: float, row: int) -> PatchCodes:
    """Exact codes over `tiny_table` whose ``row`` has this multiplier; x and y are 2^-5."""
    bits = struct.unpack("<I", struct.pack("<f", multiplier))[0]
    codes = coded()
    one = replace(codes.resolutions[24], activation_scales=np.zeros(5, np.int64))
    place = row if row < 9 else row - 1
    codes = replace(codes, resolutions={24: one})
    return changed(codes, 24, "scales", place, bits - int(bits_of(tiny_table().scale)[row]))


@pytest.mark.parametrize("row", [0, 3, 8, 11])
def test_multipliers_are_taken_to_the_very_bounds(row):
    below = float(np.nextafter(np.float32(2.0**-32), np.float32(0)))
    last = float(np.nextafter(np.float32(2.0**8), np.float32(0)))
    for inside in (2.0**-32, 1.0, last):
        found = decode_values(with_multiplier(inside, row), tiny_table())[24]
        assert found.weight_scale[row] == inside
    place = row if row < 9 else row - 1
    for outside in (below, 2.0**8):
        assert refused(with_multiplier(outside, row)) == (
            f"patch refused (values): 24 px x_scale * weight_scale[{place}] / y_scale is "
            f"{outside}; it must be in [2^-32, 2^8)" + END
        )


@pytest.mark.parametrize("place", [0, 5, 10])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_bias_of_more_than_31_bits_is_refused(place, sign):
    most = changed(coded(), 24, "biases", place, sign * (2**31 - 1))
    row = place if place < 9 else place + 1
    assert decode_values(most, tiny_table())[24].bias[row] == sign * (2**31 - 1)
    for beyond in (2**31, 2**32, 2**39):
        assert refused(changed(coded(), 24, "biases", place, sign * beyond)) == (
            f"patch refused (values): 24 px bias[{place}] is {float(sign * beyond)}; it must be an "
            "integer of at most 31 bits" + END
        )


def test_a_derived_bias_of_more_than_31_bits_is_refused():
    codes = changed(coded(steps=(0, 20)), 24, "biases", 2, 2**30)
    message = refused(codes)
    assert message.startswith("patch refused (values): 24 px bias[2] is ")
    assert message.endswith("; it must be an integer of at most 31 bits" + END)


@pytest.mark.parametrize(
    ("name", "place", "element"), [("kernels", 0, 0), ("kernels", 26, 26), ("kernels", 32, 44)]
)
def test_a_kernel_element_of_minus_128_is_refused(name, place, element):
    own = int(tiny_table().kernels[element])
    codes = changed(coded(), 24, name, place, (-128 - own) % 256)
    assert refused(codes) == (
        f"patch refused (values): 24 px weights[{element}] is -128; it must be an int8 in "
        "[-127, 127]" + END
    )
    least = decode_values(changed(coded(), 24, name, place, (-127 - own) % 256), tiny_table())
    assert least[24].weights[element] == -127


@pytest.mark.parametrize("place", [0, 8])
def test_a_head_element_of_minus_128_is_refused_whatever_the_table_says(place):
    assert refused(changed(coded(), 24, "head", place, 128)) == (
        f"patch refused (values): 24 px weights[{27 + place}] is -128; it must be an int8 in "
        "[-127, 127]" + END
    )


def test_a_bad_value_of_a_further_resolution_is_refused_by_its_name():
    codes = coded(sides=2)
    first = codes.resolutions[24].activation_scales[3]
    bad = changed(codes, 18, "activation_scales", 3, -0x3D000000 - int(first))
    assert refused(bad) == (
        f"patch refused (values): 18 px activation_scale[3] is 0.0; {SCALE_RULE}"
    )
    assert_same(decode_values(bad, tiny_table(), 24)[24], decode_values(codes, tiny_table())[24])


@pytest.mark.parametrize(
    ("steps", "expected", "got"),
    [
        (CodingSteps((0,) * 3, (0,) * 4), "4 of scales and 4 of biases", "(3, 4)"),
        (CodingSteps((0,) * 4, (0,) * 5), "4 of scales and 4 of biases", "(4, 5)"),
        (CodingSteps((13, 0, 0, 0), (0,) * 4), "0 to 12 or 255", "(0, 13)"),
        (CodingSteps((0, 0, 254, 0), (0,) * 4), "0 to 12 or 255", "(2, 254)"),
        (CodingSteps((0, 0, 0, -1), (0,) * 4), "0 to 12 or 255", "(3, -1)"),
        (CodingSteps((0,) * 4, (0, -127, 0, 0)), "-126 to 127 or -128", "(1, -127)"),
        (CodingSteps((0,) * 4, (0, 0, 0, 128)), "-126 to 127 or -128", "(3, 128)"),
    ],
)
def test_steps_that_are_none_are_refused(steps, expected, got):
    with pytest.raises(PatchRefusedError) as caught:
        check_steps(steps, tiny_table())
    assert str(caught.value) == (
        f"patch refused (values): steps is {got}; it must be {expected}" + END
    )
    assert caught.value.code == "values"


def test_every_step_that_the_page_names_is_taken():
    for t in (*range(13), 255):
        check_steps(uniform_steps(tiny_table(), t, -126), tiny_table())
    for e in (-128, *range(-126, 128)):
        check_steps(uniform_steps(tiny_table(), 0, e), tiny_table())


def test_codes_of_zero_are_the_tables_own_values():
    table = tiny_table()
    layout = layout_of(table)
    nothing = ResolutionCodes(
        scales=np.zeros(12, np.int64),
        biases=np.zeros(12, np.int64),
        activation_scales=np.zeros(5, np.int64),
        zero_points=np.zeros(5, np.uint8),
        kernels=np.zeros(layout["elements"] - 12, np.uint8),
        head=np.zeros(12, np.uint8),
    )
    found = decode_values(PatchCodes(uniform_steps(table, 12, 0), 4, {24: nothing}), table)[24]
    np.testing.assert_array_equal(found.weight_scale, table.scale)
    unit = 2.0**-5 * table.scale.astype(np.float64)
    expected = (table.beta + table.slope.astype(np.float64) * table.scale) / unit
    np.testing.assert_array_equal(found.bias, np.rint(expected))
    assert (found.activation_scale == 2.0**-5).all()
    assert (found.activation_zero_point == -128).all()
    outside = np.r_[0:27, 39:45]
    np.testing.assert_array_equal(found.weights[outside], table.kernels[outside])
    assert not found.weights[27:39].any()
