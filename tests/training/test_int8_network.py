"""The int8 network in torch against the integer executor: every code of every value, to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from graph_cases import CLASSES, GRAPH_CASES, GraphBuilder, conv_stack, random_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing, load_packaged
from patchdeploy.errors import UnsupportedOperatorError
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.graph import Pointwise
from patchdeploy.lower import lower_base
from patchdeploy.patch import PatchConfig
from patchdeploy.patch.tensors import initial_tensors
from patchdeploy.patched_model import PatchedModel
from patchdeploy.quantize.arithmetic import requantize
from patchdeploy.quantize.base import orient, quantize_base, quantize_kernel
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import ActivationParams
from patchdeploy.quantize.pointwise import _evaluate
from patchdeploy.quantize.variant import quantize_variant
from patchdeploy.training.int8_network import Int8Network, _make_tables, restore_pixels
from patchdeploy.training.int8_rounding import (
    look_up,
    replace_value,
    requantize_through,
    round_clip,
    round_through,
)
from patchdeploy.training.int8_rows import build_rows, compute_rows, effective_affine
from patchdeploy.training.samples import normalize

CPU = torch.device("cpu")
PX = 18
pytestmark = pytest.mark.usefixtures("one_thread")


def explicit_patch(graph, seed=1):
    """Scales 0.5 to 1.5 and biases of 0.2 on every convolution; a head of its own."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for conv in graph.convolutions():
        tensors[f"{conv.name}.patch_scale"] = rng.uniform(0.5, 1.5, conv.out_channels)
        tensors[f"{conv.name}.patch_bias"] = rng.normal(0, 0.2, conv.out_channels)
    head = graph.parameters["head.weight"]
    tensors["head.weight"] = head * rng.uniform(0.5, 1.5, head.shape)
    return {name: torch.tensor(tensor, dtype=torch.float32) for name, tensor in tensors.items()}


def perturbed(base, kinds, seed=0):
    """A patch far from the embedded base in all that it owns; scales keep their sign."""
    generator = torch.Generator().manual_seed(seed)
    tensors = initial_tensors(base, PatchConfig(kinds), CLASSES)
    for key, value in tensors.items():
        noise = torch.randn(value.shape, generator=generator)
        if key.endswith((".running_mean", ".bias")):
            value += 0.2 * noise
        else:
            value *= (0.3 * noise).exp()
    return tensors


def both(graph, tensors, images, classes=CLASSES, depthwise=False):
    """(network with calibrated activations, what `run_integer` is given) for one patch."""
    arrays_ = {name: value.detach().numpy() for name, value in tensors.items()}
    folded = fold_patch(graph, arrays_, classes)
    quantized = quantize_base(graph, classes + 3, depthwise)
    variant = quantize_variant(quantized, folded, calibrate(folded, images), "t", images.shape[1])
    network = Int8Network(quantized, classes, CPU)
    network.set_activations(variant.activations)
    return network, quantized, variant


def planes(images):
    return torch.tensor(images).permute(0, 3, 1, 2).float()


def assert_equal_codes(network, quantized, variant, tensors, images):
    """Every value's codes and the logits, with gradients off; the logits with them on, too."""
    expected, seen = {}, []
    result = run_integer(quantized, variant, images, observe=expected.__setitem__)

    def compare(value, codes):
        want = expected[value].transpose(0, 3, 1, 2)[:, : codes.shape[1]]
        np.testing.assert_array_equal(codes.numpy(), want, err_msg=value)
        seen.append(value)

    classes = len(tensors[f"{quantized.graph.head}.weight"])
    with torch.no_grad():
        logits = network(tensors, planes(images), compare)
    assert seen == list(expected)
    np.testing.assert_array_equal(logits.numpy(), result.logits[:, :classes])
    assert len(np.unique(result.codes[:, :classes])) > classes  # not stuck at a bound
    return result.logits[:, :classes]


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("name", GRAPH_CASES)
def test_every_code_equals_the_executor_on_every_operator(name, depthwise):
    graph = GRAPH_CASES[name]()
    images = random_images(12, PX)
    tensors = explicit_patch(graph)
    if depthwise:
        for conv in graph.convolutions():
            if conv.is_depthwise:
                tensors[conv.weight] = torch.tensor(graph.parameters[conv.weight]) * 0.7 + 0.05
    network, quantized, variant = both(graph, tensors, images, depthwise=depthwise)
    logits = assert_equal_codes(network, quantized, variant, tensors, images)
    with torch.enable_grad():
        # These networks have at most 8 * 9 * 127 * 255 = 2.3 million per sum: exact in float32.
        again = network({k: v.requires_grad_() for k, v in tensors.items()}, planes(images))
    np.testing.assert_array_equal(again.detach().numpy(), logits)


