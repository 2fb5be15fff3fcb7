"""Folding: the folded network is the unfolded one, for a patch that is far from the identity."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lower_cases import (
    EXACT,
    NETWORKS,
    BaseUnderTest,
    lowered,
    network,
    noise_images,
    normalised,
    perturbed_patch,
    unfolded_logits,
)

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import (
    DataError,
    HeadCapacityError,
    NonFiniteError,
    PatchError,
    UnknownLayerError,
)
from patchdeploy.floatnet import FloatRunner, run_float
from patchdeploy.fold import FoldedNetwork, border_error_bound, fold_patch, input_offset
from patchdeploy.graph import Graph
from patchdeploy.lower import lower_base
from patchdeploy.patch import PatchConfig
from patchdeploy.patched_model import initial_tensors, run_patched

IMAGENET = Preprocessing()


def condition(network: FoldedNetwork, images: np.ndarray, logits: np.ndarray) -> float:
    """Relative change of the logits per relative change of the layers' results, measured.

    Every scale and bias is moved by a random +-2^-30 of itself, which moves each layer's result
    by about that relative amount; the logits' relative change over 2^-30 is the condition.
    """
    random = np.random.default_rng(5)
    convs = {
        name: replace(
            conv,
            scale=conv.scale * (1 + 2.0**-30 * random.choice([-1, 1], conv.scale.size)),
            bias=conv.bias * (1 + 2.0**-30 * random.choice([-1, 1], conv.bias.size)),
        )
        for name, conv in network.convs.items()
    }
    moved = FloatRunner(replace(network, convs=convs), "float64")(images)
    return float(np.abs(moved - logits).max() / np.abs(logits).max() * 2.0**30)


def longest_sum(graph: Graph) -> int:
    """Products in the longest dot product of any convolution."""
    return max(c.kernel[0] * c.kernel[1] * c.in_channels // c.groups for c in graph.convolutions())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_folded_network_equals_the_unfolded_module(name):
    base, graph = network(name), lowered(name)
    patch = perturbed_patch(base.module)
    images = noise_images(2, NETWORKS[name].run_px, NETWORKS[name].run_px + 2)
    folded = fold_patch(graph, patch)
    logits = FloatRunner(folded, "float64")(images)
    expected = unfolded_logits(base, patch, images)
    # A sum of K products is rounded by at most K u of the sum of their magnitudes; for random
    # signs the error is sqrt(K) u of it and it is sqrt(K) of the sum itself: K u of the result.
    # The condition carries that to the logits; 8 covers that it was measured with one draw.
    # Kernels are exact in float64, but for the constant 1/9 of a 3x3 mean: 2^-24 once more.
    # transform_input changes std to one that float32 kernels only approximate: the same.
    kappa, terms = condition(folded, images, logits), longest_sum(graph)
    rounded = 2.0**-24 if name.startswith("inception") else 0.0
    bound = 8 * kappa * (terms * 2.0**-53 + rounded) * np.abs(expected).max()
    assert bound < 1e-3 * np.abs(expected).max()  # the bound itself says something
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
    # The comparison is not between constants: images and patch both move the logits.
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()
    unpatched = unfolded_logits(base, {}, images[:1])
    assert np.abs(unpatched - expected[:1]).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["mobilenet_v2_0.35", "mobilenet_v3_small", "resnet18"])
def test_a_float32_run_stays_within_float32_rounding_of_the_float64_run(name):
    graph = lowered(name)
    folded = fold_patch(graph, perturbed_patch(network(name).module))
    images = noise_images(2, 64, 64)
    exact = FloatRunner(folded, "float64")(images)
    logits = run_float(folded, images)
    assert logits.dtype == np.float32
    assert logits.shape == (2, folded.classes)
    # As above with u = 2^-24, and one more rounding for the scaled kernel and bias.
    kappa = condition(folded, images, exact)
    bound = 8 * kappa * (longest_sum(graph) + 2) * 2.0**-24 * np.abs(exact).max()
    np.testing.assert_allclose(logits, exact, rtol=0, atol=bound)


def small_base(
    layers: list[torch.nn.Module], preprocessing: Preprocessing = EXACT, head: str = "3"
) -> BaseUnderTest:
    torch.manual_seed(11)
    return BaseUnderTest(torch.nn.Sequential(*layers).eval(), preprocessing, head)


def one_conv_base(
    preprocessing: Preprocessing = EXACT, padding: int = 0, groups: int = 1, **norm: bool
) -> BaseUnderTest:
    layers = [
        torch.nn.Conv2d(3, 6, 3, padding=padding, groups=groups),
        torch.nn.BatchNorm2d(6, **norm),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Conv2d(6, 4, 1),
        torch.nn.Flatten(),
    ]
    return small_base(layers, preprocessing)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-12, 4))
def test_scale_and_bias_follow_the_formulas(seed, exponent):
    random = np.random.default_rng(seed)
    graph = FOLDING_GRAPH
    gamma = random.normal(size=6) * 10.0**exponent
    beta, mean, var = random.normal(size=6), random.normal(size=6), random.random(6) + 1e-3
    patch = {"1.weight": gamma, "1.bias": beta, "1.running_mean": mean, "1.running_var": var}
    patch = {name: values.astype(np.float32) for name, values in patch.items()}
    folded = fold_patch(graph, patch).convs["0"]
    inputs = torch.from_numpy(random.normal(size=(1, 6, 4, 4)))  # the convolution's own result
    norm = [torch.from_numpy(patch[f"1.{k}"]).double() for k in NORM_ARGUMENTS]
    conv_bias = torch.from_numpy(graph.parameters["0.bias"]).double().reshape(6, 1, 1)
    expected = torch.nn.functional.batch_norm(inputs + conv_bias, *norm, eps=1e-5).numpy()
    result = folded.scale.reshape(6, 1, 1) * inputs.numpy() + folded.bias.reshape(6, 1, 1)
    # Float64 with about six roundings on each side, of terms no larger than these:
    scale = np.abs(folded.scale).reshape(6, 1, 1)
    magnitude = scale * (np.abs(inputs.numpy()) + np.abs(mean).reshape(6, 1, 1) + 1) + 5
    assert np.all(np.abs(result - expected) <= 16 * 2.0**-53 * magnitude)


NORM_ARGUMENTS = ("running_mean", "running_var", "weight", "bias")
FOLDING_GRAPH = lower_base(one_conv_base(), [8])


def test_explicit_scale_and_bias_apply_after_the_convolutions_bias():
    graph = lower_base(one_conv_base(), [8])
    scale, bias = np.array([2.0, -1.0, 0.5, 0.0]), np.array([1.0, 2.0, 3.0, 4.0])
    conv = fold_patch(graph, {"3.patch_scale": scale, "3.patch_bias": bias}).convs["3"]
    np.testing.assert_array_equal(conv.scale, scale)
    own = graph.parameters["3.bias"].astype(np.float64)
    np.testing.assert_array_equal(conv.bias, own * scale + bias)


class SharedNetwork(torch.nn.Module):
    """One convolution called twice, one with no normalisation, one with dropout before its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 6, 3)
        self.twice = torch.nn.Conv2d(6, 6, 3, padding=1)
        self.late = torch.nn.Conv2d(6, 6, 1, bias=False)
        self.drop, self.norm = torch.nn.Dropout(0.5), torch.nn.BatchNorm2d(6)
        self.depthwise = torch.nn.Conv2d(6, 6, 3, groups=6)
        self.head = torch.nn.Linear(6, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(self.twice(self.stem(x)).relu())
        y = self.depthwise(self.norm(self.drop(self.late(y))))
        return self.head(y.mean((2, 3)))


def test_a_patch_means_after_folding_what_it_means_in_training():
    torch.manual_seed(6)
    preprocessing = replace(EXACT, input_size=12)
    base = Base.from_module(SharedNetwork(), preprocessing, "shared", "head")
    config = PatchConfig(("scale_bias", "depthwise", "head"))
    fresh = initial_tensors(base, config, classes=4)
    assert "twice.patch_scale" in fresh
    assert "norm.weight" in fresh
    tensors = {k: v + 0.3 * torch.rand_like(v) for k, v in fresh.items()}
    images = noise_images(2, 12, 15)
    folded = fold_patch(lower_base(base), {k: v.numpy() for k, v in tensors.items()})
    logits = FloatRunner(folded, "float64")(images)
    inputs = normalised(preprocessing, images).float()
    with torch.no_grad():
        expected = run_patched(base, tensors, inputs, config).numpy()
        unpatched = run_patched(base, fresh, inputs, config).numpy()
    # The training side runs in float32: 6 layers with sums of at most 54 products, 2^-24 each.
    bound = 6 * 54 * 2.0**-24 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=bound)
    assert np.abs(unpatched - expected).max() > 100 * bound


