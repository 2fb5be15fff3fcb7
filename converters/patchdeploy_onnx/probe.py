"""A model whose answers are known, to see whether a processor multiplies kernels exactly.

In: nothing. Out: the bytes of a .onnx file. Every pixel is 255 and every kernel value +127 or -127
(output channels take turns), so sums of two products leave 16 bits (2 * 255 * 127 > 32767) and a
processor that adds them with saturation, as VPMADDUBSW does, gives about half of what is right.
There is a convolution for each way that ONNX Runtime computes one: matrix times matrix, matrix
times vector, window, grouped window, depthwise window.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from patchdeploy_onnx.wire import ELEMENT_TYPES, integer, message

SIDE, CHANNELS = 8, 32
PIXEL, KERNEL = 255, 127
STEPS = 100
"""Every convolution's exact result is 128 + STEPS or 128 - STEPS."""

MODEL_IR_VERSION, MODEL_GRAPH, MODEL_OPSETS = 1, 7, 8
GRAPH_NODE, GRAPH_NAME, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 2, 5, 11, 12
NODE_INPUT, NODE_OUTPUT, NODE_TYPE, NODE_ATTRIBUTE, NODE_DOMAIN = 1, 2, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_INTS, ATTRIBUTE_TYPE, INT, INTS = 1, 3, 8, 20, 2, 7
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_DATA = 1, 2, 8, 9
VALUE_NAME, VALUE_TYPE, TYPE_TENSOR, TENSOR_ELEMENT, TENSOR_SHAPE = 1, 2, 1, 1, 2
SHAPE_DIM, DIM_VALUE = 1, 1
OPSET_DOMAIN, OPSET_VERSION = 1, 2
MICROSOFT = b"com.microsoft"
INPUT = "image"


@dataclass(frozen=True)
class ProbeConv:
    """A convolution without padding over [1, SIDE, SIDE, CHANNELS]."""

    name: str
    channels: int
    kernel: int
    stride: int = 1
    groups: int = 1


CONVS = (
    ProbeConv("matrix", 24, 1),
    ProbeConv("vector", 24, 1, stride=SIDE),
    ProbeConv("narrow", 5, 1),
    ProbeConv("window", 16, 3),
    ProbeConv("grouped", 16, 3, groups=2),
    ProbeConv("depthwise", CHANNELS, 3, groups=CHANNELS),
)


def probe_model() -> bytes:
    """Input ``image`` uint8 [1, SIDE, SIDE, CHANNELS]; an output uint8 [1, h, w, channels] for
    each of CONVS; int8 kernels (`unsigned_kernels` makes the other form)."""
    nodes, outputs = [], []
    tensors = [
        _tensor("one", "f32", (), struct.pack("<f", 1.0)),
        _tensor("low", "u8", (), b"\0"),
        _tensor("middle", "u8", (), b"\x80"),
        _tensor("kernel_zero_point", "i8", (), b"\0"),
    ]
    for conv in CONVS:
        fan_in = CHANNELS // conv.groups
        step = PIXEL * KERNEL * conv.kernel**2 * fan_in / STEPS
        rows = (struct.pack("b", KERNEL), struct.pack("b", -KERNEL))
        row_length = conv.kernel**2 * fan_in
        values = b"".join(rows[k % 2] * row_length for k in range(conv.channels))
        dims = (conv.channels, fan_in, conv.kernel, conv.kernel)
        tensors += [
            _tensor(f"{conv.name}.kernel", "i8", dims, values),
            _tensor(f"{conv.name}.step", "f32", (), struct.pack("<f", step)),
        ]
        nodes.append(_node(conv))
        side = (SIDE - conv.kernel) // conv.stride + 1
        outputs.append(_value(conv.name, (1, side, side, conv.channels)))
    graph = b"".join(
        [
            *(message(GRAPH_NODE, node) for node in nodes),
            message(GRAPH_NAME, b"probe"),
            *(message(GRAPH_INITIALIZER, tensor) for tensor in tensors),
            message(GRAPH_INPUT, _value(INPUT, (1, SIDE, SIDE, CHANNELS))),
            *(message(GRAPH_OUTPUT, output) for output in outputs),
        ]
    )
    return (
        integer(MODEL_IR_VERSION, 8)
        + message(MODEL_GRAPH, graph)
        + message(MODEL_OPSETS, message(OPSET_DOMAIN, b"") + integer(OPSET_VERSION, 15))
        + message(MODEL_OPSETS, message(OPSET_DOMAIN, MICROSOFT) + integer(OPSET_VERSION, 1))
    )


def _node(conv: ProbeConv) -> bytes:
    """QLinearConv, channels last; input and kernels of scale 1, an output of scale ``step``."""
    kernel, step = f"{conv.name}.kernel", f"{conv.name}.step"
    inputs = (INPUT, "one", "low", kernel, "one", "kernel_zero_point", step, "middle")
    attributes: dict[str, int | tuple[int, ...]] = {
        "kernel_shape": (conv.kernel, conv.kernel),
        "strides": (conv.stride, conv.stride),
        "group": conv.groups,
        "channels_last": 1,
    }
    return b"".join(
        [
            *(message(NODE_INPUT, name.encode()) for name in inputs),
            message(NODE_OUTPUT, conv.name.encode()),
            message(NODE_TYPE, b"QLinearConv"),
            *(message(NODE_ATTRIBUTE, _attribute(*one)) for one in attributes.items()),
            message(NODE_DOMAIN, MICROSOFT),
        ]
    )


def _attribute(name: str, value: int | tuple[int, ...]) -> bytes:
    head = message(ATTRIBUTE_NAME, name.encode())
    if isinstance(value, int):
        return head + integer(ATTRIBUTE_INT, value) + integer(ATTRIBUTE_TYPE, INT)
    values = b"".join(integer(ATTRIBUTE_INTS, one) for one in value)
    return head + values + integer(ATTRIBUTE_TYPE, INTS)


def _tensor(name: str, dtype: str, dims: tuple[int, ...], data: bytes) -> bytes:
    return (
        b"".join(integer(TENSOR_DIMS, dim) for dim in dims)
        + integer(TENSOR_TYPE, ELEMENT_TYPES[dtype])
        + message(TENSOR_NAME, name.encode())
        + message(TENSOR_DATA, data)
    )


def _value(name: str, dims: tuple[int, ...]) -> bytes:
    shape = b"".join(message(SHAPE_DIM, integer(DIM_VALUE, dim)) for dim in dims)
    kind = integer(TENSOR_ELEMENT, ELEMENT_TYPES["u8"]) + message(TENSOR_SHAPE, shape)
    return message(VALUE_NAME, name.encode()) + message(VALUE_TYPE, message(TYPE_TENSOR, kind))
