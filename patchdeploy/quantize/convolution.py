"""Exact integer convolution and maximum pooling over int8 codes, on BLAS and strided views.

In: int8 [N, H, W, C] codes and an int8 kernel [O, kh, kw, I/groups]. Out: the int32 accumulator,
held in float32 or float64, whichever is exact for this kernel: float arithmetic on whole numbers
is exact in any order of summation while every partial sum stays below 2^24 (float32) or 2^53.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from patchdeploy.graph import Conv2d, MaxPool, window_output
from patchdeploy.quantize.arithmetic import INT8_MIN, Int8Array

FLOAT32_EXACT = 1 << 24
"""Whole numbers up to this magnitude are exact in float32."""


def convolve(
    x: Int8Array, zero_point: int, kernel: Int8Array, bias: NDArray[np.int32], conv: Conv2d
) -> NDArray[Any]:
    """sum(kernel[o] * (x - zero_point)) + bias[o], exact; padding counts as ``zero_point``.

    Args:
        x: int8 [N, H, W, C].
        kernel: int8 [O, kh, kw, C/groups].
        bias: int32 [O].

    Returns:
        [N, H', W', O], float32 or float64, every element a whole number.
    """
    dtype = accumulator_dtype(zero_point, kernel, bias)
    centred = np.subtract(x, zero_point, dtype=dtype)
    if conv.kernel == (1, 1) and conv.stride == (1, 1) and not any(conv.zeros):
        padded = centred
    else:
        padded = _pad(centred, conv.zeros, 0)
    if conv.is_depthwise:
        return _depthwise(padded, kernel, bias, conv)
    return _grouped(padded, kernel, bias, conv)


def accumulator_dtype(
    zero_point: int, kernel: Int8Array, bias: NDArray[np.int32]
) -> type[np.float32] | type[np.float64]:
    """float32 where max_c(sum|q[c]| * max|x - zero_point| + |bias[c]|) < 2^24, else float64."""
    reach = max(127 - zero_point, zero_point + 128)
    taps = np.abs(kernel.astype(np.int32)).reshape(len(kernel), -1).sum(axis=1)
    largest = np.max(taps * np.int64(reach) + np.abs(bias.astype(np.int64)), initial=0)
    return np.float32 if largest < FLOAT32_EXACT else np.float64


def _pad(x: NDArray[Any], padding: tuple[int, int, int, int], value: int) -> NDArray[Any]:
    top, bottom, left, right = padding
    if not any(padding):
        return x
    count, rows, columns, channels = x.shape
    padded = np.full((count, top + rows + bottom, left + columns + right, channels), value, x.dtype)
    padded[:, top : top + rows, left : left + columns] = x
    return padded


def _output_size(x: NDArray[Any], conv: Conv2d) -> tuple[int, int]:
    rows, columns = (
        window_output(x.shape[1 + k], conv.kernel[k], conv.stride[k], 0, 0, conv.dilation[k], False)
        for k in (0, 1)
    )
    return rows, columns


def _depthwise(
    x: NDArray[Any], kernel: Int8Array, bias: NDArray[np.int32], conv: Conv2d
) -> NDArray[Any]:
    """One channel in, O / C channels out: a sum over taps of shifted views."""
    rows, columns = _output_size(x, conv)
    if len(kernel) != x.shape[3]:
        x = np.repeat(x, len(kernel) // x.shape[3], axis=3)
    taps = kernel.reshape(len(kernel), -1).T.astype(x.dtype)
    total = np.empty((len(x), rows, columns, len(kernel)), x.dtype)
    total[...] = bias.astype(x.dtype)
    product = np.empty_like(total)
    for k, tap in enumerate(taps):
        i, j = divmod(k, conv.kernel[1])
        view = _shifted(x, i * conv.dilation[0], j * conv.dilation[1], rows, columns, conv.stride)
        np.multiply(view, tap, out=product)
        total += product
    return total


def _shifted(
    x: NDArray[Any], top: int, left: int, rows: int, columns: int, stride: tuple[int, int]
) -> NDArray[Any]:
    """x[:, top::stride, left::stride], ``rows`` x ``columns`` of it."""
    bottom, right = top + (rows - 1) * stride[0] + 1, left + (columns - 1) * stride[1] + 1
    return x[:, top : bottom : stride[0], left : right : stride[1]]


def _grouped(
    x: NDArray[Any], kernel: Int8Array, bias: NDArray[np.int32], conv: Conv2d
) -> NDArray[Any]:
    """Unfold the windows, one matrix product per group."""
    rows, columns = _output_size(x, conv)
    windows = _windows(x, rows, columns, conv)
    width = x.shape[3] // conv.groups
    height = len(kernel) // conv.groups
    parts = []
    for group in range(conv.groups):
        chosen = windows[..., group * width : (group + 1) * width]
        matrix = chosen.reshape(len(x) * rows * columns, -1)
        block = kernel[group * height : (group + 1) * height].reshape(height, -1)
        parts.append(matrix @ block.astype(x.dtype).T)
    product = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    product += bias.astype(x.dtype)
    accumulator: NDArray[Any] = product.reshape(len(x), rows, columns, len(kernel))
    return accumulator


def _windows(x: NDArray[Any], rows: int, columns: int, conv: Conv2d) -> NDArray[Any]:
    """View [N, rows, columns, kh, kw, C] of the padded input."""
    step = x.strides
    shape = (len(x), rows, columns, *conv.kernel, x.shape[3])
    strides = (
        step[0],
        step[1] * conv.stride[0],
        step[2] * conv.stride[1],
        step[1] * conv.dilation[0],
        step[2] * conv.dilation[1],
        step[3],
    )
    return as_strided(x, shape, strides, writeable=False)


def max_pool(x: Int8Array, pool: MaxPool) -> Int8Array:
    """Maximum over windows of int8 [N, H, W, C]; padding counts as the lowest code.

    ``ceil_mode`` windows that reach past the padded end see the lowest code there, too.
    """
    top, bottom, left, right = pool.zeros
    sizes = []
    for k, (before, after) in enumerate(((top, bottom), (left, right))):
        kernel, stride, size = pool.kernel[k], pool.stride[k], x.shape[1 + k]
        out = window_output(size, kernel, stride, before, after, 1, pool.ceil_mode)
        sizes.append((out, max(after, (out - 1) * stride + kernel - size - before)))
    (rows, bottom), (columns, right) = sizes
    padded = _pad(x, (top, bottom, left, right), INT8_MIN)
    best = np.full((len(x), rows, columns, x.shape[3]), INT8_MIN, np.int8)
    for i in range(pool.kernel[0]):
        for j in range(pool.kernel[1]):
            view = _shifted(padded, i, j, rows, columns, pool.stride)
            np.maximum(best, view, out=best)
    return best
