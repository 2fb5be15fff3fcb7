"""The neutral graph: what a network computes, free of torch and of any runtime.

In: nothing (lowering builds it). Out: a `Graph` of few operators on values of shape
[N, H, W, C], whose parameters keep the names of the base's state dict, so that a patch (a
mapping from those names to tensors) can be folded in without knowing the framework.

The same graph serves every resolution: `infer_shapes` computes the sizes for one of them.
A linear layer is a 1x1 convolution, a flatten after pooling changes nothing, average pooling
with a fixed window is a depthwise convolution with a constant kernel, and a normalisation that
follows no convolution is a depthwise 1x1 convolution: the writers then need few operators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data import Preprocessing
from patchdeploy.errors import UnknownResolutionError

Activation = Literal["none", "relu", "relu6", "hard_sigmoid"]
PointwiseKind = Literal["hard_swish", "sigmoid"]
Padding = tuple[int, int, int, int]
"""Zeros at (top, bottom, left, right)."""
SizedPadding = Padding | Literal["same"]
"""``same`` is TensorFlow's SAME, computed from the map's size (see `same_padding`)."""
FloatArray = NDArray[np.float32]


def _explicit(padding: SizedPadding) -> Padding:
    assert padding != "same", "fix_size comes before whatever needs numbers"
    return padding


COMPUTED = ".computed"
"""How the key of a kernel ends that the network computes from other tensors."""


def module_of(weight: str) -> str:
    """The module path in a kernel's key."""
    stem, found, _ = weight.rpartition(COMPUTED)
    return stem if found else weight.removesuffix(".weight")


@dataclass(frozen=True)
class Norm:
    """A normalisation: ``<name>.weight``, ``.bias``, ``.running_mean`` and ``.running_var``."""

    name: str
    eps: float


@dataclass(frozen=True)
class Conv2d:
    """``activation(scale[c] * (W[c] * x) + bias[c])``: a convolution with its affine site.

    Attributes:
        name: module path, unique; the name of the site that a patch addresses.
        weight: key of the kernel in ``Graph.parameters``, torch layout [O, I/groups, kh, kw]
            (or [O, I] for a linear layer, [O, I*kh*kw] for one after a flatten).
        bias: key of the bias, or None.
        norm: the normalisation that follows, or None (then ``<name>.patch_scale`` and
            ``<name>.patch_bias`` are the explicit scale and bias that a patch may carry).
        kernel, stride, dilation: (height, width).
        padding: zeros at (top, bottom, left, right), or "same".
        activation: applied last. ``hard_sigmoid`` is relu6(x + 3) / 6.
        is_constant: the kernel is part of the graph (pooling, identity), never of a patch.
    """

    name: str
    input: str
    output: str
    weight: str
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    bias: str | None = None
    norm: Norm | None = None
    groups: int = 1
    stride: tuple[int, int] = (1, 1)
    padding: SizedPadding = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    activation: Activation = "none"
    is_constant: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def zeros(self) -> Padding:
        """``padding`` of an operator whose input size is fixed (see `fix_size`)."""
        return _explicit(self.padding)

    @property
    def module(self) -> str:
        """Path of the module: the site's name, but where a module is called twice."""
        return module_of(self.weight)

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels


@dataclass(frozen=True)
class Pointwise:
    """``hard_swish`` (x * relu6(x + 3) / 6) or ``sigmoid`` (1 / (1 + exp(-x)))."""

    name: str
    input: str
    output: str
    kind: PointwiseKind

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True)
class Add:
    """Sum of two values of one shape, then ``activation`` (none, relu or relu6)."""

    name: str
    inputs: tuple[str, str]
    output: str
    activation: Activation = "none"


@dataclass(frozen=True)
class Mul:
    """Product; the second input may be [N, 1, 1, C] (squeeze-excitation)."""

    name: str
    inputs: tuple[str, str]
    output: str


@dataclass(frozen=True)
class Concat:
    """Concatenation along the channels."""

    name: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class MaxPool:
    """Maximum over a window; padding counts as minus infinity. ``ceil_mode`` as in torch."""

    name: str
    input: str
    output: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: SizedPadding = (0, 0, 0, 0)
    ceil_mode: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def dilation(self) -> tuple[int, int]:
        """(1, 1): taps are neighbours."""
        return (1, 1)

    @property
    def zeros(self) -> Padding:
        """As of `Conv2d`."""
        return _explicit(self.padding)


