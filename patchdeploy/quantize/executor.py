"""A quantised network in exact integers, NumPy only: what both runtimes are compared with.

In: `QuantizedBase`, `QuantizedVariant`, uint8 RGB images. Out: float32 logits and int8 codes,
the same for every batch size. Convolutions are exact (see `convolve`), requantisation is
float32, round half to even; an `Arithmetic` says whose sums, products and means
are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import DataError
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    MaxPool,
    Mul,
    Operator,
    Pointwise,
    fix_size,
    tied_values,
)
from patchdeploy.quantize.arithmetic import (
    Float32Array,
    Int8Array,
    activation_bounds,
    dequantize,
    requantize,
    requantize_multiplier,
)
from patchdeploy.quantize.convolution import convolve, max_pool
from patchdeploy.quantize.model import ActivationParams, QuantizedBase, QuantizedVariant
from patchdeploy.quantize.pointwise import apply_table
from patchdeploy.quantize.runtimes import REFERENCE, Arithmetic

PIXELS_PER_PASS = 1 << 16
"""Images are run in groups of about this many input pixels, to bound memory and stay in cache."""

Observer = Callable[[str, Int8Array], None]


@dataclass(frozen=True)
class IntegerResult:
    """What the integer network says.

    Attributes:
        logits: float32 [N, head capacity], dequantised codes.
        codes: int8 [N, head capacity].
    """

    logits: Float32Array
    codes: Int8Array


@dataclass(frozen=True)
class _Run:
    """What every operator needs: the base, the variant, the ties, the arithmetic."""

    base: QuantizedBase
    variant: QuantizedVariant
    ties: dict[str, str]
    arithmetic: Arithmetic

    def params(self, value: str) -> ActivationParams:
        return self.variant.activations[self.ties[value]]


def run_integer(
    base: QuantizedBase,
    variant: QuantizedVariant,
    images: NDArray[np.uint8],
    arithmetic: Arithmetic = REFERENCE,
    observe: Observer | None = None,
) -> IntegerResult:
    """Run ``images`` (uint8 RGB [N, H, W, 3], already at the network's size) through the network.

    Args:
        arithmetic: see `quantize.runtimes`.
        observe: called with every value's name and int8 codes [n, H, W, C], once per group of
            images, the input first.

    Raises:
        DataError: ``images`` is not uint8 [N, H, W, 3].
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise DataError(
            f"images have dtype {images.dtype} and shape {images.shape}; the network takes uint8 "
            "[N, height, width, 3] RGB; stack decoded and resized images"
        )
    run = _Run(base, variant, tied_values(base.graph), arithmetic)
    groups = [_run_group(run, group, observe) for group in _groups(images)]
    empty = np.zeros((0, base.rows(base.graph.head)), np.int8)
    codes = np.concatenate([empty, *groups])
    return IntegerResult(dequantize(codes, run.params(base.graph.output)), codes)


def compute_alike(graph: Graph, one: Arithmetic, other: Arithmetic) -> bool:
    """Whether every operator of ``graph`` is the same function in both."""
    kinds = {type(operator) for operator in graph.operators}
    differing = {
        Add: one.add is not other.add,
        Mul: one.multiply is not other.multiply,
        GlobalAvgPool: one.mean is not other.mean,
        Pointwise: one.pointwise is not other.pointwise,
    }
    return not any(differing.get(kind, False) for kind in kinds)


def _groups(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    count = max(1, PIXELS_PER_PASS // max(1, images.shape[1] * images.shape[2]))
    return (images[start : start + count] for start in range(0, len(images), count))


def _run_group(run: _Run, images: NDArray[np.uint8], observe: Observer | None) -> Int8Array:
    graph = fix_size(run.base.graph, images.shape[1], images.shape[2])
    last_use = {value: k for k, op in enumerate(graph.operators) for value in op.inputs}
    values = {graph.input: (images.astype(np.int16) - 128).astype(np.int8)}
    if observe is not None:
        observe(graph.input, values[graph.input])
    for k, operator in enumerate(graph.operators):
        output = _run_operator(run, operator, [values[value] for value in operator.inputs])
        values[operator.output] = output
        if observe is not None:
            observe(operator.output, output)
        for value in set(operator.inputs):
            if last_use[value] == k and value != graph.output:
                del values[value]
    return values[graph.output].reshape(len(images), -1)


def _run_operator(run: _Run, operator: Operator, inputs: list[Int8Array]) -> Int8Array:
    if isinstance(operator, Conv2d):
        return _run_conv(run, operator, inputs[0])
    if isinstance(operator, MaxPool):
        return max_pool(inputs[0], operator)
    if isinstance(operator, Concat):
        return np.concatenate(inputs, axis=-1)
    if isinstance(operator, ChannelSelect):
        return inputs[0][..., list(operator.indices)]
    x, y = run.params(operator.inputs[0]), run.params(operator.output)
    if isinstance(operator, Add):
        bounds = activation_bounds(operator.activation, y)
        other = run.params(operator.inputs[1])
        return run.arithmetic.add(inputs[0], inputs[1], x, other, y, bounds)
    if isinstance(operator, Mul):
        other = run.params(operator.inputs[1])
        return run.arithmetic.multiply(inputs[0], inputs[1], x, other, y)
    if isinstance(operator, GlobalAvgPool):
        return run.arithmetic.mean(inputs[0], x, y)
    return apply_table(inputs[0], run.arithmetic.pointwise(operator.kind, x, y))


def _run_conv(run: _Run, conv: Conv2d, x: Int8Array) -> Int8Array:
    kernel = run.base.weights[conv.name]
    if conv.name in run.base.patch_owned:
        kernel = run.variant.weights[conv.name]
    x_params, y_params = run.params(conv.input), run.params(conv.output)
    accumulator = convolve(x, x_params.zero_point, kernel, run.variant.bias[conv.name], conv)
    multiplier = requantize_multiplier(
        x_params.scale, run.variant.weight_scale[conv.name], y_params.scale
    )
    low, high = activation_bounds(conv.activation, y_params)
    return requantize(accumulator, multiplier, y_params.zero_point, low, high)
