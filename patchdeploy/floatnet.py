"""Run a folded network in floating point: the reference for calibration and for tests.

In: a `FoldedNetwork` and uint8 RGB images. Out: logits, and every value on the way to an
observer, so that one forward pass per image is all that calibration needs. torch is imported
where it is used; the scales are folded into the kernels, so a layer costs what it costs in
the unpatched torch module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import DataError
from patchdeploy.fold import FoldedConv, FoldedNetwork
from patchdeploy.graph import (
    Activation,
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    MaxPool,
    Mul,
    Operator,
    fix_size,
    infer_shapes,
)

if TYPE_CHECKING:
    import torch

Observer = Callable[[str, "torch.Tensor"], None]
"""Called with a value's name and its tensor [N, C, H, W] (channels_last in memory), after the
activation; read it at once and do not write into it."""


class FloatRunner:
    """A folded network with its kernels laid out for torch; build once, call per batch.

    Args:
        network: the folded network.
        precision: "float32", or "float64" to compare algebra without rounding.
    """

    def __init__(
        self, network: FoldedNetwork, precision: Literal["float32", "float64"] = "float32"
    ) -> None:
        import torch

        self.network = network
        self._dtype = getattr(torch, precision)
        self._kernels = {
            name: _scaled_kernel(conv, self._dtype) for name, conv in network.convs.items()
        }
        self._operators: dict[tuple[int, int], tuple[Operator, ...]] = {}
        self._last_reader: dict[str, int] = {}
        for k, operator in enumerate(network.graph.operators):
            self._last_reader.update(dict.fromkeys(operator.inputs, k))

    def __call__(self, images: NDArray[np.uint8], observe: Observer | None = None) -> NDArray[Any]:
        """Logits [N, classes] of uint8 images [N, H, W, 3], RGB.

        Raises:
            DataError: images of another type or shape.
            UnknownResolutionError: of a size that the network does not serve.
        """
        logits: NDArray[Any] = self.run_values(self._prepare(images), observe).numpy()
        return logits

    def run_values(self, values_in: torch.Tensor, observe: Observer | None = None) -> torch.Tensor:
        """Logits [N, classes] of what the graph's input holds, [N, 3, H, W], whatever its values.

        Raises:
            UnknownResolutionError: of a size that the network does not serve.
        """
        import torch

        graph = self.network.graph
        operators = self._at(values_in.shape[2], values_in.shape[3])
        with torch.no_grad():
            values = {graph.input: values_in.to(self._dtype)}
            if observe is not None:
                observe(graph.input, values[graph.input])
            for k, operator in enumerate(operators):
                result = self._run(operator, [values[name] for name in operator.inputs])
                values[operator.output] = result
                if observe is not None:
                    observe(operator.output, result)
                for name in set(operator.inputs):
                    if self._last_reader[name] == k and name != graph.output:
                        del values[name]
            return values[graph.output].flatten(1)

    def _at(self, height: int, width: int) -> tuple[Operator, ...]:
        """The operators, their padding as numbers, for one input size."""
        if (height, width) not in self._operators:
            graph = self.network.graph
            infer_shapes(graph, height, width)
            self._operators[height, width] = fix_size(graph, height, width).operators
        return self._operators[height, width]

    def _prepare(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Pixels minus the input offset, [N, 3, H, W] channels_last."""
        import torch

        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(
                f"images are {images.dtype} of shape {list(images.shape)}; a network takes uint8 "
                "[N, H, W, 3] in RGB; decode and resize them with patchdeploy.data"
            )
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        return pixels.to(self._dtype) - self.network.input_offset

    def _run(self, operator: Operator, inputs: list[torch.Tensor]) -> torch.Tensor:
        import torch

        x = inputs[0]
        if isinstance(operator, Conv2d):
            kernel, bias = self._kernels[operator.name]
            return _activate(_convolve(operator, x, kernel, bias), operator.activation)
        if isinstance(operator, Add):
            return _activate(x + inputs[1], operator.activation)
        if isinstance(operator, Mul):
            return x * inputs[1]
        if isinstance(operator, Concat):
            return torch.cat(inputs, 1)
        if isinstance(operator, MaxPool):
            return _max_pool(operator, x)
        if isinstance(operator, GlobalAvgPool):
            return x.mean((2, 3), keepdim=True)
        if isinstance(operator, ChannelSelect):
            if operator.is_contiguous:
                return x[:, operator.indices[0] : operator.indices[-1] + 1]
            return x[:, list(operator.indices)]
        if operator.kind == "sigmoid":
            return x.sigmoid()
        return torch.nn.functional.hardswish(x)


def run_float(
    network: FoldedNetwork, images: NDArray[np.uint8], observe: Observer | None = None
) -> NDArray[np.float32]:
    """Float32 logits [N, classes] of uint8 images [N, H, W, 3], RGB, in one batch.

    ``observe`` is called once per value, the input (pixel - input_offset) included, in graph
    order, with its float32 tensor [N, C, H, W] after the activation.

    Raises:
        DataError: images of another type or shape.
        UnknownResolutionError: of a size that the network does not serve.
    """
    return FloatRunner(network)(images, observe).astype(np.float32, copy=False)


def _scaled_kernel(conv: FoldedConv, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """W * s in [O, I/groups, kh, kw] (channels_last) and b, rounded once to ``dtype``."""
    import torch

    scaled = conv.weight.astype(np.float64) * conv.scale[:, None, None, None]
    kernel = torch.from_numpy(scaled).permute(0, 3, 1, 2).to(dtype)
    return kernel.to(memory_format=torch.channels_last), torch.from_numpy(conv.bias).to(dtype)


def _convolve(
    conv: Conv2d, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    import torch

    top, bottom, left, right = conv.zeros
    padding = (top, left)
    if (top, left) != (bottom, right):
        x = torch.nn.functional.pad(x, (left, right, top, bottom))
        padding = (0, 0)
    return torch.nn.functional.conv2d(
        x, kernel, bias, conv.stride, padding, conv.dilation, conv.groups
    )


def _activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
    import torch

    if activation == "relu":
        return x.relu_()
    if activation == "relu6":
        return x.clamp_(0.0, 6.0)
    if activation == "hard_sigmoid":
        return torch.nn.functional.hardsigmoid(x)
    return x


def _max_pool(pool: MaxPool, x: torch.Tensor) -> torch.Tensor:
    import torch

    top, bottom, left, right = pool.zeros
    padding = (top, left)
    if (top, left) != (bottom, right) or top > pool.kernel[0] // 2 or left > pool.kernel[1] // 2:
        x = torch.nn.functional.pad(x, (left, right, top, bottom), value=float("-inf"))
        padding = (0, 0)
    return torch.nn.functional.max_pool2d(
        x, pool.kernel, pool.stride, padding, ceil_mode=pool.ceil_mode
    )