@dataclass(frozen=True)
class GlobalAvgPool:
    """Mean over height and width, to [N, 1, 1, C]."""

    name: str
    input: str
    output: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)


@dataclass(frozen=True)
class ChannelSelect:
    """``output[..., k] = input[..., indices[k]]``: a split (contiguous) or a channel shuffle."""

    name: str
    input: str
    output: str
    indices: tuple[int, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return (self.input,)

    @property
    def is_contiguous(self) -> bool:
        return all(b - a == 1 for a, b in zip(self.indices, self.indices[1:], strict=False))


Operator = Conv2d | Pointwise | Add | Mul | Concat | MaxPool | GlobalAvgPool | ChannelSelect
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class SizeLimit:
    """Where a graph is right, of a network that computes something else at other sizes.

    Attributes:
        resolutions: square sides in pixels, ascending.
        reason: what differs elsewhere, for people.
    """

    resolutions: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Graph:
    """Operators in topological order, and the base's parameters that they name.

    Attributes:
        name: the base's name.
        base_sha256: of the base that this was lowered from, `Base.tensors_sha256`: the operators
            are here already, and every bundle's file of the base keeps its bytes.
        preprocessing: how pixels become the network's input; the folding pass merges its
            mean and standard deviation into the first convolution.
        input, output: value names; the input has 3 channels, the output is [N, 1, 1, classes].
        head: name of the convolution that is the last layer.
        channels: channels of every value.
        parameters: base tensors by state-dict name, float32.
        fixed_maps: by an operator's name, the (height, width), zeros around it included, that the
            map it reads must have: adaptive pooling to more than 1x1 became a window for it.
        limit: the sizes that the graph is right at, where it is not right at all.
    """

    name: str
    base_sha256: str
    preprocessing: Preprocessing
    input: str
    output: str
    head: str
    operators: tuple[Operator, ...]
    channels: Mapping[str, int]
    parameters: Mapping[str, FloatArray]
    fixed_maps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    limit: SizeLimit | None = None

    def convolutions(self) -> Iterator[Conv2d]:
        """Every convolution, in order: the order of the sites in a patch file."""
        return (operator for operator in self.operators if isinstance(operator, Conv2d))

    def producer(self, value: str) -> Operator | None:
        """The operator that writes ``value``; None for the graph's input."""
        return next((o for o in self.operators if o.output == value), None)

    def consumers(self, value: str) -> tuple[Operator, ...]:
        """The operators that read ``value``."""
        return tuple(o for o in self.operators if value in o.inputs)


def window_output(
    size: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool
) -> int:
    """Output length of a sliding window; as in torch, none starts in the end padding."""
    span = size + before + after - dilation * (kernel - 1) - 1
    count = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + before:
        count -= 1
    return count


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after a map of ``size`` so that ceil(size / stride) windows fit.

    max((ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0) in all, the
    smaller half before (TensorFlow, tf.nn.convolution, padding="SAME"; ONNX's SAME_UPPER).
    """
    reach = (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1
    total = max(reach - size, 0)
    return total // 2, total - total // 2


def window_padding(operator: Conv2d | MaxPool, rows: int, columns: int) -> Padding:
    """The zeros around a map of ``rows`` x ``columns`` that ``operator`` reads."""
    if operator.padding != "same":
        return operator.padding
    (top, bottom), (left, right) = (
        same_padding(size, operator.kernel[k], operator.stride[k], operator.dilation[k])
        for k, size in enumerate((rows, columns))
    )
    return (top, bottom, left, right)


def fix_size(graph: Graph, height: int, width: int) -> Graph:
    """``graph`` for one input size: every "same" as numbers; itself where there is none.

    Raises:
        UnknownResolutionError: see `infer_shapes`.
    """
    windows = (Conv2d, MaxPool)
    if not any(isinstance(o, windows) and o.padding == "same" for o in graph.operators):
        return graph
    shapes = infer_shapes(graph, height, width)
    operators = tuple(
        replace(o, padding=window_padding(o, *shapes[o.input][:2])) if isinstance(o, windows) else o
        for o in graph.operators
    )
    return replace(graph, operators=operators)


def infer_shapes(graph: Graph, height: int, width: int) -> dict[str, Shape]:
    """(height, width, channels) of every value for an input of ``height`` x ``width`` pixels.

    Raises:
        UnknownResolutionError: a map would be empty, a pooling was lowered for another map, the
            output would not be 1x1, or the graph is not right at this size (`SizeLimit`).
    """
    _check_limit(graph, height, width)
    shapes: dict[str, Shape] = {graph.input: (height, width, graph.channels[graph.input])}
    for operator in graph.operators:
        rows, columns, _ = shapes[operator.inputs[0]]
        if isinstance(operator, Conv2d | MaxPool):
            top, bottom, left, right = window_padding(operator, rows, columns)
            padded = (rows + top + bottom, columns + left + right)
            _check_fixed_map(graph, operator.name, padded, f"{height}x{width} px")
            dilation = operator.dilation
            ceil_mode = isinstance(operator, MaxPool) and operator.ceil_mode
            kernel, stride = operator.kernel, operator.stride
            rows = window_output(rows, kernel[0], stride[0], top, bottom, dilation[0], ceil_mode)
            columns = window_output(
                columns, kernel[1], stride[1], left, right, dilation[1], ceil_mode
            )
        elif isinstance(operator, GlobalAvgPool):
            rows = columns = 1
        shapes[operator.output] = (rows, columns, graph.channels[operator.output])
        if min(rows, columns) < 1 or (operator.output == graph.output and rows * columns > 1):
            raise UnknownResolutionError(
                f"{height}x{width} px would make {operator.name!r} {rows}x{columns}; every map "
                "has at least one pixel and the scores are 1x1; choose another resolution, or "
                "lower the base for this one"
            )
    return shapes


def _check_limit(graph: Graph, height: int, width: int) -> None:
    limit = graph.limit
    if limit is not None and (height != width or height not in limit.resolutions):
        listed = ", ".join(map(str, limit.resolutions))
        raise UnknownResolutionError(
            f"{height}x{width} px: base {graph.name!r} was lowered for {listed} px and computes "
            f"something else at other sizes ({limit.reason}); choose one of these, or lower the "
            "base for this size"
        )


def _check_fixed_map(graph: Graph, name: str, found: tuple[int, int], asked: str) -> None:
    wanted = graph.fixed_maps.get(name, found)
    if wanted != found:
        raise UnknownResolutionError(
            f"{asked} would give {name!r} a map of {found[0]}x{found[1]}; it pools adaptively to "
            f"more than 1x1, which was lowered for {wanted[0]}x{wanted[1]}; choose a resolution "
            "that gives this map, or pool to 1x1 (AdaptiveAvgPool2d(1)) and train again"
        )


def count_macs(graph: Graph, height: int, width: int) -> int:
    """Multiply-accumulates of all convolutions for one image of ``height`` x ``width`` pixels."""
    shapes = infer_shapes(graph, height, width)
    total = 0
    for conv in graph.convolutions():
        rows, columns, channels = shapes[conv.output]
        taps = conv.kernel[0] * conv.kernel[1] * conv.in_channels // conv.groups
        total += rows * columns * channels * taps
    return total


def largest_work(graph: Graph, sides: Iterable[int]) -> tuple[int, int]:
    """Values of the largest map, its padding included, and multiply-accumulates, of one image at
    the most expensive of ``sides`` pixels.

    Raises:
        UnknownResolutionError: see `infer_shapes`.
    """
    values = products = 0
    for px in sides:
        shapes = infer_shapes(graph, px, px)
        products = max(products, count_macs(graph, px, px))
        for operator in graph.operators:
            rows, columns, channels = shapes[operator.inputs[0]]
            if isinstance(operator, Conv2d | MaxPool):
                top, bottom, left, right = window_padding(operator, rows, columns)
                rows, columns = rows + top + bottom, columns + left + right
            values = max(values, rows * columns * channels)
    return values, products


def tied_values(graph: Graph) -> dict[str, str]:
    """Value -> representative: values that must share one scale and zero point.

    Maximum, concatenation and channel selection copy integers, so their inputs and outputs
    carry the same quantisation parameters (TFLite quantisation spec, CONCATENATION, MAX_POOL_2D).
    """
    parent: dict[str, str] = {value: value for value in graph.channels}

    def find(value: str) -> str:
        while parent[value] != value:
            value = parent[value]
        return value

    order = {value: k for k, value in enumerate(graph.channels)}
    for operator in graph.operators:
        if isinstance(operator, Concat | MaxPool | ChannelSelect):
            for value in operator.inputs:
                roots = sorted((find(value), find(operator.output)), key=order.__getitem__)
                parent[roots[1]] = roots[0]
    return {value: find(value) for value in graph.channels}
