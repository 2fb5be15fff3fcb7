"""The float32 .onnx file: every operator against float64, form, free sizes."""

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graph_cases import CLASSES, GRAPH_CASES, random_images
from numpy.typing import NDArray
from patchdeploy_onnx import OnnxConverter

from patchdeploy.floatnet import run_float
from patchdeploy.fold import FoldedConv, FoldedNetwork
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    MaxPool,
    Mul,
    Operator,
)

EPS = 2.0**-24
"""Half a unit in the last place of a float32, relative: the error of one rounding."""


def fold_randomly(name: str, seed: int = 0) -> FoldedNetwork:
    """Case ``name`` with random scales of both signs and biases, around its own kernels."""
    rng = np.random.default_rng(seed)
    graph = GRAPH_CASES[name]()
    convs = {}
    for conv in graph.convolutions():
        kernel = graph.parameters[conv.weight].transpose(0, 2, 3, 1)
        scale = rng.uniform(0.5, 2.0, conv.out_channels) * rng.choice([-1, 1], conv.out_channels)
        if conv.input == graph.input:
            scale /= 60.0
        bias = rng.normal(0, 0.5, conv.out_channels)
        convs[conv.name] = FoldedConv(np.ascontiguousarray(kernel), scale, bias, False)
    return FoldedNetwork(graph, convs, 123, CLASSES)


def run_values(data: bytes, images: NDArray[np.uint8], names: list[str]) -> dict[str, Any]:
    """float32 [N, C, H, W] of the named values, and the scores."""
    model = onnx.load_model_from_string(data)
    known = {info.name: info for info in model.graph.value_info}
    model.graph.output.extend(known[f"/{name}"] for name in names)
    session = ort.InferenceSession(model.SerializeToString())
    outputs = session.run(["scores", *(f"/{name}" for name in names)], {"image": images})
    return dict(zip(["scores", *names], outputs, strict=True))


def expect(
    operator: Operator, network: FoldedNetwork, inputs: list[NDArray[Any]]
) -> tuple[NDArray[Any], NDArray[Any] | float]:
    """(float64 output, error bound) of one operator on the values that the file itself fed it."""
    x = torch.from_numpy(inputs[0]).double()
    match operator:
        case Conv2d():
            exact, bound = expect_conv(operator, network.convs[operator.name], x)
        case Add():
            exact = inputs[0].astype(np.float64) + inputs[1]
            bound = EPS * np.abs(exact)
        case Mul():
            exact = inputs[0].astype(np.float64) * inputs[1]
            return exact, EPS * np.abs(exact)
        case Concat():
            return np.concatenate(inputs, axis=1), 0.0
        case ChannelSelect():
            return inputs[0][:, list(operator.indices)], 0.0
        case MaxPool():
            top, bottom, left, right = operator.padding
            padded = torch.nn.functional.pad(x, (left, right, top, bottom), value=-torch.inf)
            kernel, stride, ceil = operator.kernel, operator.stride, operator.ceil_mode
            pooled = torch.nn.functional.max_pool2d(padded, kernel, stride, ceil_mode=ceil)
            return pooled.numpy(), 0.0
        case GlobalAvgPool():
            count = x.shape[2] * x.shape[3]
            # count - 1 additions and a division, each within EPS of the sum of magnitudes.
            bound = count * EPS * x.abs().mean((2, 3), keepdim=True).numpy()
            return x.mean((2, 3), keepdim=True).numpy(), bound
        case _ if operator.kind == "sigmoid":
            # ONNX Runtime evaluates a rational approximation; over 6 million points in
            # [-100, 100] it was within 2.8 EPS of the exact value (onnxruntime 1.32, x86-64).
            return x.sigmoid().numpy(), 4 * EPS
        case _:
            # x / 6, + 1/2 and the product round once each, 1/6 itself once; gate <= 1.
            return torch.nn.functional.hardswish(x).numpy(), 4 * EPS * np.abs(inputs[0])
    if operator.activation == "hard_sigmoid":
        # 1/6 of the linear error, then the three roundings of x * (1/6) + 1/2.
        gate = np.clip(exact / 6 + 0.5, 0, 1)
        return gate, bound / 6 + 3 * EPS * (np.abs(exact) / 6 + 1)
    low, high = {"none": (-np.inf, np.inf), "relu": (0, np.inf), "relu6": (0, 6)}[
        operator.activation
    ]
    return np.clip(exact, low, high), bound


def expect_conv(
    conv: Conv2d, folded: FoldedConv, x: torch.Tensor
) -> tuple[NDArray[Any], NDArray[Any]]:
    """A sum of K + 1 products in any order is within (K + 1) EPS of the sum of magnitudes; the
    kernel and the bias are rounded to float32 once more."""
    top, bottom, left, right = conv.padding
    padded = torch.nn.functional.pad(x, (left, right, top, bottom))
    scaled = folded.weight.astype(np.float64) * folded.scale[:, None, None, None]
    kernel = torch.from_numpy(scaled).permute(0, 3, 1, 2)
    bias = torch.from_numpy(folded.bias)
    options = {"stride": conv.stride, "dilation": conv.dilation, "groups": conv.groups}
    exact = torch.nn.functional.conv2d(padded, kernel, bias, **options)  # type: ignore[call-overload]
    magnitude = torch.nn.functional.conv2d(padded.abs(), kernel.abs(), bias.abs(), **options)  # type: ignore[call-overload]
    terms = kernel[0].numel() + 1
    return exact.numpy(), (terms + 2) * EPS * magnitude.numpy()


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_every_operator_is_within_its_rounding_of_float64(name: str) -> None:
    network = fold_randomly(name)
    graph = network.graph
    images = random_images(2, 19)
    data = OnnxConverter().write_float(network, (16,))
    names = [graph.input, *(operator.output for operator in graph.operators)]
    found = run_values(data, images, names)
    pixels = images.transpose(0, 3, 1, 2).astype(np.float32) - 123
    np.testing.assert_array_equal(found[graph.input], pixels)
    for operator in graph.operators:
        inputs = [found[value] for value in operator.inputs]
        expected, bound = expect(operator, network, inputs)
        assert found[operator.output].shape == expected.shape, operator.name
        error = np.abs(found[operator.output] - expected)
        assert (error <= bound + 1e-30).all(), (operator.name, error.max())
    scores = found[graph.output].reshape(2, CLASSES)
    np.testing.assert_array_equal(found["scores"], scores)
    assert np.unique(scores).size > CLASSES


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_the_float_file_ranks_as_the_float_network_does(name: str) -> None:
    network = fold_randomly(name, 1)
    images = random_images(4, 21, 1)
    data = OnnxConverter().write_float(network, (16,))
    scores = run_values(data, images, [])["scores"]
    expected = run_float(network, images)
    # The values themselves are compared above, operator by operator, each with its bound.
    np.testing.assert_array_equal(scores.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_one_float_file_serves_every_size_and_says_what_it_is(name: str) -> None:
    data = OnnxConverter().write_float(fold_randomly(name), (16, 24))
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    assert model.doc_string == (
        "patchdeploy float32 stand-alone file; it shares nothing with other tasks"
    )
    assert {entry.domain for entry in model.opset_import} == {""}
    session = ort.InferenceSession(data)
    for count, height, width in ((1, 16, 16), (3, 24, 40), (2, 33, 17)):
        image = np.zeros((count, height, width, 3), np.uint8)
        assert session.run(None, {"image": image})[0].shape == (count, CLASSES)
