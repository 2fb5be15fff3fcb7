"""Tasks over one base: error bounds against the float network, and every edge case of design.md."""

from dataclasses import replace

import numpy as np
import pytest
from graph_cases import GRAPH_CASES, conv_stack, mobilenet_v2, random_images
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.errors import (
    HeadCapacityError,
    NegativeScaleError,
    PatchError,
    QuantizationError,
    WrongBaseError,
)
from patchdeploy.floatnet import run_float
from patchdeploy.fold import FoldedConv, fold_patch
from patchdeploy.graph import Conv2d
from patchdeploy.quantize.base import quantize_base, quantize_kernel
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.convolution import convolve
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import ActivationParams, flatten_variant, unflatten_variant
from patchdeploy.quantize.ranges import Calibration
from patchdeploy.quantize.rows import INT32_MAX, mask_rows, quantize_rows
from patchdeploy.quantize.variant import mean_by_tap, quantize_variant, weight_rounding_bias

PX = 18
TINY = np.finfo(np.float32).tiny


def perturbation(graph, seed=1):
    """A patch far from the identity: scales 0.5 to 1.5, biases of 0.2."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for conv in graph.convolutions():
        tensors[f"{conv.name}.patch_scale"] = rng.uniform(0.5, 1.5, conv.out_channels)
        tensors[f"{conv.name}.patch_bias"] = rng.normal(0, 0.2, conv.out_channels)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def quantised(graph, tensors=None, images=None, capacity=10, **options):
    base = quantize_base(graph, capacity, options.pop("depthwise", False))
    network = fold_patch(graph, tensors)
    ranges = calibrate(network, random_images(8, PX) if images is None else images, "minmax")
    return base, network, quantize_variant(base, network, ranges, "task", PX, **options)


def set_scale(graph, site, channel, value):
    return with_scale(perturbation(graph), site, channel, value)


def with_scale(tensors, site, channel, value):
    scale = tensors[f"{site}.patch_scale"].copy()
    scale[channel] = value
    return {**tensors, f"{site}.patch_scale": scale}


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_integer_logits_follow_the_float_ones_of_a_perturbed_patch(name):
    graph = GRAPH_CASES[name]()
    images = random_images(16, PX)
    base, network, variant = quantised(graph, perturbation(graph), images)
    float_logits = run_float(network, images)
    logits = run_integer(base, variant, images).logits[:, : network.classes]
    spread = np.abs(float_logits - run_float(fold_patch(graph), images)).max()
    assert spread > 0.1  # the patch changes the output
    # Quantisation noise: every layer adds about a step / sqrt(12) per value, and these networks
    # have at most 10 layers of gain about 1: a few steps in all; 8 is a generous sanity bound.
    step = float(variant.activations[graph.output].scale)
    assert np.abs(logits - float_logits).mean() < 8 * step
    unpatched = quantised(graph, None, images)
    other = run_integer(unpatched[0], unpatched[2], images).logits[:, : network.classes]
    assert np.abs(logits - other).max() > 8 * step


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_a_variant_has_valid_values_and_survives_flattening(name):
    graph = GRAPH_CASES[name]()
    base, _, variant = quantised(graph, perturbation(graph))
    values = flatten_variant(base, variant)
    assert values.weight_scale.dtype == np.float32
    assert values.bias.dtype == np.int32
    assert (values.weight_scale >= TINY).all()
    assert (values.activation_scale >= TINY).all()
    assert values.weights.min() >= -127
    images = random_images(2, PX)
    again = unflatten_variant(base, values, "task", PX)
    np.testing.assert_array_equal(
        run_integer(base, again, images).codes, run_integer(base, variant, images).codes
    )


def test_scales_and_biases_follow_the_formulas():
    graph = conv_stack()
    base, network, variant = quantised(graph, perturbation(graph), bias_correction=False)
    folded = network.convs["expand"]
    expected = base.weight_scales["expand"].astype(np.float64) * folded.scale
    np.testing.assert_array_equal(variant.weight_scale["expand"], expected.astype(np.float32))
    x_scale = float(variant.activations["project:out"].scale)
    unit = x_scale * variant.weight_scale["expand"].astype(np.float64)
    np.testing.assert_array_equal(variant.bias["expand"], np.rint(folded.bias / unit))


def test_two_tasks_differ_in_slots_alone():
    graph = conv_stack()
    base = quantize_base(graph, 10)
    before = {name: kernel.copy() for name, kernel in base.weights.items()}
    first = quantised(graph, perturbation(graph, 1))[2]
    second = quantised(graph, perturbation(graph, 2))[2]
    for name, kernel in before.items():
        np.testing.assert_array_equal(base.weights[name], kernel)
    assert (first.weight_scale["stem"] != second.weight_scale["stem"]).all()
    assert set(first.weights) == {"head"}


# Scales near zero.


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-8, -1e-30])
@pytest.mark.parametrize("site", ["stem", "dw1", "project", "expand"])
def test_a_scale_near_zero_leaves_an_exact_constant(scale, site):
    graph = conv_stack()
    tensors = set_scale(graph, site, 3, scale)
    images = random_images(8, PX)
    base, network, variant = quantised(graph, tensors, images, bias_correction=False)
    seen = {}
    run_integer(base, variant, images, observe=seen.__setitem__)
    params = variant.activations[f"{site}:out"]
    code = np.rint(network.convs[site].bias[3] / float(params.scale)) + params.zero_point
    expected = np.clip(code, max(-128, params.zero_point if site != "project" else -128), 127)
    assert variant.weight_scale[site][3] >= TINY
    # rows.quantize_rows bounds the kernel's part below half a step; a value next to a rounding
    # boundary may then round to the neighbour.
    assert np.abs(seen[f"{site}:out"][..., 3].astype(int) - expected).max() <= 1


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-1e3, 1e3),
    st.sampled_from([0.0, 1e-30, 1e-12, 1e-8]),
    st.integers(1, 300),
)
def test_a_raised_scale_costs_no_more_than_its_bound(seed, constant, step, taps):
    rng = np.random.default_rng(seed)
    x = ActivationParams(np.float32(rng.uniform(0.01, 0.1)), int(rng.integers(-128, 128)))
    y = ActivationParams(np.float32(rng.uniform(0.01, 0.1)), int(rng.integers(-128, 128)))
    kernel = rng.integers(-127, 128, (1, 1, 1, taps), np.int8)
    rows = quantize_rows(kernel, np.array([step]), np.array([constant]), x, y)
    assert rows.weight_scale[0] >= TINY
    extremes = np.where(kernel[0, 0, 0] > 0, 127, -128).astype(np.int8)
    inputs = np.stack([extremes, -1 - extremes, rng.integers(-128, 128, taps, np.int8)])
    conv = Conv2d("c", "x", "y", "w", taps, 1, (1, 1))
    batch = inputs.reshape(3, 1, 1, taps)
    accumulator = convolve(batch, x.zero_point, kernel, rows.bias, conv).reshape(-1)
    unbiased = convolve(batch, x.zero_point, kernel, np.zeros(1, np.int32), conv)
    unbiased = unbiased.reshape(-1).astype(np.float64)
    assert np.abs(accumulator.astype(np.float64)).max() <= INT32_MAX
    unit = float(x.scale) * float(rows.weight_scale[0]) / float(y.scale)
    found = np.clip(accumulator * unit, -128 - y.zero_point, 127 - y.zero_point)
    real = (step * float(x.scale) * unbiased + constant) / float(y.scale)
    expected = np.clip(real, -128 - y.zero_point, 127 - y.zero_point)
    # The bound, the bias's rounding (half a unit), and float32's rounding of the scale.
    bound = rows.error_lsb[0] + 0.5 * unit + 512 * 2.0**-23
    assert np.abs(found - expected).max() <= bound


def test_the_bound_of_a_constant_row_is_its_height_times_its_weights():
    # MobileNetV2's largest reduction is 1280 taps. |q| = 127 throughout is the worst there is: it
    # is not below half a step. At a mean |q| of 25 it is, for every constant that int8 can show.
    x = y = ActivationParams(np.float32(0.02), -128)
    for magnitude, steps, is_small in ((127, 1, True), (127, 100, False), (25, 255, True)):
        kernel = np.full((1, 1, 1, 1280), magnitude, np.int8)
        rows = quantize_rows(kernel, np.zeros(1), np.array([steps * 0.02]), x, y)
        weights = 1280 * magnitude
        expected = steps * weights * 127.5 / (INT32_MAX - 3 * 255 * weights)
        # ROUND_UP adds 2^-20 and float32 rounds twice by 2^-24.
        assert rows.error_lsb[0] == pytest.approx(expected, rel=2**-19)
        assert (rows.error_lsb[0] < 0.5) == is_small


def test_a_bias_beyond_int32_saturates_instead_of_overflowing():
    kernel = np.full((2, 1, 1, 4), 127, np.int8)
    x = y = ActivationParams(np.float32(0.02), 0)
    rows = quantize_rows(kernel, np.full(2, 1e-12), np.array([1e30, -1e30]), x, y)
    unit = float(x.scale) * rows.weight_scale.astype(np.float64) / float(y.scale)
    assert (np.abs(rows.bias.astype(np.int64)) + 4 * 127 * 255 <= INT32_MAX).all()
    assert rows.bias[0] * unit[0] > 127
    assert rows.bias[1] * unit[1] < -128


def test_a_row_whose_accumulator_may_overflow_int32_is_refused():
    kernel = np.full((1, 1, 1, 40_000), 127, np.int8)
    x = y = ActivationParams(np.float32(0.02), 0)
    with pytest.raises(QuantizationError) as error:
        quantize_rows(kernel, np.ones(1), np.ones(1), x, y)
    assert str(error.value) == (
        "a row of 40000 int8 weights can reach 1295400000; an int32 accumulator with its bias "
        "holds 710235477; split the layer"
    )


# Negative scales.


def test_a_negative_scale_on_a_shared_row_is_refused_by_task_site_and_channel():
    graph = conv_stack()
    tensors = with_scale(set_scale(graph, "expand", 5, -0.5), "expand", 7, -0.25)
    with pytest.raises(NegativeScaleError) as error:
        quantised(graph, tensors)
    assert str(error.value) == (
        "task 'task', site 'expand': the effective scale of 2 channels (5, 7) is negative against "
        "the base's kernel (-0.5 in channel 5); tasks share these int8 rows, whose sign is fixed; "
        "train with keep_sign (the default), or let the patch own this kernel"
    )


def test_a_negative_scale_goes_into_a_kernel_that_the_task_owns():
    graph = conv_stack()
    tensors = with_scale(set_scale(graph, "dw1", 2, -0.8), "head", 1, -1.1)
    images = random_images(16, PX)
    base, network, variant = quantised(graph, tensors, images, depthwise=True)
    codes = quantize_kernel("dw1", network.convs["dw1"].weight)[0]
    np.testing.assert_array_equal(variant.weights["dw1"][2], -codes[2])
    np.testing.assert_array_equal(variant.weights["dw1"][3], codes[3])
    assert (variant.weight_scale["dw1"] > 0).all()
    error = run_integer(base, variant, images).logits[:, :7] - run_float(network, images)
    assert np.abs(error).mean() < 8 * float(variant.activations[graph.output].scale)


def test_a_row_that_the_base_itself_scales_negatively_serves_its_tasks():
    graph = conv_stack()
    network = fold_patch(graph, set_scale(graph, "expand", 5, -0.5))
    flipped = replace(network.convs["expand"])
    base = quantize_base(graph, 10)
    kernel = base.weights["expand"].copy()
    kernel[5] = -kernel[5]
    base = replace(base, weights={**base.weights, "expand": kernel})
    images = random_images(8, PX)
    variant = quantize_variant(base, network, calibrate(network, images, "minmax"), "task", PX)
    assert variant.weight_scale["expand"][5] > 0
    assert flipped.scale[5] < 0
    error = run_integer(base, variant, images).logits[:, :7] - run_float(network, images)
    assert np.abs(error).mean() < 8 * float(variant.activations[graph.output].scale)


# Heads, kernels, bases that do not fit.


def test_spare_head_rows_are_masked_by_the_common_rule():
    graph = conv_stack()
    base, _, variant = quantised(graph, perturbation(graph), capacity=12)
    assert not variant.weights["head"][7:].any()
    assert (variant.bias["head"][7:] == -131072).all()
    x = variant.activations[next(c for c in graph.convolutions() if c.name == "head").input]
    y = variant.activations[graph.output]
    expected = np.float32(np.float32(y.scale / x.scale) / np.float32(256))
    assert (variant.weight_scale["head"][7:] == expected).all()
    codes = run_integer(base, variant, random_images(4, PX)).codes
    assert (codes[:, 7:] == -128).all()
    assert (codes[:, :7] > -128).any()


@given(
    st.floats(2.0**-20, 1e3, width=32), st.floats(2.0**-20, 1e3, width=32), st.integers(-128, 127)
)
def test_a_masked_row_saturates_at_every_scale_and_zero_point(x_scale, y_scale, zero_point):
    x = ActivationParams(np.float32(x_scale), 0)
    y = ActivationParams(np.float32(y_scale), zero_point)
    empty = quantize_rows(np.zeros((0, 1, 1, 1), np.int8), np.zeros(0), np.zeros(0), x, y)
    rows = mask_rows(empty, 1, x, y)
    multiplier = np.float32(np.float32(x.scale * rows.weight_scale[0]) / y.scale)
    # 2^-8 up to 4 float32 roundings: at least 256 steps below any zero point.
    assert rows.bias[0] * float(multiplier) + zero_point < -256
    assert rows.weight_scale[0] >= TINY


def test_more_classes_than_the_head_has_rows_are_refused():
    with pytest.raises(HeadCapacityError) as error:
        quantised(conv_stack(), capacity=5)
    assert str(error.value) == (
        "task 'task' has 7 classes; the head has 5 rows; export the base again with "
        "head_capacity >= 7"
    )


def test_a_depthwise_patch_over_a_base_without_depthwise_slots_is_refused():
    graph = conv_stack()
    with pytest.raises(PatchError) as error:
        quantised(graph, {"dw1.weight": graph.parameters["dw1.weight"] * 2})
    assert str(error.value) == (
        "task 'task' brings its own kernels for 1 convolutions that this base shares ('dw1' "
        "first); a task may only set kernels that are slots; quantise the base with depthwise "
        "slots (patch_owned_depthwise=True), or train without them"
    )


def test_a_depthwise_patch_is_quantised_where_the_base_has_slots():
    graph = conv_stack()
    own = np.random.default_rng(3).normal(0, 1, graph.parameters["dw1.weight"].shape)
    _, network, variant = quantised(graph, {"dw1.weight": own.astype(np.float32)}, depthwise=True)
    expected = quantize_kernel("dw1", network.convs["dw1"].weight)[0]
    np.testing.assert_array_equal(variant.weights["dw1"], expected)
    assert set(variant.weights) == {"dw1", "dw2", "head"}


def test_a_network_of_another_base_is_refused():
    graph = conv_stack()
    base = quantize_base(graph, 10)
    network = fold_patch(replace(graph, base_sha256="f" * 64))
    with pytest.raises(WrongBaseError) as error:
        quantize_variant(base, network, {}, "birds", PX)
    assert str(error.value) == (
        f"task 'birds' was folded into base {'f' * 16}; the quantised base is "
        f"{graph.base_sha256[:16]}; fold the patch into the base that it was trained on"
    )


def test_a_scale_that_is_not_finite_is_refused():
    graph = conv_stack()
    network = fold_patch(graph)
    scale = network.convs["stem"].scale.copy()
    scale[0] = np.inf
    convs = {**network.convs, "stem": replace(network.convs["stem"], scale=scale)}
    ranges = dict.fromkeys(graph.channels, (-1.0, 1.0))
    with pytest.raises(QuantizationError, match="site 'stem' has a scale or bias that is NaN"):
        quantize_variant(quantize_base(graph, 10), replace(network, convs=convs), ranges, "t", PX)


def test_a_hard_sigmoid_becomes_a_saturating_convolution():
    graph = GRAPH_CASES["squeeze_excitation"]()
    images = random_images(8, PX)
    base, network, variant = quantised(graph, perturbation(graph), images, bias_correction=False)
    np.testing.assert_array_equal(
        variant.weight_scale["fc2"],
        (base.weight_scales["fc2"].astype(np.float64) * network.convs["fc2"].scale / 6).astype(
            np.float32
        ),
    )
    seen, real = {}, {}
    run_integer(base, variant, images, observe=seen.__setitem__)
    run_float(network, images, lambda value, x: real.__setitem__(value, x.numpy().copy()))
    gate = (seen["fc2:out"].astype(np.float64) + 128) / 255
    assert np.abs(gate[:, 0, 0] - real["fc2:out"][:, :, 0, 0]).max() < 0.05  # 13 steps of 1/255


# Bias correction.


def lost_mean(conv, folded, codes, scales, x):
    """Mean over images and positions of s * ((W - scale * q) * x), by a plain convolution."""
    lost = folded.weight.astype(np.float64) - codes * scales[:, None, None, None]
    top, bottom, left, right = conv.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    kh, kw = conv.kernel
    rows = (padded.shape[1] - kh) // conv.stride[0] + 1
    columns = (padded.shape[2] - kw) // conv.stride[1] + 1
    per_group, inner = len(lost) // conv.groups, lost.shape[3]
    total = np.zeros(len(lost))
    for o in range(len(lost)):
        first = o // per_group * inner
        for r in range(rows):
            for c in range(columns):
                i, j = r * conv.stride[0], c * conv.stride[1]
                window = padded[:, i : i + kh, j : j + kw, first : first + inner]
                total[o] += (window * lost[o]).sum((1, 2, 3)).mean()
    return folded.scale * total / (rows * columns)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_the_correction_is_the_mean_that_rounding_took_padding_included(groups):
    rng = np.random.default_rng(groups)
    shape = (8, 3, 3, 4 // groups)
    folded = FoldedConv(
        rng.normal(0, 1, shape).astype(np.float32), rng.uniform(0.5, 2, 8), np.zeros(8), False
    )
    conv = Conv2d(
        "c", "x", "y", "w", 4, 8, (3, 3), groups=groups, stride=(2, 2), padding=(1, 0, 1, 1)
    )
    codes, scales = quantize_kernel("c", folded.weight)
    means = rng.uniform(0, 3, 4)
    # A map that is constant per channel has the mean of every tap known exactly.
    x = np.broadcast_to(means, (2, 5, 6, 4)).copy()
    taps = mean_by_tap(conv, means, (5, 6, 4))
    found = weight_rounding_bias(conv, folded, codes, scales.astype(np.float64), taps)
    expected = lost_mean(conv, folded, codes, scales.astype(np.float64), x)
    assert np.abs(expected).max() > 1e-3
    # float32 products of the codes and their scale: 2^-24 of |W| <= 4 over 36 taps of 3.
    np.testing.assert_allclose(found, expected, rtol=0, atol=36 * 4 * 3 * 2 * 2.0**-24)


def test_bias_correction_needs_means_and_can_be_left_out():
    graph = conv_stack()
    network = fold_patch(graph, perturbation(graph))
    base = quantize_base(graph, 10)
    calibration = calibrate(network, random_images(8, PX), "minmax")
    assert isinstance(calibration, Calibration)
    with_it = quantize_variant(base, network, calibration, "t", PX, bias_correction=True)
    without = quantize_variant(base, network, calibration, "t", PX, bias_correction=False)
    plain = quantize_variant(base, network, dict(calibration), "t", PX, bias_correction=True)
    assert (with_it.bias["expand"] != without.bias["expand"]).any()
    np.testing.assert_array_equal(plain.bias["expand"], without.bias["expand"])


def test_mobilenet_v2_quantises_with_its_17056_rows_before_the_head():
    graph = mobilenet_v2(classes=10)
    base = quantize_base(graph, 10)
    network = fold_patch(graph)
    ranges = dict.fromkeys(graph.channels, (-3.0, 3.0))
    variant = quantize_variant(base, network, ranges, "t", 224)
    assert len(flatten_variant(base, variant).weight_scale) == 17_056 + 10