def test_a_normalisation_without_gamma_and_beta_folds_and_may_be_given_them():
    graph = lower_base(one_conv_base(affine=False), [8])
    assert "1.weight" not in graph.parameters
    plain = fold_patch(graph).convs["0"]
    np.testing.assert_array_equal(plain.scale, np.full(6, 1 / np.sqrt(1 + 1e-5)))
    patched = fold_patch(graph, {"1.weight": np.full(6, 2.0)}).convs["0"]
    np.testing.assert_array_equal(patched.scale, 2 * plain.scale)


def test_folding_changes_neither_the_graph_nor_the_patch():
    graph = lowered("mobilenet_v2_0.35")
    patch = perturbed_patch(network("mobilenet_v2_0.35").module)
    base_before = {name: array.copy() for name, array in graph.parameters.items()}
    patch_before = {name: array.copy() for name, array in patch.items()}
    folded = fold_patch(graph, patch)
    scales = {name: conv.scale.copy() for name, conv in folded.convs.items()}
    for conv in folded.convs.values():  # writing into the result reaches neither of them
        for array in (conv.weight, conv.scale, conv.bias):
            np.add(array, 1, out=array)
    for name, array in graph.parameters.items():
        np.testing.assert_array_equal(array, base_before[name])
    for name, array in patch.items():
        np.testing.assert_array_equal(array, patch_before[name])
    again = fold_patch(graph, patch)
    for name, conv in again.convs.items():
        np.testing.assert_array_equal(conv.scale, scales[name])


