"""Neutral operators -> TFLite operators, the same for int8 and float32.

In: a graph, the shapes of its values at one resolution, and `Numbers` (how a value, a kernel, a
bias is dressed: quantised with slots, or float). Out: a filled `Subgraph`. Versions are the
lowest that tensorflow/lite/tools/versioning/op_version.cc asks for int8; the version never
depends on a value, so MUL has 3 (which also covers a rescale of 1 and more).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from patchdeploy.graph import (
    Activation,
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    MaxPool,
    Mul,
    Operator,
    Padding,
    Pointwise,
    Shape,
    fix_size,
    infer_shapes,
)
from patchdeploy_tflite.padding import Axis, WindowPadding, choose_padding, never_negative
from patchdeploy_tflite.plan import Array, Options, Pool, Quantization, Scalar, Subgraph, Tensor

PADDING = {"SAME": 0, "VALID": 1}
FUSED: Mapping[Activation, int] = {"none": 0, "relu": 1, "relu6": 3}
"""schema.fbs, enum ActivationFunctionType."""


class Numbers(Protocol):
    """What differs between an int8 and a float32 file.

    Attributes:
        pool: where constants are kept.
        dtype: of activations and kernels.
        int8: 1 where operators run on int8 (a version more), else 0.
    """

    pool: Pool
    dtype: str
    int8: int

    def quantization(self, value: str) -> Quantization | None:
        """Of the tensor that holds ``value``."""
        ...

    def kernel(self, conv: Conv2d) -> Tensor:
        """[O, kh, kw, I/groups], or [1, kh, kw, O] for a depthwise convolution."""
        ...

    def bias(self, conv: Conv2d) -> Tensor: ...

    def lowest(self, value: str) -> Tensor:
        """A scalar that no element of ``value`` is below: what a maximum is padded with."""
        ...

    def fused(self, activation: Activation) -> int:
        """ActivationFunctionType of a convolution that ends in ``activation``."""
        ...

    def open(self, draft: Draft) -> None:
        """Make the input tensor 'image' and the value ``graph.input``."""
        ...

    def after_conv(self, draft: Draft, conv: Conv2d, index: int) -> int:
        """What the convolution's activation still needs; returns the value's tensor."""
        ...

    def close(self, draft: Draft, scores: int, rows: int) -> None:
        """Make the output tensor 'scores', float32 [1, rows], from [1, 1, 1, rows]."""
        ...


@dataclass(frozen=True)
class Draft:
    """A subgraph on the way.

    Attributes:
        index: the tensor that holds each value.
        never_negative: values that a maximum may pad with zeros.
    """

    graph: Graph
    shapes: Mapping[str, Shape]
    numbers: Numbers
    subgraph: Subgraph
    index: dict[str, int]
    never_negative: frozenset[str]

    def tensor(self, value: str, name: str = "", shape: Shape | None = None) -> Tensor:
        """The tensor of ``value``, or one of another shape that is quantised like it."""
        rows, columns, channels = shape or self.shapes[value]
        quantization = self.numbers.quantization(value)
        return Tensor(name or value, (1, rows, columns, channels), self.numbers.dtype, quantization)

    def integers(self, values: Array, name: str) -> int:
        """Index of a constant int32 tensor."""
        data = np.asarray(values, np.int32)
        buffer = self.numbers.pool.constant(data)
        return self.subgraph.constant(Tensor(name, data.shape, "INT32", None, buffer))

    def emit(
        self,
        kind: str,
        version: int,
        inputs: tuple[int, ...],
        output: Tensor,
        **fields: Scalar,
    ) -> int:
        """Append an operator with its options table, where it has one."""
        table = OPTION_TABLES[kind]
        options = Options(table, tuple(fields.items())) if table else None
        return self.subgraph.operation(kind, version, inputs, output, options)


OPTION_TABLES = {
    "ADD": "AddOptions",
    "CAST": "CastOptions",
    "CONCATENATION": "ConcatenationOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "GATHER": "GatherOptions",
    "HARD_SWISH": "HardSwishOptions",
    "LOGISTIC": "",
    "MAX_POOL_2D": "Pool2DOptions",
    "MEAN": "ReducerOptions",
    "MUL": "MulOptions",
    "PAD": "PadOptions",
    "PADV2": "PadV2Options",
    "QUANTIZE": "QuantizeOptions",
    "RESHAPE": "ReshapeOptions",
    "SLICE": "SliceOptions",
    "SUB": "SubOptions",
}


def draft_subgraph(graph: Graph, px: int, numbers: Numbers, rows: int) -> Subgraph:
    """The subgraph ``classify_<px>``: 'image' uint8 [1, px, px, 3] to 'scores' [1, rows].

    Raises:
        UnknownResolutionError: the network cannot run at this size.
    """
    graph = fix_size(graph, px, px)
    shapes = infer_shapes(graph, px, px)
    shapes[graph.output] = (1, 1, rows)
    draft = Draft(graph, shapes, numbers, Subgraph(f"classify_{px}"), {}, never_negative(graph))
    numbers.open(draft)
    for operator in graph.operators:
        draft.index[operator.output] = RULES[type(operator)](draft, operator)
    numbers.close(draft, draft.index[graph.output], rows)
    return draft.subgraph


def _window(draft: Draft, operator: Conv2d | MaxPool, dilation: tuple[int, int]) -> WindowPadding:
    made, given = draft.shapes[operator.output], draft.shapes[operator.input]
    axes = [
        Axis(
            size=given[axis],
            output=made[axis],
            span=dilation[axis] * (operator.kernel[axis] - 1) + 1,
            stride=operator.stride[axis],
            before=operator.zeros[2 * axis],
        )
        for axis in (0, 1)
    ]
    return choose_padding(axes[0], axes[1])


def _padded(draft: Draft, operator: Conv2d | MaxPool, explicit: Padding) -> int:
    """The operator's input, padded with zeros, or for a maximum with the lowest number."""
    value, numbers = operator.input, draft.numbers
    top, bottom, left, right = explicit
    rows, columns, channels = draft.shapes[value]
    shape = (rows + top + bottom, columns + left + right, channels)
    widths = np.array([[0, 0], [top, bottom], [left, right], [0, 0]])
    inputs = (draft.index[value], draft.integers(widths, "paddings"))
    output = draft.tensor(value, f"{operator.name}:padded", shape)
    if isinstance(operator, Conv2d) or value in draft.never_negative:
        return draft.emit("PAD", 1 + numbers.int8, inputs, output)
    lowest = draft.subgraph.constant(numbers.lowest(value))
    return draft.emit("PADV2", 1 + numbers.int8, (*inputs, lowest), output)


