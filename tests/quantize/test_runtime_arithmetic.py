"""The executor's sums, products, means and tables against the two runtimes, bit for bit.

One operator per model. Sums and products see all 65,536 pairs of codes. Where the arithmetic of
a runtime differs from `reference`, a test counts that it does: otherwise it could not fail.
"""

from typing import Any

import numpy as np
import pytest

from patchdeploy.quantize.model import SIGMOID_SCALE, ActivationParams
from patchdeploy.quantize.pointwise import CODES
from patchdeploy.quantize.runtimes import REFERENCE, arithmetic_of

LITERT, ONNXRUNTIME = arithmetic_of("tflite"), arithmetic_of("onnx")
"""Those of the machine that the tests run on: ``make arm`` runs them on ARM."""
F32 = np.float32
PAIRS = tuple(part.reshape(1, 16, 64, 64).astype(np.int8) for part in np.meshgrid(CODES, CODES))


def draw(rng: np.random.Generator, spread: float = 0.5) -> ActivationParams:
    scale = F32(np.exp(rng.normal() * spread - 3))
    return ActivationParams(scale, int(rng.integers(-128, 128)))


def add_cases(count: int = 25) -> list[tuple[ActivationParams, ...]]:
    """Random parameters; the first few are powers of two, so that exact halves occur."""
    rng = np.random.default_rng(0)
    cases = []
    for k in range(count):
        a, b, y = draw(rng), draw(rng), draw(rng)
        if k < 5:
            a, b = (
                ActivationParams(F32(2.0 ** -(4 + i)), p.zero_point) for i, p in ((0, a), (1, b))
            )
            y = ActivationParams(F32(2.0**-3), y.zero_point)
        cases.append((a, b, ActivationParams(F32(y.scale * 2), y.zero_point)))
    return cases


def uneven_add_cases() -> list[tuple[ActivationParams, ...]]:
    """Ratios that no bundle has; ONNX Runtime on ARM leaves its fixed point for some of them."""
    rng = np.random.default_rng(4)
    scales = [
        (300, 1),
        (1, 300),
        (0.7, 2**-15),
        (0.0003, 0.0004),
        (1.99999994, 0.3),
        (0.3, 3.9999998),
    ]
    return [
        tuple(ActivationParams(F32(s), int(rng.integers(-128, 128))) for s in (*pair, 1))
        for pair in scales
    ]


def multiply_cases(count: int = 25) -> list[tuple[ActivationParams, ...]]:
    rng = np.random.default_rng(1)
    cases = []
    for k in range(count):
        a, b, y = draw(rng), draw(rng), draw(rng)
        scale = a.scale * b.scale * F32(rng.uniform(50, 255))
        if k < 5:
            a, b = (
                ActivationParams(F32(0.5), a.zero_point),
                ActivationParams(F32(0.25), b.zero_point),
            )
            scale = F32(2.0 ** (k + 2))
        cases.append((a, b, ActivationParams(F32(scale), y.zero_point)))
    return cases


def mean_cases(count: int = 40) -> list[tuple[Any, ...]]:
    rng = np.random.default_rng(2)
    cases = []
    for k in range(count):
        side = int(rng.integers(1, 15))
        x = draw(rng)
        # Every third case keeps or halves the scale: exact halves occur.
        ratio = 2.0 ** -rng.integers(0, 2) if k % 3 == 0 else rng.uniform(0.2, 1.2)
        y = ActivationParams(F32(x.scale * F32(ratio)), int(rng.integers(-128, 128)))
        cases.append((rng.integers(-128, 128, (1, side, side, 64), np.int8), x, y))
    return cases


def table_cases(count: int = 60) -> list[tuple[ActivationParams, ActivationParams]]:
    """Input parameters, and a hard-swish output range that fits them."""
    rng = np.random.default_rng(3)
    cases = []
    for _ in range(count):
        x = draw(rng, 0.7)
        high = max((127 - x.zero_point) * float(x.scale), 0.2)
        scale = F32((high + 0.38) / 250)
        zero_point = int(np.clip(-128 + round(0.375 / float(scale)), -128, 127))
        cases.append((x, ActivationParams(scale, zero_point)))
    return cases


SIGMOID = ActivationParams(SIGMOID_SCALE, -128)


