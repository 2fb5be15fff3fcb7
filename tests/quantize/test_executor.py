"""The integer executor against plain loops, against the float network, and against itself."""

import numpy as np
import pytest
from graph_cases import (
    CAPACITY,
    CLASSES,
    GRAPH_CASES,
    make_case,
    random_images,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import DataError
from patchdeploy.graph import Conv2d, MaxPool, infer_shapes, window_output
from patchdeploy.quantize.convolution import accumulator_dtype, convolve, max_pool
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.runtimes import MACHINES, REFERENCE

ARITHMETICS = [REFERENCE, *(one for machine in MACHINES.values() for one in machine.values())]


def convolve_by_loops(x, zero_point, kernel, bias, conv):
    """int64, one output at a time; padding is ``zero_point``."""
    top, bottom, left, right = conv.padding
    widths = ((0, 0), (top, bottom), (left, right), (0, 0))
    padded = np.pad(x.astype(np.int64), widths, constant_values=zero_point) - zero_point
    kh, kw = conv.kernel
    rows = window_output(x.shape[1], kh, conv.stride[0], top, bottom, conv.dilation[0], False)
    columns = window_output(x.shape[2], kw, conv.stride[1], left, right, conv.dilation[1], False)
    inner, per_group = kernel.shape[3], len(kernel) // conv.groups
    out = np.zeros((len(x), rows, columns, len(kernel)), np.int64)
    for o in range(len(kernel)):
        start = o // per_group * inner
        for r in range(rows):
            for c in range(columns):
                i = r * conv.stride[0] + np.arange(kh) * conv.dilation[0]
                j = c * conv.stride[1] + np.arange(kw) * conv.dilation[1]
                window = padded[:, i][:, :, j, start : start + inner]
                out[:, r, c, o] = (window * kernel[o].astype(np.int64)).sum((1, 2, 3)) + bias[o]
    return out


@st.composite
def convolutions(draw):
    small = st.integers(1, 3)
    groups, inner, per_group = draw(small), draw(small), draw(small)
    kernel, dilation = (
        (draw(small), draw(small)),
        (draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )
    conv = Conv2d(
        name="conv",
        input="x",
        output="y",
        weight="w",
        in_channels=groups * inner,
        out_channels=groups * per_group,
        kernel=kernel,
        groups=groups,
        stride=(draw(small), draw(small)),
        padding=tuple(draw(st.integers(0, 2)) for _ in range(4)),
        dilation=dilation,
    )
    return conv, draw(st.integers(5, 8)), draw(st.integers(5, 8)), draw(st.integers(0, 2**32 - 1))


@settings(deadline=None)
@given(convolutions(), st.integers(-128, 127))
def test_convolution_equals_plain_integer_loops(case, zero_point):
    conv, height, width, seed = case
    rng = np.random.default_rng(seed)
    x = rng.integers(-128, 128, (2, height, width, conv.in_channels), np.int8)
    shape = (conv.out_channels, *conv.kernel, conv.in_channels // conv.groups)
    kernel = rng.integers(-127, 128, shape, np.int8)
    bias = rng.integers(-(2**20), 2**20, conv.out_channels).astype(np.int32)
    expected = convolve_by_loops(x, zero_point, kernel, bias, conv)
    np.testing.assert_array_equal(convolve(x, zero_point, kernel, bias, conv), expected)


def test_accumulators_beyond_float32_stay_exact():
    # 2,000 taps of 127 * 255 reach 64.8 million > 2^24, with an odd sum that float32 cannot hold.
    conv = Conv2d("conv", "x", "y", "w", 2000, 1, (1, 1))
    x = np.full((1, 1, 1, 2000), 127, np.int8)
    kernel = np.full((1, 1, 1, 2000), 127, np.int8)
    kernel[0, 0, 0, 0] = 126
    bias = np.array([2], np.int32)
    expected = 255 * (127 * 1999 + 126) + 2
    assert int(np.float32(expected)) != expected
    assert convolve(x, -128, kernel, bias, conv).item() == expected
    assert accumulator_dtype(-128, kernel, bias) is np.float64
    assert accumulator_dtype(-128, kernel[..., :100], bias) is np.float32
    assert accumulator_dtype(-128, kernel[..., :1], np.array([2**24], np.int32)) is np.float64


@settings(deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(4, 9),
    st.integers(0, 2**32 - 1),
)
def test_maximum_pooling_equals_plain_loops(kernel, stride, ceil_mode, size, seed):
    rng = np.random.default_rng(seed)
    padding = tuple(int(p) for p in rng.integers(0, kernel // 2 + 1, 4))
    pool = MaxPool("pool", "x", "y", (kernel, kernel), (stride, stride), padding, ceil_mode)
    x = rng.integers(-128, 128, (1, size, size, 2), np.int8)
    top, bottom, left, right = padding
    rows = window_output(size, kernel, stride, top, bottom, 1, ceil_mode)
    columns = window_output(size, kernel, stride, left, right, 1, ceil_mode)
    found = max_pool(x, pool)
    assert found.shape == (1, rows, columns, 2)
    for r in range(rows):
        for c in range(columns):
            i, j = r * stride - top, c * stride - left
            window = x[0, max(i, 0) : max(i + kernel, 0), max(j, 0) : max(j + kernel, 0)]
            assert found[0, r, c].tolist() == window.max((0, 1), initial=-128).tolist()


@pytest.mark.parametrize("name", GRAPH_CASES)
@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda one: one.name)
def test_a_batch_equals_its_images_one_by_one(name, arithmetic):
    base, variants = make_case(name, (17,))
    images = random_images(3, 17)
    together = run_integer(base, variants[17], images, arithmetic)
    single = [run_integer(base, variants[17], images[k : k + 1], arithmetic) for k in range(3)]
    np.testing.assert_array_equal(together.codes, np.concatenate([one.codes for one in single]))
    assert together.codes.shape == (3, CAPACITY)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_every_value_is_observed_with_the_inferred_shape(name):
    base, variants = make_case(name, (18,))
    seen = {}
    run_integer(base, variants[18], random_images(2, 18), observe=seen.__setitem__)
    shapes = infer_shapes(base.graph, 18, 18)
    shapes[base.graph.output] = (1, 1, CAPACITY)
    assert {value: codes.shape for value, codes in seen.items()} == {
        value: (2, *shape) for value, shape in shapes.items()
    }
    assert all(codes.dtype == np.int8 for codes in seen.values())


def test_groups_of_images_are_passed_on_in_order():
    base, variants = make_case("conv_stack", (16,))
    images = random_images(300, 16)  # 76,800 pixels: two groups
    pieces = []
    run_integer(
        base,
        variants[16],
        images,
        observe=lambda value, codes: pieces.append(codes) if value == "image" else None,
    )
    assert len(pieces) == 2
    np.testing.assert_array_equal(
        np.concatenate(pieces), (images.astype(np.int16) - 128).astype(np.int8)
    )


def test_masked_head_rows_are_the_lowest_code_and_logits_are_dequantised_codes():
    base, variants = make_case("residual", (16,))
    result = run_integer(base, variants[16], random_images(4, 16))
    assert (result.codes[:, CLASSES:] == -128).all()
    output = variants[16].activations[base.graph.output]
    expected = output.scale * (result.codes.astype(np.float32) - output.zero_point)
    np.testing.assert_array_equal(result.logits, expected)


def test_no_image_gives_no_row():
    base, variants = make_case("residual", (16,))
    result = run_integer(base, variants[16], np.zeros((0, 16, 16, 3), np.uint8))
    assert result.logits.shape == (0, CAPACITY)


def test_images_of_another_type_are_refused():
    base, variants = make_case("residual", (16,))
    with pytest.raises(DataError) as error:
        run_integer(base, variants[16], np.zeros((1, 16, 16, 3), np.float32))
    assert str(error.value) == (
        "images have dtype float32 and shape (1, 16, 16, 3); the network takes uint8 "
        "[N, height, width, 3] RGB; stack decoded and resized images"
    )
