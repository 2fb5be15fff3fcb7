"""The stand-alone float32 file against the folded network in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from graph_cases import CLASSES, GRAPH_CASES, random_images
from patchdeploy_tflite import TFLiteConverter

from patchdeploy.errors import UnknownResolutionError
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import FoldedConv, FoldedNetwork, fold_patch
from patchdeploy.graph import Add, Conv2d, GlobalAvgPool, Graph, Operator, Pointwise, infer_shapes

UNIT_ROUNDOFF = 2.0**-24
GAIN = {"sigmoid": (0.25, 0.5), "hard_swish": (1.5, 0.0)}
"""(Lipschitz constant, value at 0) of each pointwise function."""


def perturbed(graph: Graph) -> FoldedNetwork:
    """``graph`` with a patch on every convolution: scales from 0.5 to 1.5 of either sign."""
    rng = np.random.default_rng(11)
    tensors = {}
    for conv in graph.convolutions():
        rows = conv.out_channels
        sign = rng.choice([-1.0, 1.0], rows)
        scale = (sign * rng.uniform(0.5, 1.5, rows)).astype(np.float32)
        tensors[f"{conv.name}.patch_scale"] = scale
        tensors[f"{conv.name}.patch_bias"] = rng.normal(0, 0.3, rows).astype(np.float32)
    return fold_patch(graph, tensors)


def dominating(network: FoldedNetwork) -> FoldedNetwork:
    """A network whose values bound those of ``network``: |W|, |s|, |b|, no activation.

    A pointwise function f is replaced by L |x| + |f(0)|, a hard_sigmoid by |x| / 6 + 1/2.
    """
    operators: list[Operator] = []
    convs: dict[str, FoldedConv] = {}
    for operator in network.graph.operators:
        if isinstance(operator, Conv2d):
            folded, sixth = network.convs[operator.name], operator.activation == "hard_sigmoid"
            convs[operator.name] = replace(
                folded,
                weight=np.abs(folded.weight),
                scale=np.abs(folded.scale) / (6 if sixth else 1),
                bias=np.abs(folded.bias) / (6 if sixth else 1) + (0.5 if sixth else 0),
            )
        if isinstance(operator, Pointwise):
            channels = network.graph.channels[operator.input]
            gain, start = GAIN[operator.kind]
            ones = np.ones((channels, 1, 1, 1), np.float32)
            rows = np.ones(channels)
            convs[operator.name] = FoldedConv(ones, gain * rows, start * rows, False)
            operator = Conv2d(
                operator.name,
                operator.input,
                operator.output,
                "",
                channels,
                channels,
                (1, 1),
                groups=channels,
            )
        elif isinstance(operator, Conv2d | Add):
            operator = replace(operator, activation="none")
        operators.append(operator)
    graph = replace(network.graph, operators=tuple(operators))
    return FoldedNetwork(graph, convs, 0, network.classes)


def count_roundings(graph: Graph, px: int) -> int:
    """Roundings on any path: K + 2 a convolution (kernel, sum, bias), n a pool, 4 elsewhere."""
    shapes, total = infer_shapes(graph, px, px), 0
    for operator in graph.operators:
        if isinstance(operator, Conv2d):
            taps = operator.in_channels // operator.groups * int(np.prod(operator.kernel))
            total += taps + 4
        elif isinstance(operator, GlobalAvgPool):
            total += int(np.prod(shapes[operator.input][:2])) + 1
        else:
            total += 4
    return total


@pytest.mark.parametrize("case", GRAPH_CASES)
def test_the_float_file_computes_the_folded_network(case: str) -> None:
    network = perturbed(GRAPH_CASES[case]())
    data = TFLiteConverter().write_float(network, (17, 16))
    interpreter = Interpreter(model_content=data)
    assert list(interpreter.get_signature_list()) == ["classify_16", "classify_17"]
    for px in (16, 17):
        images = random_images(3, px)
        expected = FloatRunner(network, "float64")(images)
        # By induction over the operators: if every input is off by at most n u A, A the value of
        # the dominating network there, the output is off by at most (n + roundings) u A'. A
        # second-order term is below 1 % (n u < 1e-4).
        offset = np.abs(images.astype(int) - network.input_offset).astype(np.uint8)
        bound = FloatRunner(dominating(network), "float64")(offset)
        tolerance = 1.01 * UNIT_ROUNDOFF * count_roundings(network.graph, px) * bound
        runner = interpreter.get_signature_runner(f"classify_{px}")
        found = np.concatenate([runner(image=image[None])["scores"] for image in images])
        assert found.shape == (3, CLASSES)
        assert found.dtype == np.float32
        assert np.all(np.abs(found - expected) <= tolerance)
        assert np.max(tolerance) < 0.1 * np.ptp(expected)


def test_the_patch_changes_the_float_file() -> None:
    graph = GRAPH_CASES["conv_stack"]()
    plain = TFLiteConverter().write_float(fold_patch(graph), (16,))
    assert plain != TFLiteConverter().write_float(perturbed(graph), (16,))
    assert plain == TFLiteConverter().write_float(fold_patch(graph), (16, 16))


def test_a_float_file_says_that_it_shares_nothing() -> None:
    data = TFLiteConverter().write_float(perturbed(GRAPH_CASES["branches"]()), (16, 24))
    model = schema.ModelT.InitFromPackedBuf(data)
    assert model.description == (
        b"patchdeploy: stand-alone float32; it shares nothing with other tasks"
    )
    kernels = [
        [t.buffer for t in graph.tensors if t.name.endswith(b".weight")]
        for graph in model.subgraphs
    ]
    assert kernels[0] == kernels[1]


def test_a_float_file_of_no_resolution_is_an_error() -> None:
    with pytest.raises(UnknownResolutionError):
        TFLiteConverter().write_float(perturbed(GRAPH_CASES["residual"]()), ())