@pytest.mark.parametrize("kinds", [("scale_bias", "head"), ("scale_bias", "depthwise", "head")])
def test_the_embedded_base_equals_the_executor_on_real_images(kinds):
    base = Base.embedded()
    graph = lower_base(base)
    images = load_packaged("optical_digits")[0].at(48, base.preprocessing)[:16]
    tensors = perturbed(base, kinds)
    slots = "depthwise" in kinds
    network, quantized, variant = both(graph, tensors, images, depthwise=slots)
    logits = assert_equal_codes(network, quantized, variant, tensors, images)
    fresh = initial_tensors(base, PatchConfig(kinds), CLASSES)
    other = run_integer(quantized, both(graph, fresh, images, depthwise=slots)[2], images)
    assert not np.array_equal(other.logits[:, :CLASSES], logits)  # the perturbation shows


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-12, 2))
def test_scales_and_biases_equal_the_variants_at_any_magnitude(seed, exponent):
    graph = conv_stack()
    tensors = explicit_patch(graph, seed)
    rng = np.random.default_rng(seed)
    for key, value in tensors.items():
        if key.endswith("patch_scale"):  # a few channels far below the rest, or far above
            value[rng.integers(len(value))] *= 10.0**exponent
    network, _, variant = both(graph, tensors, random_images(4, PX))
    rows = compute_rows(network._structure, tensors, network.scales, network.zero_points)
    for name, row in rows.items():
        count = len(row.bias)
        np.testing.assert_array_equal(row.weight_scale.numpy(), variant.weight_scale[name][:count])
        np.testing.assert_array_equal(row.bias.numpy(), variant.bias[name][:count])


def test_sums_beyond_float32_stay_exact_without_gradients():
    # 2,400 taps of 102 to 127 on values of about 128 sum to some 35 million > 2^24, where float32
    # holds every second or fourth number. The bias takes nearly all of that away again, and the
    # pixels differ little, so that the few units that float32 has lost by then show in the output.
    builder = GraphBuilder()
    value = builder.conv("image", "stem", 2400, activation="relu")
    graph = builder.finish(builder.conv(value, "wide", 16), "wide")
    rng = np.random.default_rng(0)
    kernel = rng.uniform(0.8, 1.0, graph.parameters["wide.weight"].shape).astype(np.float32)
    changed = {"wide.weight": kernel, "stem.bias": np.full(2400, 4, np.float32)}
    graph = replace(graph, parameters={**graph.parameters, **changed, "wide.bias": np.zeros(16)})
    images = 124 + random_images(4, 8) // 32
    means = calibrate(fold_patch(graph), images).means["wide:out"]
    graph = replace(graph, parameters={**graph.parameters, "wide.bias": -means.astype(np.float32)})
    tensors = {key: graph.parameters[key] for key in ("head.weight", "head.bias")}
    tensors = {key: torch.tensor(value) for key, value in tensors.items()}
    network, quantized, variant = both(graph, tensors, images)
    assert_equal_codes(network, quantized, variant, tensors, images)
    assert quantized.weights["wide"].astype(np.int64).sum(axis=(1, 2, 3)).min() * 128 > 2**24


def test_a_kernel_of_the_task_that_reads_the_image_is_refused():
    builder = GraphBuilder()
    graph = builder.finish(builder.depthwise("image", "first", kernel=3), "first")
    with pytest.raises(UnsupportedOperatorError) as caught:
        build_rows(quantize_base(graph, CLASSES, True), CLASSES, CPU)
    assert str(caught.value) == (
        "convolution 'first' reads the image and its kernel belongs to the task; training through "
        "int8 or with rounding_step or size_penalty needs a first kernel that the base owns; train "
        "this task without these settings, or without kind 'depthwise'"
    )


