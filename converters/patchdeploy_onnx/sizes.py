"""Symbolic sizes: names for heights and widths that are free until an image comes.

In: a graph. Out: the dimensions of every value as ONNX wants them, an integer or a name. Two
values get one name only where their sizes are equal for every input, because ONNX Runtime may
give two values of one shape the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping

from patchdeploy.graph import (
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    MaxPool,
    window_output,
)

BATCH, HEIGHT, WIDTH = "batch", "height", "width"
Dim = int | str
Dims = tuple[str, Dim, Dim, int]


class SizeNames:
    """Names of sizes along one axis: a window's output is named by what made it."""

    def __init__(self, axis: str) -> None:
        self.axis = axis
        self._names: dict[tuple[object, ...], str] = {}

    def window(self, size: Dim, stride: int, excess: int, pad_before: int, ceil: bool) -> Dim:
        """Size after a window: ceil or floor((size + excess) / stride) + 1, where
        excess = padding - dilation * (kernel - 1) - 1; the same size where nothing changes.
        """
        if stride == 1 and excess == -1:
            return size
        if isinstance(size, int):
            return window_output(size, 1, stride, pad_before, excess + 1 - pad_before, 1, ceil)
        key = (size, stride, excess, pad_before, ceil) if ceil else (size, stride, excess)
        return self._name(*key)

    def same(self, size: Dim, stride: int) -> Dim:
        """Size after a window with padding "same": ceil(size / stride) = floor((size - 1) /
        stride) + 1, which is also the window of one tap without padding.
        """
        return self.window(size, stride, -1, 0, False)

    def _name(self, *key: object) -> Dim:
        return self._names.setdefault(key, f"{self.axis}_{len(self._names) + 1}")


def symbolic_sizes(graph: Graph, rows: Mapping[str, int]) -> dict[str, Dims]:
    """[batch, height, width, channels] of every value, integers where they are known.

    Args:
        graph: the structure.
        rows: output channels by convolution, which for the head is its capacity.
    """
    names = (SizeNames(HEIGHT), SizeNames(WIDTH))
    rows_in, columns_in = _input_sides(graph)
    sizes: dict[str, Dims] = {
        graph.input: (BATCH, rows_in, columns_in, graph.channels[graph.input])
    }
    for operator in graph.operators:
        _, height, width, channels = sizes[operator.inputs[0]]
        if isinstance(operator, GlobalAvgPool):
            height = width = 1
        elif isinstance(operator, Conv2d | MaxPool):
            height = _window(names[0], operator, 0, height)
            width = _window(names[1], operator, 1, width)
        if isinstance(operator, Conv2d):
            channels = rows[operator.name]
        elif isinstance(operator, Concat):
            channels = sum(sizes[value][3] for value in operator.inputs)
        elif isinstance(operator, ChannelSelect):
            channels = len(operator.indices)
        sizes[operator.output] = (BATCH, height, width, channels)
    return sizes


def _input_sides(graph: Graph) -> tuple[Dim, Dim]:
    """Free, unless the graph is right at one size alone: then a runtime refuses every other."""
    if graph.limit is not None and len(graph.limit.resolutions) == 1:
        return graph.limit.resolutions[0], graph.limit.resolutions[0]
    return HEIGHT, WIDTH


def _window(names: SizeNames, operator: Conv2d | MaxPool, axis: int, size: Dim) -> Dim:
    dilation = operator.dilation[axis] if isinstance(operator, Conv2d) else 1
    ceil = isinstance(operator, MaxPool) and operator.ceil_mode
    if operator.padding == "same":
        return names.same(size, operator.stride[axis])
    before, after = operator.padding[2 * axis : 2 * axis + 2]
    excess = before + after - dilation * (operator.kernel[axis] - 1) - 1
    return names.window(size, operator.stride[axis], excess, before, ceil)
