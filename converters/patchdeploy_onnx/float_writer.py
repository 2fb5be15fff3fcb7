"""A stand-alone float32 .onnx file of one folded task, for debugging and for float accuracy.

In: a `FoldedNetwork`. Out: standard ONNX operators in NCHW, uint8 image in, scores out. It
shares nothing with any other file: each convolution's scale is multiplied into its kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from patchdeploy.fold import FoldedNetwork
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    MaxPool,
    Mul,
    Operator,
    Pointwise,
)
from patchdeploy_onnx.model_file import serialize_model
from patchdeploy_onnx.operators import conv_attributes, pool_attributes, unsupported
from patchdeploy_onnx.sizes import BATCH, Dims, symbolic_sizes
from patchdeploy_onnx.tensors import INPUT, OUTPUT

FLOAT_NOTE = "patchdeploy float32 stand-alone file; it shares nothing with other tasks"
CHANNELS_FIRST = (0, 3, 1, 2)


def write_float32(network: FoldedNetwork) -> bytes:
    """The file's bytes; input ``image`` uint8 [N, H, W, 3] RGB, output ``scores`` [N, classes].

    Raises:
        UnsupportedOperatorError: an operator without a float form.
    """
    writer = FloatWriter(network)
    image = writer.write_input()
    for operator in network.graph.operators:
        writer.write(operator)
    scores = writer.write_output()
    return serialize_model(network.graph.name, writer.nodes, image, scores, FLOAT_NOTE)


class FloatWriter:
    """Collects the nodes of one file, operator by operator."""

    def __init__(self, network: FoldedNetwork) -> None:
        self.network = network
        self.nodes: list[Any] = []
        rows = {name: conv.weight.shape[0] for name, conv in network.convs.items()}
        self._sizes: dict[str, Dims] = symbolic_sizes(network.graph, rows)
        self._values: dict[str, Any] = {}

    def write(self, operator: Operator) -> None:
        """Add the nodes that compute ``operator``.

        Raises:
            UnsupportedOperatorError: an operator without a float form.
        """
        inputs = [self.value(value) for value in operator.inputs]
        output = self.value(operator.output)
        match operator:
            case Conv2d():
                self._write_conv(operator, inputs[0], output)
            case Add():
                self._write_activation(operator.name, "Add", inputs, {}, operator, output)
            case Mul():
                self._add("Mul", operator.name, inputs, output)
            case Concat():
                self._add("Concat", operator.name, inputs, output, axis=1)
            case MaxPool():
                self._add("MaxPool", operator.name, inputs, output, **pool_attributes(operator))
            case GlobalAvgPool():
                self._add("GlobalAveragePool", operator.name, inputs, output)
            case ChannelSelect():
                indices = np.array(operator.indices, np.int64)
                constant = gs.Constant(f"{operator.name}.indices", indices)
                self._add("Gather", operator.name, [*inputs, constant], output, axis=1)
            case Pointwise(kind="sigmoid"):
                self._add("Sigmoid", operator.name, inputs, output)
            case Pointwise(kind="hard_swish"):
                gate = self.value(operator.output, "/gate")
                self._write_hard_sigmoid(f"{operator.name}/gate", inputs, gate)
                self._add("Mul", operator.name, [*inputs, gate], output)
            case _:
                raise unsupported(operator)

    def value(self, value: str, suffix: str = "") -> Any:
        """The activation ``value``: float32 [N, C, H, W]."""
        name = f"/{value}{suffix}"
        if name not in self._values:
            shape = [self._sizes[value][axis] for axis in CHANNELS_FIRST]
            self._values[name] = gs.Variable(name, dtype=np.float32, shape=shape)
        return self._values[name]

    def write_input(self) -> Any:
        """image uint8 [N, H, W, 3] -> the graph's input, float32 minus the offset."""
        value = self.network.graph.input
        sizes = list(self._sizes[value])
        image = gs.Variable(INPUT, dtype=np.uint8, shape=sizes)
        turned = gs.Variable(
            "/image/turned", dtype=np.uint8, shape=[sizes[axis] for axis in CHANNELS_FIRST]
        )
        real = self.value(value, "/pixels")
        offset = gs.Constant("image.offset", np.array(self.network.input_offset, np.float32))
        self._add("Transpose", "image/turn", [image], turned, perm=list(CHANNELS_FIRST))
        self._add("Cast", "image/real", [turned], real, to=np.float32)
        self._add("Sub", "image/offset", [real, offset], self.value(value))
        return image

    def write_output(self) -> Any:
        """The graph's output, [N, C, 1, 1], to scores [N, C]."""
        value = self.network.graph.output
        classes = self._sizes[value][3]
        scores = gs.Variable(OUTPUT, dtype=np.float32, shape=[BATCH, classes])
        shape = gs.Constant("scores.shape", np.array([0, classes], np.int64))
        self._add("Reshape", "scores/flat", [self.value(value), shape], scores)
        return scores

    def _write_conv(self, conv: Conv2d, source: Any, output: Any) -> None:
        folded = self.network.convs[conv.name]
        kernel: NDArray[np.float32] = (
            (folded.weight * folded.scale[:, None, None, None])
            .astype(np.float32)
            .transpose(CHANNELS_FIRST)
        )
        inputs = [
            source,
            gs.Constant(f"{conv.name}.weight", np.ascontiguousarray(kernel)),
            gs.Constant(f"{conv.name}.bias", folded.bias.astype(np.float32)),
        ]
        self._write_activation(conv.name, "Conv", inputs, conv_attributes(conv), conv, output)

    def _write_activation(
        self,
        name: str,
        op: str,
        inputs: list[Any],
        attributes: dict[str, Any],
        operator: Conv2d | Add,
        output: Any,
    ) -> None:
        """``op``, then the operator's activation."""
        if operator.activation == "none":
            self._add(op, name, inputs, output, **attributes)
            return
        linear = self.value(operator.output, "/linear")
        self._add(op, f"{name}/linear", inputs, linear, **attributes)
        match operator.activation:
            case "relu":
                self._add("Relu", name, [linear], output)
            case "relu6":
                limits = [
                    gs.Constant(f"{name}.{key}", np.array(limit, np.float32))
                    for key, limit in (("low", 0), ("high", 6))
                ]
                self._add("Clip", name, [linear, *limits], output)
            case "hard_sigmoid":
                self._write_hard_sigmoid(name, [linear], output)
            case _:
                raise unsupported(operator)

    def _write_hard_sigmoid(self, name: str, inputs: list[Any], output: Any) -> None:
        self._add("HardSigmoid", name, inputs, output, alpha=1 / 6, beta=0.5)

    def _add(self, op: str, name: str, inputs: list[Any], output: Any, **attributes: Any) -> None:
        self.nodes.append(gs.Node(op, name, attributes, inputs, [output]))