def test_written_activation_parameters_take_effect():
    graph = conv_stack()
    images = random_images(6, PX)
    tensors = explicit_patch(graph)
    network, quantized, variant = both(graph, tensors, images)
    other = Int8Network(quantized, CLASSES, CPU)
    with torch.no_grad():
        before = other(tensors, planes(images))
        other.scales.copy_(network.scales)  # as a checkpoint is put back
        other.zero_points.copy_(network.zero_points)
    assert_equal_codes(other, quantized, variant, tensors, images)
    assert not np.array_equal(before.numpy(), other(tensors, planes(images)).numpy())


def test_reduced_precision_around_it_changes_nothing():
    graph = conv_stack()
    images = random_images(6, PX)
    tensors = explicit_patch(graph)
    network, quantized, variant = both(graph, tensors, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert_equal_codes(network, quantized, variant, tensors, images)


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (3, 4, 3, 3), elements=st.floats(-2, 2, width=32)),
    st.lists(st.sampled_from([-1.0, 1.0]), min_size=3, max_size=3),
)
def test_a_kernel_of_the_task_gets_the_codes_of_the_quantiser(weight, signs):
    builder = GraphBuilder()
    graph = builder.finish(builder.conv("image", "stem", 4, activation="relu"), "one", classes=3)
    graph.parameters["head.weight"] = weight[..., :1, :1].copy()  # type: ignore[index]
    quantized = quantize_base(graph, 3)
    structure = build_rows(quantized, 3, CPU)
    scale = torch.tensor(signs)
    rows = compute_rows(
        structure,
        {"head.weight": torch.tensor(weight[..., :1, :1]), "head.patch_scale": scale},
        torch.ones(len(quantized.activation_sites())),
        torch.zeros(len(quantized.activation_sites())),
    )
    kernel = weight[..., :1, :1].transpose(0, 2, 3, 1)
    codes, _ = quantize_kernel("head", kernel)
    codes = orient(codes, np.where(np.array(signs) < 0, -1, 1))
    np.testing.assert_array_equal(rows["head"].kernel.permute(0, 2, 3, 1).numpy(), codes)


@settings(deadline=None)
@given(
    arrays.arrays(np.int32, (2, 3, 2, 2), elements=st.integers(-(2**24), 2**24)),
    arrays.arrays(np.float32, 3, elements=st.floats(2.0**-20, 1, width=32)),
    st.integers(-128, 127),
)
def test_requantising_equals_the_numpy_one(accumulator, multiplier, zero_point):
    low, high = float(-128 - zero_point), float(127 - zero_point)
    steps = requantize_through(
        torch.tensor(accumulator).float(), torch.tensor(multiplier), torch.zeros(3), low, high
    )
    expected = requantize(accumulator.transpose(0, 2, 3, 1), multiplier, zero_point)
    np.testing.assert_array_equal(steps.permute(0, 2, 3, 1).numpy() + zero_point, expected)


def test_gradients_of_requantising_are_those_of_the_unrounded_value_inside_the_bounds():
    torch.manual_seed(0)
    whole = torch.randint(-900, 900, (2, 3, 4, 4)).float().requires_grad_()
    multiplier = torch.tensor([0.11, 0.23, 0.31], requires_grad=True)
    bias = torch.zeros(3, requires_grad=True)
    weights = torch.randn(2, 3, 4, 4)
    (requantize_through(whole, multiplier, bias, -90.0, 90.0) * weights).sum().backward()
    a, m, b = (v.detach().clone().requires_grad_() for v in (whole, multiplier, bias))
    rows = (1, 3, 1, 1)
    plain = ((a + b.reshape(rows)) * m.reshape(rows)).clamp(-90.0, 90.0)
    (plain * weights).sum().backward()
    clipped = (plain.detach().abs() == 90.0).float().mean()
    assert 0.1 < clipped < 0.9
    # Sums of 32 products in another order: 32 roundings of 2^-24 of terms up to 900 * 4.
    tolerance = 32 * 2**-24 * 900 * 4
    for mine, theirs in ((whole, a), (multiplier, m), (bias, b)):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=tolerance)


