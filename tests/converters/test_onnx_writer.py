"""The int8 .onnx file: every operator against the integer executor, form, free sizes."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import graph_cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graph_cases import CONV_ONLY_CASES, GRAPH_CASES, GraphBuilder, make_case, random_images
from numpy.typing import NDArray
from onnx_cases import EXACT_FORMS, in_form
from patchdeploy_onnx import OnnxConverter

from patchdeploy.convert import Converter, load_converter
from patchdeploy.errors import ConfigError, UnsupportedOperatorError
from patchdeploy.graph import Conv2d, Graph, infer_shapes
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import ActivationParams, QuantizedBase, QuantizedVariant
from patchdeploy.quantize.runtimes import REFERENCE, arithmetic_of

ONNXRUNTIME = arithmetic_of("onnx")

LEVELS = {
    "as written": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "optimised": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def open_session(
    data: bytes, level: str = "as written", form: str = EXACT_FORMS[0]
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(in_form(data, form), options)


def run_scores(data: bytes, images: NDArray[np.uint8], level: str = "as written") -> NDArray[Any]:
    scores: NDArray[Any] = open_session(data, level).run(None, {"image": images})[0]
    return scores


def run_values(
    data: bytes, images: NDArray[np.uint8], graph: Graph, form: str = EXACT_FORMS[0]
) -> dict[str, NDArray[Any]]:
    """uint8 codes of every operator's output, by value name."""
    model = onnx.load_model_from_string(data)
    known = {info.name: info for info in model.graph.value_info}
    names = [operator.output for operator in graph.operators]
    model.graph.output.extend(known[f"/{name}"] for name in names)
    outputs = open_session(model.SerializeToString(), form=form).run(
        [f"/{name}" for name in names], {"image": images}
    )
    return dict(zip(names, outputs, strict=True))


def executor_values(
    base: QuantizedBase, variant: QuantizedVariant, images: NDArray[np.uint8], arithmetic: Any
) -> dict[str, NDArray[Any]]:
    seen: dict[str, list[NDArray[Any]]] = {}
    run_integer(
        base,
        variant,
        images,
        arithmetic,
        observe=lambda name, codes: seen.setdefault(name, []).append(codes),
    )
    return {name: np.concatenate(groups) for name, groups in seen.items()}


def with_activations(
    variant: QuantizedVariant, changes: dict[str, ActivationParams]
) -> QuantizedVariant:
    return dataclasses.replace(variant, activations={**variant.activations, **changes})


@pytest.mark.parametrize("name", GRAPH_CASES)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("form", EXACT_FORMS)
def test_every_value_is_bit_equal_to_the_executor(name: str, seed: int, form: str) -> None:
    base, variants = make_case(name, seed=seed)
    images = random_images(3, 19, seed)
    found = run_values(OnnxConverter().write(base, variants).data, images, base.graph, form)
    expected = executor_values(base, variants[16], images, ONNXRUNTIME)
    for operator in base.graph.operators:
        codes = found[operator.output].astype(np.int16) - 128
        assert np.unique(codes).size > 2, f"{operator.name} says nothing"
        np.testing.assert_array_equal(codes, expected[operator.output], operator.name)