class LiteRT:
    """Single-operator .tflite models through ai-edge-litert with its default XNNPACK delegate."""

    def __init__(self) -> None:
        self.schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
        self.interpreter = pytest.importorskip("ai_edge_litert.interpreter")
        self.flatbuffers = pytest.importorskip("flatbuffers")

    def run(
        self,
        code: str,
        options: Any,
        inputs: list[tuple[np.ndarray, ActivationParams]],
        y: ActivationParams,
        axes: bool = False,
    ) -> np.ndarray:
        schema = self.schema
        tensors = [self._tensor(x.shape, params) for x, params in inputs]
        first = inputs[0][0].shape
        if axes:
            tensors.append(self._tensor((2,), None, buffer=1))
        shape = (first[0], 1, 1, first[3]) if axes else first
        tensors.append(self._tensor(shape, y))
        operator, graph, model = schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
        operator.inputs, operator.outputs = list(range(len(tensors) - 1)), [len(tensors) - 1]
        if options is not None:
            operator.builtinOptionsType = getattr(
                schema.BuiltinOptions, type(options).__name__[:-1]
            )
            operator.builtinOptions = options
        graph.tensors, graph.operators = tensors, [operator]
        graph.inputs, graph.outputs = list(range(len(inputs))), operator.outputs
        model.version, model.subgraphs = 3, [graph]
        model.operatorCodes = [schema.OperatorCodeT()]
        model.operatorCodes[0].builtinCode = getattr(schema.BuiltinOperator, code)
        model.operatorCodes[0].deprecatedBuiltinCode = getattr(schema.BuiltinOperator, code)
        model.operatorCodes[0].version = 1 if code == "HARD_SWISH" else 2
        model.buffers = [schema.BufferT(), schema.BufferT()]
        model.buffers[1].data = np.frombuffer(np.array([1, 2], np.int32).tobytes(), np.uint8)
        builder = self.flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return self._invoke(bytes(builder.Output()), [x for x, _ in inputs])

    def _tensor(self, shape: Any, params: ActivationParams | None, buffer: int = 0) -> Any:
        tensor = self.schema.TensorT()
        tensor.shape, tensor.buffer = list(shape), buffer
        tensor.type = (
            self.schema.TensorType.INT32 if params is None else self.schema.TensorType.INT8
        )
        if params is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = np.array([params.scale], np.float32)
            tensor.quantization.zeroPoint = np.array([params.zero_point], np.int64)
        return tensor

    def _invoke(self, data: bytes, inputs: list[np.ndarray]) -> np.ndarray:
        interpreter = self.interpreter.Interpreter(model_content=data, num_threads=1)
        interpreter.allocate_tensors()
        for detail, x in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(detail["index"], x)
        interpreter.invoke()
        return np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