def _conv(draft: Draft, conv: Conv2d) -> int:
    padding = _window(draft, conv, conv.dilation)
    index = draft.index[conv.input]
    if padding.needs_pad:
        index = _padded(draft, conv, padding.explicit)
    numbers = draft.numbers
    inputs = (
        index,
        draft.subgraph.tensor(numbers.kernel(conv)),
        draft.subgraph.tensor(numbers.bias(conv)),
    )
    fields: dict[str, Scalar] = {
        "Padding": PADDING[padding.scheme],
        "StrideW": conv.stride[1],
        "StrideH": conv.stride[0],
        "DilationWFactor": conv.dilation[1],
        "DilationHFactor": conv.dilation[0],
        "FusedActivationFunction": numbers.fused(conv.activation),
    }
    kind, version = "CONV_2D", 6 if conv.groups > 1 else 1 + 2 * numbers.int8
    if conv.is_depthwise:
        kind, version = "DEPTHWISE_CONV_2D", 3 if numbers.int8 or max(conv.dilation) > 1 else 1
        fields["DepthMultiplier"] = conv.out_channels // conv.in_channels
    made = draft.emit(kind, version, inputs, draft.tensor(conv.output), **fields)
    return numbers.after_conv(draft, conv, made)


def _add(draft: Draft, add: Add) -> int:
    inputs = (draft.index[add.inputs[0]], draft.index[add.inputs[1]])
    output, fused = draft.tensor(add.output), FUSED[add.activation]
    version = 1 + draft.numbers.int8
    return draft.emit("ADD", version, inputs, output, FusedActivationFunction=fused)


def _mul(draft: Draft, mul: Mul) -> int:
    inputs = (draft.index[mul.inputs[0]], draft.index[mul.inputs[1]])
    version = 1 + 2 * draft.numbers.int8
    output = draft.tensor(mul.output)
    return draft.emit("MUL", version, inputs, output, FusedActivationFunction=0)


def _pointwise(draft: Draft, pointwise: Pointwise) -> int:
    inputs, output = (draft.index[pointwise.input],), draft.tensor(pointwise.output)
    if pointwise.kind == "hard_swish":
        return draft.emit("HARD_SWISH", 1, inputs, output)
    return draft.emit("LOGISTIC", 1 + draft.numbers.int8, inputs, output)


def _concat(draft: Draft, concat: Concat) -> int:
    inputs = tuple(draft.index[value] for value in concat.inputs)
    version = 1 + draft.numbers.int8
    output = draft.tensor(concat.output)
    return draft.emit("CONCATENATION", version, inputs, output, Axis=3, FusedActivationFunction=0)


def _max_pool(draft: Draft, pool: MaxPool) -> int:
    padding = _window(draft, pool, (1, 1))
    index = draft.index[pool.input]
    if padding.needs_pad:
        index = _padded(draft, pool, padding.explicit)
    return draft.emit(
        "MAX_POOL_2D",
        1 + draft.numbers.int8,
        (index,),
        draft.tensor(pool.output),
        Padding=PADDING[padding.scheme],
        StrideW=pool.stride[1],
        StrideH=pool.stride[0],
        FilterWidth=pool.kernel[1],
        FilterHeight=pool.kernel[0],
        FusedActivationFunction=0,
    )


def _global_pool(draft: Draft, pool: GlobalAvgPool) -> int:
    inputs = (draft.index[pool.input], draft.integers(np.array([1, 2]), "axes"))
    version = 1 + draft.numbers.int8
    return draft.emit("MEAN", version, inputs, draft.tensor(pool.output), KeepDims=True)


def _select(draft: Draft, select: ChannelSelect) -> int:
    version, output = 1 + draft.numbers.int8, draft.tensor(select.output)
    source = draft.index[select.input]
    if not select.is_contiguous:
        chosen = draft.integers(np.array(select.indices), f"{select.name}:indices")
        return draft.emit("GATHER", version, (source, chosen), output, Axis=3)
    begin = draft.integers(np.array([0, 0, 0, select.indices[0]]), "begin")
    extent = draft.integers(np.array(output.shape), "size")
    return draft.emit("SLICE", version, (source, begin, extent), output)


RULES: Mapping[type[Operator], Callable[[Draft, Any], int]] = {
    Conv2d: _conv,
    Pointwise: _pointwise,
    Add: _add,
    Mul: _mul,
    Concat: _concat,
    MaxPool: _max_pool,
    GlobalAvgPool: _global_pool,
    ChannelSelect: _select,
}