def test_kernels_are_marked_patched_only_where_the_patch_brings_them():
    graph = lowered("mobilenet_v2_0.35")
    folded = fold_patch(graph, {"features.1.conv.0.0.weight": np.ones((16, 1, 3, 3))})
    assert [name for name, conv in folded.convs.items() if conv.patched] == ["features.1.conv.0.0"]
    assert np.all(folded.convs["features.1.conv.0.0"].weight == 1)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("groups", [1, 3])
def test_preprocessing_folds_exactly_where_nothing_is_padded(order, groups):
    # Different means per channel, none an integer: only the border could be inexact.
    preprocessing = replace(IMAGENET, channel_order=order)
    base = one_conv_base(preprocessing, groups=groups)
    images = noise_images(3, 9, 7)
    folded = fold_patch(lower_base(base, [8]))
    logits = FloatRunner(folded, "float64")(images)
    # W / (255 std) is rounded to float32 once, 2^-24 of kernels that sum to below 30 in
    # magnitude on normalised inputs below 2.7: 30 * 2.7 * 2^-24, passed on by a mean and a
    # layer whose rows sum to below 3.
    bound = 3 * 30 * 2.7 * 2.0**-24
    np.testing.assert_allclose(logits, unfolded_logits(base, {}, images), rtol=0, atol=bound)
    if order == "BGR":
        flipped = FloatRunner(folded, "float64")(images[..., ::-1].copy())
        assert np.abs(flipped - logits).max() > 100 * bound


def first_layer(base: BaseUnderTest, folded: FoldedNetwork, images: np.ndarray):
    """Folded and unfolded results of the first convolution and its normalisation, float64."""
    seen = {}
    FloatRunner(folded, "float64")(images, lambda name, value: seen.update({name: value.clone()}))
    module = base.module.double()
    try:
        with torch.no_grad():
            expected = module[1](module[0](normalised(base.preprocessing, images)))
    finally:
        base.module.float()
    return seen["0"].numpy(), expected.numpy()


def test_at_a_padded_border_the_difference_stays_within_its_bound_and_inside_there_is_none():
    base = one_conv_base(IMAGENET, padding=1)
    folded = fold_patch(lower_base(base, [8]))
    result, expected = first_layer(base, folded, noise_images(2, 9, 9))
    difference = np.abs(result - expected).max(axis=0)
    rounding = 30 * 2.7 * 2.0**-24  # as above
    bound = border_error_bound(folded).reshape(-1, 1, 1)
    assert np.all(difference <= bound + rounding)
    assert np.all(difference[:, 1:-1, 1:-1] <= rounding)
    assert difference.max() > 0.01  # the border does differ, and the bound is not idle
    assert bound.max() < 1.0


@pytest.mark.parametrize("mean", [(128 / 255,) * 3, (0.0, 0.0, 0.0)])
def test_a_padded_border_is_exact_when_255_mean_is_one_integer(mean):
    base = one_conv_base(replace(IMAGENET, mean=mean), padding=1)
    folded = fold_patch(lower_base(base, [8]))
    assert border_error_bound(folded).max() <= 1e-12  # 255 * (128 / 255) in float64
    result, expected = first_layer(base, folded, noise_images(2, 9, 9))
    np.testing.assert_allclose(result, expected, rtol=0, atol=30 * 4.5 * 2.0**-24)