def test_rounding_is_half_to_even_and_passes_gradients_unless_it_clips():
    values = torch.tensor([-3.0, -0.5, 0.5, 1.5, 2.5, 7.0], requires_grad=True)
    assert round_through(values).tolist() == [-3, 0, 0, 2, 2, 7]
    round_through(values).sum().backward()
    assert values.grad.tolist() == [1] * 6
    values.grad = None
    clipped = round_clip(values.double(), -2.0, 4.0)
    assert (clipped.dtype, clipped.tolist()) == (torch.float32, [-2, 0, 0, 2, 2, 4])
    clipped.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]
    surrogate = torch.tensor([1.0, 2.0], requires_grad=True)
    replaced = replace_value(torch.tensor([0.1, 0.7]), surrogate)
    assert replaced.tolist() == torch.tensor([0.1, 0.7]).tolist()
    (replaced * torch.tensor([3.0, 4.0])).sum().backward()
    assert surrogate.grad.tolist() == [3, 4]


def test_a_table_gives_its_entry_and_its_slope():
    table, slope = torch.arange(256.0) * 2, torch.arange(256.0) / 256
    steps = torch.tensor([-120.0, 0.0, 135.0], requires_grad=True)
    found = look_up(steps, -120.0, table, slope)
    assert found.tolist() == [0, 240, 510]
    found.sum().backward()
    assert steps.grad.tolist() == [0, 120 / 256, 255 / 256]


@pytest.mark.parametrize("kind", ["sigmoid", "hard_swish"])
def test_the_slope_of_a_table_is_that_of_the_function_where_it_does_not_saturate(kind):
    x, y = ActivationParams(np.float32(0.05), 20), ActivationParams(np.float32(1 / 64), -100)
    table, slope = _make_tables(Pointwise("p", "x", "y", kind), x, y, CPU)
    real = (np.arange(-128, 128) - 20) * float(x.scale)
    # Central differences over half a code: their error is h^2 f''' / 6 < 0.025^2 / 6 of a slope of
    # at most 1.5, times 0.05 * 64 steps; hard_swish bends at +-3, left out.
    ends = [_evaluate(kind, real + sign * 0.025) for sign in (-1, 1)]
    steps = _evaluate(kind, real) / float(y.scale)
    inside = (steps > -28) & (steps < 227)
    expected = np.where(inside, (ends[1] - ends[0]) / float(y.scale), 0.0)
    smooth = np.abs(np.abs(real) - 3) > 0.025
    np.testing.assert_allclose(slope.numpy()[smooth], expected[smooth], atol=0.001)
    assert slope.max() > 0.7
    assert torch.equal(table, torch.tensor(np.rint(steps).clip(-28, 227)).float())


def test_folding_is_differentiable_in_all_that_a_patch_owns():
    base = Base.embedded()
    structure = build_rows(quantize_base(lower_base(base), CLASSES), CLASSES, CPU)
    tensors = {k: v.double() for k, v in perturbed(base, ("scale_bias", "head")).items()}
    chosen = [
        "features.0.1.weight",
        "features.0.1.bias",
        "features.1.conv.2.running_var",
        "classifier.1.bias",
    ]

    def folded(*values):
        scale, bias = effective_affine(structure, tensors | dict(zip(chosen, values, strict=True)))
        return scale[:60], bias[:60], bias[-CLASSES:]

    inputs = [tensors[key][:4].requires_grad_() for key in chosen]

    def first(*values):
        grown = [
            torch.cat([value, tensors[key].detach()[4:]])
            for key, value in zip(chosen, values, strict=True)
        ]
        return folded(*grown)

    assert torch.autograd.gradcheck(first, inputs)