class OnnxRuntime:
    """Single-node models of com.microsoft's QLinear operators on uint8 codes."""

    def __init__(self) -> None:
        self.onnx = pytest.importorskip("onnx")
        self.runtime = pytest.importorskip("onnxruntime")

    def run(
        self,
        nodes: list[tuple[str, list[str], list[str], dict[str, Any]]],
        feeds: Any,
        constants: Any,
    ) -> np.ndarray:
        helper, kind = self.onnx.helper, self.onnx.TensorProto.UINT8
        made = [
            helper.make_node(
                op, inputs, outputs, domain="com.microsoft" if "QL" in op else "", **more
            )
            for op, inputs, outputs, more in nodes
        ]
        graph = helper.make_graph(
            made,
            "one",
            [helper.make_tensor_value_info(n, kind, x.shape) for n, x in feeds.items()],
            [helper.make_tensor_value_info("y", kind, None)],
            [self.onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = self.runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return (session.run(None, feeds)[0].astype(np.int16) - 128).astype(np.int8)

    def binary(self, op: str, a: Any, b: Any, params: tuple[ActivationParams, ...]) -> np.ndarray:
        names = ["a", "as", "az", "b", "bs", "bz", "ys", "yz"]
        constants = quantised_constants(dict(zip("aby", params, strict=True)))
        return self.run([(op, names, ["y"], {})], {"a": unsigned(a), "b": unsigned(b)}, constants)

    def unary(
        self, op: str, x: Any, params: tuple[ActivationParams, ...], **more: Any
    ) -> np.ndarray:
        constants = quantised_constants(dict(zip("xy", params, strict=True)))
        nodes = [(op, ["x", "xs", "xz", "ys", "yz"], ["y"], more)]
        return self.run(nodes, {"x": unsigned(x)}, constants)


def unsigned(codes: np.ndarray) -> np.ndarray:
    return (codes.astype(np.int16) + 128).astype(np.uint8)


def quantised_constants(params: dict[str, ActivationParams]) -> dict[str, Any]:
    scales = {f"{name}s": one.scale for name, one in params.items()}
    return scales | {f"{name}z": np.uint8(one.zero_point + 128) for name, one in params.items()}


@pytest.fixture(scope="module")
def litert() -> LiteRT:
    return LiteRT()


@pytest.fixture(scope="module")
def ort() -> OnnxRuntime:
    return OnnxRuntime()


def compare(results: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Bit-equal to the runtime; within 1 LSB of the reference; and different from it somewhere."""
    differing = 0
    for runtime, emulated, reference in results:
        np.testing.assert_array_equal(emulated, runtime)
        gap = np.abs(reference.astype(int) - runtime)
        assert gap.max() <= 1  # derived in patchdeploy.quantize.runtimes
        differing += int(gap.sum())
    assert differing > 0, "no case tells the runtime's arithmetic from the reference"


def test_sums_are_bit_equal_to_litert_over_every_pair_of_codes(litert):
    results = []
    for params in add_cases():
        inputs = [(PAIRS[0], params[0]), (PAIRS[1], params[1])]
        runtime = litert.run("ADD", litert.schema.AddOptionsT(), inputs, params[2])
        results.append((runtime, LITERT.add(*PAIRS, *params), REFERENCE.add(*PAIRS, *params)))
    compare(results)


def test_sums_are_bit_equal_to_onnxruntime_over_every_pair_of_codes(ort):
    results = []
    for params in [*add_cases(), *uneven_add_cases()]:
        runtime = ort.binary("QLinearAdd", *PAIRS, params)
        results.append((runtime, ONNXRUNTIME.add(*PAIRS, *params), REFERENCE.add(*PAIRS, *params)))
    compare(results)


def test_products_are_bit_equal_to_litert_over_every_pair_of_codes(litert):
    for params in multiply_cases():
        inputs = [(PAIRS[0], params[0]), (PAIRS[1], params[1])]
        runtime = litert.run("MUL", litert.schema.MulOptionsT(), inputs, params[2])
        np.testing.assert_array_equal(LITERT.multiply(*PAIRS, *params), runtime)


def test_products_are_bit_equal_to_onnxruntime_over_every_pair_of_codes(ort):
    results = []
    for params in multiply_cases():
        runtime = ort.binary("QLinearMul", *PAIRS, params)
        results.append(
            (runtime, ONNXRUNTIME.multiply(*PAIRS, *params), REFERENCE.multiply(*PAIRS, *params))
        )
    compare(results)


def test_means_are_bit_equal_to_litert(litert):
    options = litert.schema.ReducerOptionsT()
    options.keepDims = True
    results = []
    for x, x_params, y_params in mean_cases():
        runtime = litert.run("MEAN", options, [(x, x_params)], y_params, axes=True)
        emulated = LITERT.mean(x, x_params, y_params)
        results.append((runtime, emulated, REFERENCE.mean(x, x_params, y_params)))
    compare(results)


@pytest.mark.parametrize("channels_last", [0, 1])
def test_means_are_bit_equal_to_onnxruntime(ort, channels_last):
    for x, *params in mean_cases():
        fed = x if channels_last else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        op = "QLinearGlobalAveragePool"
        runtime = ort.unary(op, fed, tuple(params), channels_last=channels_last)
        expected = ONNXRUNTIME.mean(x, *params).reshape(-1)
        np.testing.assert_array_equal(expected, runtime.reshape(-1))


def test_sigmoids_are_bit_equal_to_both_runtimes(litert, ort):
    codes = CODES.reshape(1, 1, 1, 256)
    for x_params, _ in table_cases():
        runtime = litert.run("LOGISTIC", None, [(codes, x_params)], SIGMOID).reshape(-1)
        np.testing.assert_array_equal(LITERT.pointwise("sigmoid", x_params, SIGMOID), runtime)
        runtime = ort.unary("QLinearSigmoid", codes, (x_params, SIGMOID)).reshape(-1)
        np.testing.assert_array_equal(ONNXRUNTIME.pointwise("sigmoid", x_params, SIGMOID), runtime)


def test_hard_swish_is_bit_equal_to_litert(litert):
    codes = CODES.reshape(1, 1, 1, 256)
    results = []
    for params in table_cases():
        options = litert.schema.HardSwishOptionsT()
        runtime = litert.run("HARD_SWISH", options, [(codes, params[0])], params[1]).reshape(-1)
        emulated = LITERT.pointwise("hard_swish", *params)
        results.append((runtime, emulated, REFERENCE.pointwise("hard_swish", *params)))
    compare(results)


def test_hard_swish_is_bit_equal_to_onnxruntimes_float_operator(ort):
    nodes = [
        ("DequantizeLinear", ["x", "xs", "xz"], ["d"], {}),
        ("HardSwish", ["d"], ["h"], {}),
        ("QuantizeLinear", ["h", "ys", "yz"], ["y"], {}),
    ]
    codes = CODES.reshape(1, 256)
    for params in table_cases():
        constants = quantised_constants(dict(zip("xy", params, strict=True)))
        runtime = ort.run(nodes, {"x": unsigned(codes)}, constants).reshape(-1)
        np.testing.assert_array_equal(ONNXRUNTIME.pointwise("hard_swish", *params), runtime)