def test_an_exact_border_is_bought_with_an_identity_after_the_input():
    base = one_conv_base(IMAGENET, padding=1)
    folded = fold_patch(lower_base(base, [8], exact_border=True))
    assert border_error_bound(folded).max() == 0
    result, expected = first_layer(base, folded, noise_images(2, 9, 9))
    np.testing.assert_allclose(result, expected, rtol=0, atol=30 * 2.7 * 2.0**-24)


def test_the_input_offset_is_the_rounded_mean_pixel():
    assert input_offset(IMAGENET) == 114  # 255 * (0.485 + 0.456 + 0.406) / 3 = 114.495
    assert input_offset(EXACT) == 128
    assert input_offset(replace(IMAGENET, mean=(-0.1, -0.1, -0.1))) == 0
    assert input_offset(replace(IMAGENET, mean=(1.2, 1.2, 1.2))) == 255


def test_a_head_of_another_size_brings_its_own_classes():
    graph = lower_base(one_conv_base(), [8])
    head = {"3.weight": np.ones((7, 6, 1, 1)), "3.bias": np.arange(7.0)}
    folded = fold_patch(graph, head)
    assert folded.classes == 7
    assert run_float(folded, noise_images(1, 8, 8)).shape == (1, 7)
    fewer = fold_patch(graph, head, classes=2)
    assert (fewer.classes, fewer.convs["3"].weight.shape) == (2, (2, 1, 1, 6))


def message_of(error: type[Exception], call) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


def test_bad_tensors_are_named_with_rule_and_remedy():
    graph = lower_base(one_conv_base(), [8])
    nan = np.array([1, np.nan, 1, np.inf, 1, 1])
    cases = [
        (
            UnknownLayerError,
            {"9.weight": nan, "8.weight": nan},
            "patch tensor '8.weight' (2 unknown in all) is nothing that base 'base' reads; a "
            "patch names normalisations, kernels, the head, or a site's patch_scale and "
            "patch_bias; make the patch with this base",
        ),
        (
            PatchError,
            {"1.weight": np.ones(5)},
            "tensor '1.weight' has shape [5]; the base's layer takes [6]; make the patch with "
            "this base",
        ),
        (
            PatchError,
            {"3.weight": np.ones((7, 6, 1, 1))},
            "tensor '3.bias' has shape [4]; the base's layer takes [7]; make the patch with "
            "this base",
        ),
        (
            NonFiniteError,
            {"1.weight": nan},
            "tensor '1.weight' holds 2 of 6 values that are NaN or infinite; every parameter "
            "must be finite; train it again or restore the checkpoint",
        ),
        (
            NonFiniteError,
            {"1.running_var": np.array([1, 1, -0.5, 1, 1, 1])},
            "tensor '1.running_var' holds -0.5; a variance lies above -eps = -1e-05; train it "
            "again or restore the checkpoint",
        ),
    ]
    for error, patch, message in cases:
        assert message_of(error, lambda patch=patch: fold_patch(graph, patch)) == message
    assert message_of(HeadCapacityError, lambda: fold_patch(graph, classes=5)) == (
        "5 classes asked of head '3', which has 4 rows; fold a patch whose head has at least 5 "
        "rows, or ask for 1 to 4"
    )


def test_a_nan_in_the_base_itself_is_found():
    graph = lower_base(one_conv_base(), [8])
    kernel = graph.parameters["0.weight"].copy()
    kernel[0, 0, 0, 0] = np.nan
    broken = replace(graph, parameters={**graph.parameters, "0.weight": kernel})
    assert message_of(NonFiniteError, lambda: fold_patch(broken)).startswith(
        "tensor '0.weight' holds 1 of 162 values"
    )


def test_the_observer_sees_every_value_once_in_order_after_its_activation():
    graph = lowered("mobilenet_v2_0.35")
    seen = []
    folded = fold_patch(graph)
    images = noise_images(2, 64, 64)

    def observe(name, value):
        seen.append(name)
        assert value.shape[:2] == (2, graph.channels[name])
        if name == graph.input:
            pixels = images.astype(np.float32) - folded.input_offset
            np.testing.assert_array_equal(value.permute(0, 2, 3, 1).numpy(), pixels)
        if name == "features.0.0":
            assert 0 <= value.min() < value.max() <= 6

    run_float(folded, images, observe)
    assert seen == list(graph.channels)


def test_images_of_another_type_are_refused():
    folded = fold_patch(FOLDING_GRAPH)
    assert message_of(DataError, lambda: run_float(folded, np.zeros((8, 8, 3), np.float32))) == (
        "images are float32 of shape [8, 8, 3]; a network takes uint8 [N, H, W, 3] in RGB; decode "
        "and resize them with patchdeploy.data"
    )
