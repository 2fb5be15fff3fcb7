"""The .tflite file itself: signatures, shared buffers, sizes, operators, errors."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from graph_cases import (
    GRAPH_CASES,
    make_base,
    make_case,
    make_variant,
    mobilenet_v2,
    random_images,
)
from patchdeploy_tflite import TFLiteConverter

from patchdeploy.convert import Converter, WrittenModel, load_converter
from patchdeploy.errors import UnknownResolutionError
from patchdeploy.graph import infer_shapes
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import (
    QuantizedBase,
    QuantizedVariant,
    neutral_variant,
)
from patchdeploy.quantize.runtimes import arithmetic_of
from patchdeploy.slots import select_view

LITERT = arithmetic_of("tflite")

RESOLUTIONS = (16, 17, 24)
BUILTINS = {code: name for name, code in vars(schema.BuiltinOperator).items()}


def parse(data: bytes | bytearray) -> Any:
    """The whole file as objects: every table and vector is read."""
    return schema.ModelT.InitFromPackedBuf(bytes(data))


def operator_names(model: Any, subgraph: int = 0) -> list[str]:
    codes = [BUILTINS[code.builtinCode] for code in model.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in model.subgraphs[subgraph].operators]


def write_neutral(
    base: QuantizedBase, resolutions: tuple[int, ...], **options: bool
) -> WrittenModel:
    variants = {px: neutral_variant(base, px) for px in resolutions}
    return TFLiteConverter(**options).write(base, variants)


@pytest.fixture(scope="module")
def mobilenet() -> tuple[QuantizedBase, dict[int, QuantizedVariant]]:
    base = make_base(mobilenet_v2(), capacity=1000)
    variants = {px: make_variant(base, px, 1, classes=1000) for px in (96, 160, 224)}
    head = variants[96].weights["head"]
    return base, {px: replace(v, weights={"head": head}) for px, v in variants.items()}


def test_the_entry_point_loads_the_converter() -> None:
    converter = load_converter("tflite")
    assert isinstance(converter, TFLiteConverter)
    assert isinstance(converter, Converter)


@pytest.mark.parametrize("case", GRAPH_CASES)
def test_a_signature_per_resolution_takes_pixels_and_gives_scores(case: str) -> None:
    base, variants = make_case(case, RESOLUTIONS)
    interpreter = Interpreter(model_content=TFLiteConverter().write(base, variants).data)
    assert interpreter.get_signature_list() == {
        f"classify_{px}": {"inputs": ["image"], "outputs": ["scores"]} for px in RESOLUTIONS
    }
    for px in RESOLUTIONS:
        runner = interpreter.get_signature_runner(f"classify_{px}")
        image = runner.get_input_details()["image"]
        scores = runner.get_output_details()["scores"]
        assert (image["dtype"], list(image["shape"])) == (np.uint8, [1, px, px, 3])
        assert (scores["dtype"], list(scores["shape"])) == (np.float32, [1, 10])
        assert image["quantization"] == (1.0, 123)


def test_a_bias_has_the_scale_of_its_products() -> None:
    base, variants = make_case("residual", RESOLUTIONS)
    model = parse(TFLiteConverter().write(base, variants).data)
    for graph, (_, variant) in zip(model.subgraphs, sorted(variants.items()), strict=True):
        for operator in graph.operators:
            if len(operator.inputs) == 3:
                x, kernel, bias = (graph.tensors[k] for k in operator.inputs)
                name = kernel.name.decode().removesuffix(".weight")
                expected = np.float32(x.quantization.scale[0]) * variant.weight_scale[name]
                np.testing.assert_array_equal(bias.quantization.scale, expected, strict=True)
                assert not np.any(bias.quantization.zeroPoint)
                assert not np.any(kernel.quantization.zeroPoint)


def test_activations_are_fused_and_a_hard_sigmoid_is_saturation() -> None:
    expected = {"none": 0, "relu": 1, "relu6": 3, "hard_sigmoid": 0}
    for case, make_graph in GRAPH_CASES.items():
        base, variants = make_case(case, (16,))
        model = parse(TFLiteConverter().write(base, variants).data)
        fused = {
            model.subgraphs[0].tensors[operator.outputs[0]].name.decode(): getattr(
                operator.builtinOptions, "fusedActivationFunction", 0
            )
            for operator in model.subgraphs[0].operators
        }
        for operator in make_graph().operators:
            activation = getattr(operator, "activation", "none")
            assert fused[operator.output] == expected[activation], (case, operator.name)


def test_operator_versions_are_what_int8_asks_for() -> None:
    """tensorflow/lite/tools/versioning/op_version.cc; MUL 3 covers a rescale of 1 and more."""
    versions: dict[str, set[int]] = {}
    for case in GRAPH_CASES:
        base, variants = make_case(case, (16,))
        for code in parse(TFLiteConverter().write(base, variants).data).operatorCodes:
            assert code.deprecatedBuiltinCode == code.builtinCode
            versions.setdefault(BUILTINS[code.builtinCode], set()).add(code.version)
    assert versions == {
        "ADD": {2},
        "CONCATENATION": {2},
        "CONV_2D": {3, 6},  # 6: groups
        "DEPTHWISE_CONV_2D": {3},
        "DEQUANTIZE": {2},
        "GATHER": {2},
        "HARD_SWISH": {1},
        "LOGISTIC": {2},
        "MAX_POOL_2D": {2},
        "MEAN": {2},
        "MUL": {3},
        "PAD": {2},
        "PADV2": {2},
        "QUANTIZE": {1},
        "RESHAPE": {1},
        "SLICE": {2},
    }


def test_a_maximum_over_negative_values_is_not_padded_with_zeros() -> None:
    base, variants = make_case("branches", (16,))
    low = {**variants[16].bias, "mix": variants[16].bias["mix"] - 40_000}
    variant = replace(variants[16], bias=low)
    codes: dict[str, Any] = {}
    images = random_images(1, 16)
    expected = run_integer(base, variant, images, LITERT, codes.__setitem__).logits
    zero_point = variant.activations["stem:out"].zero_point
    assert codes["pool2:out"][0, 0, 0].min() < min(zero_point, 0) - 10
    data = TFLiteConverter().write(base, {16: variant}).data
    runner = Interpreter(model_content=data).get_signature_runner("classify_16")
    np.testing.assert_array_equal(runner(image=images)["scores"], expected)


def test_all_subgraphs_read_the_same_kernel_buffers() -> None:
    base, variants = make_case("grouped_dilated", RESOLUTIONS)
    model = parse(TFLiteConverter().write(base, variants).data)
    kernels = [
        {t.name: t.buffer for t in graph.tensors if t.name.endswith(b".weight")}
        for graph in model.subgraphs
    ]
    biases = [
        {t.name: t.buffer for t in graph.tensors if t.name.endswith(b".bias")}
        for graph in model.subgraphs
    ]
    assert len(kernels[0]) == 6
    assert all(other == kernels[0] for other in kernels)
    assert len({index for buffers in biases for index in buffers.values()}) == 3 * 6
    assert all(len(buffer.data) for buffer in model.buffers[1:])


@pytest.mark.parametrize("case", GRAPH_CASES)
def test_no_transpose_and_no_pad_that_a_scheme_expresses(case: str) -> None:
    base, variants = make_case(case, (16, 17))
    model = parse(TFLiteConverter().write(base, variants).data)
    pads = {
        "conv_stack": (2, 0),
        "residual": (1, 0),
        "squeeze_excitation": (1, 0),
        "branches": (1, 0),
        "grouped_dilated": (1, 0),
        "asymmetric_padding": (2, 2),
    }
    for subgraph in (0, 1):
        names = Counter(operator_names(model, subgraph))
        assert names["TRANSPOSE"] == 0
        assert names["PAD"] == pads[case][subgraph]
    assert Counter(operator_names(model))["PADV2"] == (1 if case == "branches" else 0)


@pytest.mark.parametrize("case", GRAPH_CASES)
def test_tensor_shapes_are_those_of_the_graph(case: str) -> None:
    base, variants = make_case(case, (17,))
    model = parse(TFLiteConverter().write(base, variants).data)
    found = {tensor.name.decode(): tuple(tensor.shape) for tensor in model.subgraphs[0].tensors}
    for value, (height, width, channels) in infer_shapes(base.graph, 17, 17).items():
        if value not in (base.graph.input, base.graph.output):
            assert found[value] == (1, height, width, channels)


def test_equal_vectors_tables_and_operator_codes_are_stored_once() -> None:
    base, variants = make_case("conv_stack", RESOLUTIONS)
    data = TFLiteConverter().write(base, variants).data
    model = schema.Model.GetRootAs(data)
    zero_points: dict[int, set[int]] = {}
    for graph in (model.Subgraphs(k) for k in range(3)):
        for tensor in (graph.Tensors(k) for k in range(graph.TensorsLength())):
            quantization = tensor.Quantization()
            if quantization is not None and quantization.ZeroPointLength() > 1:
                field = quantization._tab.Offset(10)  # zero_point: the fourth field
                place = quantization._tab.Vector(field)
                zero_points.setdefault(quantization.ZeroPointLength(), set()).add(place)
    assert zero_points.keys() == {8, 10, 12, 16, 24}
    assert all(len(places) == 1 for places in zero_points.values())
    codes = [
        (model.OperatorCodes(k).BuiltinCode(), model.OperatorCodes(k).Version())
        for k in range(model.OperatorCodesLength())
    ]
    assert len(codes) == len(set(codes)) == 7


def test_writing_is_deterministic_whatever_the_order_of_variants() -> None:
    base, variants = make_case("branches", RESOLUTIONS)
    backwards = dict(reversed(variants.items()))
    assert TFLiteConverter().write(base, variants) == TFLiteConverter().write(base, backwards)


def test_kernel_data_is_aligned_to_sixteen_bytes() -> None:
    base, variants = make_case("conv_stack", RESOLUTIONS)
    model = schema.Model.GetRootAs(TFLiteConverter().write(base, variants).data)
    for buffer in (model.Buffers(k) for k in range(1, model.BuffersLength())):
        assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0


def test_mobilenet_sizes_and_operators(
    mobilenet: tuple[QuantizedBase, Mapping[int, QuantizedVariant]],
) -> None:
    base, variants = mobilenet
    lengths = []
    for count in (1, 2, 3):
        some = dict(list(variants.items())[-count:])
        lengths.append(len(TFLiteConverter().write(base, some).data))
    # 3,469,760 bytes of kernels, 12 for each of 18,056 rows (two scales and a bias), 8 for each
    # of 5,248 in the zero-point vectors of 14 lengths: 3,728,416. The rest is tables and names.
    assert 3_728_416 < lengths[0] < 3_728_416 + 24_000
    # 216,672 of scales and biases a resolution; the rest is tables.
    assert 216_672 < lengths[1] - lengths[0] < 228_000
    assert 216_672 < lengths[2] - lengths[1] < 228_000
    model = parse(TFLiteConverter().write(base, {224: variants[224]}).data)
    assert Counter(operator_names(model)) == {
        "QUANTIZE": 1,
        "PAD": 5,
        "CONV_2D": 36,
        "DEPTHWISE_CONV_2D": 17,
        "ADD": 10,
        "MEAN": 1,
        "RESHAPE": 1,
        "DEQUANTIZE": 2,
    }


def test_mobilenet_is_written_in_less_than_a_third_of_a_second(
    mobilenet: tuple[QuantizedBase, Mapping[int, QuantizedVariant]],
) -> None:
    base, variants = mobilenet
    elapsed = []
    for _ in range(5):
        start = time.perf_counter()
        TFLiteConverter().write(base, {224: variants[224]})
        elapsed.append(time.perf_counter() - start)
    assert min(elapsed) < 0.3


def test_mobilenet_is_bit_equal_to_the_executor(
    mobilenet: tuple[QuantizedBase, Mapping[int, QuantizedVariant]],
) -> None:
    base, variants = mobilenet
    written = TFLiteConverter().write(base, variants)
    view = select_view(bytearray(written.data), written.table, 96)
    runner = Interpreter(model_content=bytes(view)).get_signature_runner("classify_96")
    images = random_images(1, 96)
    expected = run_integer(base, variants[96], images, LITERT)
    np.testing.assert_array_equal(runner(image=images)["scores"], expected.logits)
    assert len(np.unique(expected.codes)) > 50


def test_no_resolution_is_an_error() -> None:
    base, _ = make_case("conv_stack", (16,))
    with pytest.raises(UnknownResolutionError) as caught:
        TFLiteConverter().write(base, {})
    assert str(caught.value) == (
        "resolutions []; a file has one signature for each resolution, of 1 px or more; name at "
        "least one"
    )


def test_a_resolution_too_small_for_the_network_is_an_error() -> None:
    base = make_base(GRAPH_CASES["branches"]())
    with pytest.raises(UnknownResolutionError, match="2x2 px would make 'pool3' 0x0"):
        write_neutral(base, (16, 2))