@pytest.mark.parametrize("name", ["conv_stack", "squeeze_excitation", "branches"])
def test_gradients_point_the_way_of_the_float_networks(name):
    graph = GRAPH_CASES[name]()
    images = random_images(32, PX)
    tensors = explicit_patch(graph)
    network, _, _ = both(graph, tensors, images)
    labels = torch.arange(32) % CLASSES

    def loss_of(scores):
        return torch.nn.functional.cross_entropy(scores, labels)

    leaves = {key: value.clone().requires_grad_() for key, value in tensors.items()}
    loss_of(network(leaves, planes(images))).backward()

    def float_loss(change):
        values = {k: (v + change.get(k, 0.0)).detach().numpy() for k, v in tensors.items()}
        runner = FloatRunner(fold_patch(graph, values), "float64")
        return float(loss_of(torch.tensor(runner(images))))

    # Along minus the gradient the float loss must fall, at nearly the rate that the int8 gradient
    # promises. Rounding moves each value by 1/sqrt(12) of a step of a spread of 20 or more, in at
    # most 10 layers: sqrt(10) / (20 sqrt(12)) = 5 %; twice that for its effect on both the loss
    # and the gradient, and as much for clipped values that straight-through gradients leave out.
    total = sum(float((leaf.grad**2).sum()) for leaf in leaves.values())
    far = 1e-4 / total**0.5
    moves = [{k: sign * far * v.grad for k, v in leaves.items()} for sign in (-1, 1)]
    slope = (float_loss(moves[1]) - float_loss(moves[0])) / (2 * far)
    assert slope == pytest.approx(total, rel=0.2)


def test_clipped_scores_still_teach_the_head_and_clipped_values_before_it_do_not():
    graph = conv_stack()
    images = random_images(6, PX)
    tensors = {key: value.requires_grad_() for key, value in explicit_patch(graph).items()}
    network, _, _ = both(graph, tensors, images)
    site = network.sites.index(graph.output)
    network.scales[site] *= 1e-3  # every score is far out of range
    network(tensors, planes(images))[:, 0].sum().backward()
    assert tensors["head.weight"].grad.abs().max() > 0
    tensors["head.weight"].grad = None
    for key in ("stem.patch_scale", "last.patch_bias"):
        assert tensors[key].grad.abs().max() > 0
        tensors[key].grad = None
    for value in ("last:out", "pool:out"):  # and every value that the head reads
        network.scales[network.sites.index(value)] *= 1e-6
    network(tensors, planes(images))[:, 0].sum().backward()
    assert not tensors["stem.patch_scale"].grad.any()
    assert tensors["head.weight"].grad.abs().max() > 0


def test_gradients_reach_the_patch_and_nothing_of_the_base():
    base = Base.embedded()
    model = PatchedModel(base)
    names = tuple(str(k) for k in range(CLASSES))
    model.add_task("t", names, PatchConfig(("scale_bias", "depthwise", "head")), 32)
    tensors = model.tensors()
    images = random_images(8, 32)
    network, _, _ = both(lower_base(base), tensors, images, depthwise=True)
    torch.nn.functional.cross_entropy(
        network(tensors, planes(images)), torch.arange(8) % CLASSES
    ).backward()
    reached = {key for key, value in tensors.items() if value.grad is not None}
    trained = {key for key, value in tensors.items() if value.requires_grad}
    assert reached == trained
    assert not any(key.endswith(("running_mean", "running_var")) for key in reached)
    assert all(tensors[key].grad.abs().max() > 0 for key in reached)


@settings(deadline=None)
@given(
    st.tuples(*[st.floats(0, 1)] * 3),
    st.tuples(*[st.floats(0.1, 1)] * 3),
    st.sampled_from(["RGB", "BGR"]),
)
def test_every_pixel_value_comes_back_from_its_normalised_one(mean, std, order):
    preprocessing = Preprocessing(mean=mean, std=std, channel_order=order)
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).repeat(1, 1, 1, 3)
    pixels = torch.stack([pixels[..., 0], pixels[..., 1].flip(1), pixels[..., 2].flip(2)], -1)
    back = restore_pixels(normalize(pixels, preprocessing), preprocessing)
    assert torch.equal(back, pixels.permute(0, 3, 1, 2).float())