@pytest.mark.parametrize("name", CONV_ONLY_CASES)
def test_convolutions_are_bit_equal_to_the_reference_arithmetic(name: str) -> None:
    base, variants = make_case(name)
    images = random_images(2, 21)
    found = run_values(OnnxConverter().write(base, variants).data, images, base.graph)
    expected = executor_values(base, variants[16], images, REFERENCE)
    for operator in base.graph.operators:
        if not isinstance(operator, Conv2d):
            break  # what follows another operator inherits its rounding
        codes = found[operator.output].astype(np.int16) - 128
        np.testing.assert_array_equal(codes, expected[operator.output], operator.name)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_one_file_serves_every_height_width_and_batch(name: str) -> None:
    base, variants = make_case(name)
    data = OnnxConverter().write(base, variants).data
    for level in LEVELS:
        session = open_session(data, level)
        for count, height, width in ((1, 16, 16), (3, 33, 33), (2, 24, 41)):
            images = np.random.default_rng(height).integers(
                0, 256, (count, height, width, 3), np.uint8
            )
            scores = session.run(None, {"image": images})[0]
            expected = run_integer(base, variants[16], images, ONNXRUNTIME).logits
            np.testing.assert_array_equal(scores, expected)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_sizes_agree_with_the_neutral_graph(name: str) -> None:
    base, variants = make_case(name)
    data = OnnxConverter().write(base, variants).data
    for height, width in ((16, 16), (23, 30)):
        images = np.zeros((1, height, width, 3), np.uint8)
        found = run_values(data, images, base.graph)
        shapes = infer_shapes(base.graph, height, width)
        for operator in base.graph.operators:
            expected = shapes[operator.output][:2]
            assert found[operator.output].shape[1:3] == expected, operator.name


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_the_checker_passes_and_every_value_has_a_type_and_a_shape(name: str) -> None:
    base, variants = make_case(name)
    model = onnx.load_model_from_string(OnnxConverter().write(base, variants).data)
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    known = {info.name for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in inferred.graph.node:
        assert known.issuperset(node.output), node.name
    for info in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = info.type.tensor_type.shape.dim
        assert all(dim.dim_value or dim.dim_param for dim in dims), info.name


def two_strides() -> Graph:
    """Two windows of one stride over one value, whose sizes differ where the input is odd."""
    g = GraphBuilder()
    x = g.conv("image", "padded", 8, 3, 2, (1, 1, 1, 1))
    y = g.conv("image", "bare", 8, 2, 2)
    return g.finish(g.mul(x, g.global_pool(y, "squeeze"), "scale"), "two_strides")


@pytest.mark.parametrize("name", [*GRAPH_CASES, "two_strides"])
def test_declared_sizes_hold_and_one_name_is_one_size(name: str) -> None:
    """ONNX Runtime may give two values whose shapes have the same names the same memory."""
    graph = GRAPH_CASES[name]() if name in GRAPH_CASES else two_strides()
    base = graph_cases.make_base(graph)
    data = OnnxConverter().write(base, {16: graph_cases.make_variant(base, 16, 0)}).data
    infos = {info.name: info for info in onnx.load_model_from_string(data).graph.value_info}
    for height, width in ((16, 16), (17, 30), (23, 19), (40, 41)):
        bound: dict[str, int] = {}
        images = np.zeros((2, height, width, 3), np.uint8)
        for value, codes in run_values(data, images, graph).items():
            dims = infos[f"/{value}"].type.tensor_type.shape.dim
            for dim, length in zip(dims, codes.shape, strict=True):
                declared = (
                    bound.setdefault(dim.dim_param, length) if dim.dim_param else dim.dim_value
                )
                assert declared == length, (value, dim.dim_param)
        assert bound["batch"] == 2


def test_input_and_output_are_what_every_runtime_gets() -> None:
    base, variants = make_case("conv_stack")
    session = open_session(OnnxConverter().write(base, variants).data)
    (image,), (scores,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type) == ("image", "tensor(uint8)")
    assert image.shape == ["batch", "height", "width", 3]
    assert (scores.name, scores.type) == ("scores", "tensor(float)")
    assert scores.shape == ["batch", graph_cases.CAPACITY]


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_the_file_has_no_transpose_no_path_and_versions_that_mobile_takes(name: str) -> None:
    base, variants = make_case(name)
    data = OnnxConverter().write(base, variants).data
    model = onnx.load_model_from_string(data)
    assert "Transpose" not in {node.op_type for node in model.graph.node}
    assert model.ir_version == 8
    versions = {entry.domain: entry.version for entry in model.opset_import}
    assert versions == {"": 15, "com.microsoft": 1}
    for tensor in model.graph.initializer:
        assert not tensor.external_data
        assert tensor.data_location == onnx.TensorProto.DEFAULT
    assert str(Path.cwd()).encode() not in data


def test_the_optimiser_has_nothing_left_to_do() -> None:
    base, variants = make_case("squeeze_excitation")
    data = OnnxConverter().write(base, variants).data
    images = random_images(2, 20)
    plain, optimised = (run_scores(data, images, level) for level in LEVELS)
    np.testing.assert_array_equal(plain, optimised)


def tied_graph(activation: Any) -> Graph:
    """An activation that is concatenated with a value of another range."""
    g = GraphBuilder()
    x = g.conv("image", "stem", 8, 3, 2, (1, 1, 1, 1), activation="relu")
    left = g.conv(x, "left", 4, activation=activation)
    right = g.conv(x, "right", 4)
    return g.finish(g.concat((left, right), "concat"), f"tied_{activation}")


@pytest.mark.parametrize("activation", ["relu", "relu6"])
def test_an_activation_tied_to_a_wider_range_is_clamped(activation: Any) -> None:
    base = graph_cases.make_base(tied_graph(activation))
    variant = graph_cases.make_variant(base, 16, 0)
    # Steps of 0.05 around -10: the site reaches from -5.9 to 6.85.
    site = base.layout().sites[base.layout().activation_index["left:out"]]
    variant = with_activations(variant, {site: ActivationParams(np.float32(0.05), -10)})
    variant.weight_scale["left"][...] *= np.float32(8)  # so that values pass both ends
    images = random_images(3, 19)
    found = run_values(OnnxConverter().write(base, {16: variant}).data, images, base.graph)
    left = found["left:out"].astype(np.int16) - 128
    expected = executor_values(base, variant, images, ONNXRUNTIME)["left:out"]
    np.testing.assert_array_equal(left, expected)
    assert left.min() == -10
    assert left.max() == (127 if activation == "relu" else -10 + 120)
    assert (found["right:out"].astype(np.int16) - 128).min() < -10


@pytest.mark.parametrize("name", sorted(GRAPH_CASES.keys() - {"branches"}))
def test_an_activation_costs_no_operator_where_saturation_does_it(name: str) -> None:
    base, variants = make_case(name)
    model = onnx.load_model_from_string(OnnxConverter().write(base, variants).data)
    assert not {node.op_type for node in model.graph.node} & {"Clip", "Relu", "Max", "Min"}


def test_a_tied_hard_sigmoid_is_refused() -> None:
    base = graph_cases.make_base(tied_graph("hard_sigmoid"))
    variant = graph_cases.make_variant(base, 16, 0)
    with pytest.raises(UnsupportedOperatorError) as caught:
        OnnxConverter().write(base, {16: variant})
    assert str(caught.value) == (
        "operator 'left' ends in a hard sigmoid, and its output is joined with values outside "
        "[0, 1]; a hard sigmoid needs the range [0, 1] to itself; put a multiplication or a "
        "convolution between it and the concatenation"
    )


def test_an_unknown_pointwise_kind_is_refused() -> None:
    base, variants = make_case("squeeze_excitation")
    operators = tuple(
        dataclasses.replace(op, kind="softplus") if op.name == "swish" else op
        for op in base.graph.operators
    )
    graph = dataclasses.replace(base.graph, operators=operators)
    with pytest.raises(UnsupportedOperatorError) as caught:
        OnnxConverter().write(dataclasses.replace(base, graph=graph), variants)
    assert str(caught.value) == (
        "operator 'swish' of kind 'softplus' has no ONNX form here; the writer knows Conv2d, "
        "Add, Mul, Concat, MaxPool, GlobalAvgPool, ChannelSelect, hard_swish and sigmoid; "
        "express the layer with these or leave this runtime out of the export"
    )


def test_no_variant_is_refused() -> None:
    base, _ = make_case("conv_stack")
    with pytest.raises(ConfigError) as caught:
        OnnxConverter().write(base, {})
    assert str(caught.value) == (
        "no variant to write; a file holds the values of one variant; give at least one resolution"
    )


def test_the_first_variant_gives_the_values() -> None:
    base, variants = make_case("conv_stack", (16, 24))
    both = OnnxConverter().write(base, variants)
    assert both == OnnxConverter().write(base, {16: variants[16]})
    assert both.data != OnnxConverter().write(base, {24: variants[24]}).data


def test_writing_leaves_its_inputs_untouched() -> None:
    base, variants = make_case("branches")
    before, _ = make_case("branches")
    OnnxConverter().write(base, variants)
    for name, kernel in before.weights.items():
        np.testing.assert_array_equal(base.weights[name], kernel)


def test_the_converter_is_registered() -> None:
    converter = load_converter("onnx")
    assert isinstance(converter, OnnxConverter)
    assert isinstance(converter, Converter)
    assert (converter.name, converter.suffix) == ("onnx", ".onnx")


def test_running_a_bundle_imports_the_wire_format_without_onnx() -> None:
    code = (
        "import sys, patchdeploy_onnx.wire\n"
        "print(sorted({'onnx', 'onnx_graphsurgeon', 'torch', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
