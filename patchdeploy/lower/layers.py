"""Rules for layers with a window or a kernel: convolution, linear, normalisation, pooling, pad."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from patchdeploy.graph import Concat, Conv2d, GlobalAvgPool, MaxPool, Norm, Padding, module_of
from patchdeploy.lower.builder import (
    Builder,
    Call,
    RawNorm,
    RawPad,
    Value,
    input_value,
    like,
    map_result,
    map_value,
    named_bias,
    named_weight,
    pair,
    parameter,
)


def _conv_padding(call: Call, kernel: tuple[int, int], dilation: tuple[int, int]) -> Padding:
    """(top, bottom, left, right); "same" puts the odd zero behind, as torch does."""
    given = call["padding"]
    if given == "valid":
        return (0, 0, 0, 0)
    if given == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    top, left = pair(given)
    return (top, top, left, left)


def convolve(builder: Builder, call: Call) -> Value:
    value = map_value(call)
    weight, bias = named_weight(builder, call), named_bias(builder, call)
    if call.arguments.get("transposed", False):
        raise call.refuse("it is transposed", "a convolution that keeps or halves the size")
    if weight.array.ndim != 4:
        raise call.refuse(f"its kernel has {weight.array.ndim} dimensions", "conv2d")
    kernel = (int(weight.array.shape[2]), int(weight.array.shape[3]))
    dilation = pair(call["dilation"])
    name = builder.site_name(module_of(weight.key))
    conv = Conv2d(
        name=name,
        input=builder.read(value),
        output=name,
        weight=builder.keep(weight),
        in_channels=value.channels,
        out_channels=int(weight.array.shape[0]),
        kernel=kernel,
        bias=None if bias is None else builder.keep(bias),
        groups=call["groups"],
        stride=pair(call["stride"]),
        padding=_conv_padding(call, kernel, dilation),
        dilation=dilation,
    )
    builder.emit(conv, conv.out_channels)
    return map_result(call, name, conv.out_channels, value.pooled)


def linear(builder: Builder, call: Call) -> Value:
    value = input_value(call)
    weight, bias = named_weight(builder, call), named_bias(builder, call)
    rows, columns = weight.array.shape
    if not value.flat or len(call.shape) != 2:
        raise call.refuse("its input is not [N, features]", "linear after flatten(1)")
    name = builder.site_name(module_of(weight.key))
    conv = Conv2d(
        name=name,
        input=builder.read(value),
        output=name,
        weight=builder.keep(weight),
        in_channels=columns // (value.height * value.width),
        out_channels=rows,
        kernel=(value.height, value.width),
        bias=None if bias is None else builder.keep(bias),
    )
    builder.emit(conv, rows)
    return Value(name, np.arange(rows, dtype=np.int64), 1, 1, flat=True, pooled=True)


def batch_norm(builder: Builder, call: Call) -> Value:
    value = input_value(call)
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {name: parameter(call, name) for name in names}
    if call["training"] or tensors["running_mean"] is None:
        raise call.refuse("it normalises with the batch", "one with running statistics, in eval()")
    path = tensors["running_mean"].key.removesuffix(".running_mean")
    for name, tensor in tensors.items():
        if tensor is not None and tensor.key != f"{path}.{name}":
            raise call.refuse(f"its {name} is {tensor.key!r}", f"one module with {path}.{name}")
        if tensor is not None:
            builder.keep(tensor)
    site = builder.name(call, "norm") if path in builder.used else builder.site_name(path)
    norm = RawNorm(site, builder.read(value), site, Norm(path, float(call["eps"])))
    builder.emit(norm, value.channels)
    return like(value, site)


def pad(builder: Builder, call: Call) -> Value:
    value = map_value(call, "self")
    amounts = (*call["pad"], 0, 0, 0, 0)[:4]
    mode, fill = call.arguments.get("mode", "constant"), call["value"]
    if mode != "constant" or fill not in (None, 0, 0.0) or min(amounts) < 0 or any(call["pad"][4:]):
        raise call.refuse(
            f"pad={list(call['pad'])}, mode={mode!r}, value={fill}", "zeros around height and width"
        )
    left, right, top, bottom = amounts
    name = builder.name(call, "pad")
    raw = RawPad(name, builder.read(value), name, (top, bottom, left, right))
    builder.emit(raw, value.channels)
    return map_result(call, name, value.channels, False)


def concatenate(builder: Builder, call: Call) -> Value:
    values: list[Value] = list(call["tensors"])
    if call["dim"] not in (1, 1 - len(call.shape)) or any(v.order.ndim != 1 for v in values):
        raise call.refuse(f"dim={call['dim']}", "dim=1, the channels")
    if any(v.flat and not v.pooled for v in values) or len({v.pooled for v in values}) > 1:
        raise call.refuse("it joins flattened maps", "concatenation before flatten")
    if len(values) == 1:
        return values[0]
    name = builder.name(call, "cat")
    total = sum(value.channels for value in values)
    builder.emit(Concat(name, tuple(builder.read(v) for v in values), name), total)
    return replace(values[0], name=name, order=np.arange(total, dtype=np.int64))


def max_pool(builder: Builder, call: Call) -> Value:
    value = map_value(call, "self")
    if pair(call["dilation"]) != (1, 1):
        raise call.refuse(f"dilation={call['dilation']}", "max_pool2d with dilation=1")
    kernel = pair(call["kernel_size"])
    top, left = pair(call["padding"])
    name = builder.name(call, "max_pool")
    pool = MaxPool(
        name,
        builder.read(value),
        name,
        kernel,
        pair(call["stride"] or kernel),
        (top, top, left, left),
        bool(call["ceil_mode"]),
    )
    builder.emit(pool, value.channels)
    return map_result(call, name, value.channels, value.pooled)


def _average(
    builder: Builder,
    call: Call,
    value: Value,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding,
    divisor: int,
) -> Value:
    """A window's mean: a depthwise convolution with the constant kernel 1/divisor.

    A window over the whole map is the global mean, unless ``builder.fixed_windows`` names it: a
    kernel that was computed from the map's size is another one at another size.
    """
    name = builder.name(call, "average")
    builder.windows[name] = kernel
    whole = kernel == (value.height, value.width) and divisor == math.prod(kernel)
    if whole and not any(padding) and not value.pooled:
        builder.whole.add(name)
        if name not in builder.fixed_windows:
            return _global_average(builder, call, value)
    channels = value.channels
    ones = np.full((channels, 1, *kernel), 1.0 / divisor, np.float32)
    conv = Conv2d(
        name=name,
        input=builder.read(value),
        output=name,
        weight=builder.constant(f"{name}.average", ones),
        in_channels=channels,
        out_channels=channels,
        kernel=kernel,
        groups=channels,
        stride=stride,
        padding=padding,
        is_constant=True,
    )
    builder.emit(conv, channels)
    return map_result(call, name, channels, False)


def average_pool(builder: Builder, call: Call) -> Value:
    value = map_value(call, "self")
    kernel = pair(call["kernel_size"])
    top, left = pair(call["padding"])
    if call["ceil_mode"] or ((top or left) and not call["count_include_pad"]):
        raise call.refuse(
            f"ceil_mode={call['ceil_mode']}, padding={call['padding']}, "
            f"count_include_pad={call['count_include_pad']}",
            "avg_pool2d with ceil_mode=False and count_include_pad=True (or no padding)",
        )
    stride = pair(call["stride"] or kernel)
    divisor = call["divisor_override"] or math.prod(kernel)
    return _average(builder, call, value, kernel, stride, (top, top, left, left), divisor)


def adaptive_average_pool(builder: Builder, call: Call) -> Value:
    """To 1x1: the global mean. To n x n: a fixed window, right for the example's size alone."""
    value = map_value(call, "self")
    rows, columns = call.shape[2:]
    if (rows, columns) == (1, 1):
        return _global_average(builder, call, value)
    if (rows, columns) == (value.height, value.width):
        return value
    if value.height % rows or value.width % columns:
        raise call.refuse(
            f"it pools {value.height}x{value.width} to {rows}x{columns} with uneven windows",
            "adaptive_avg_pool2d(1), or a size that divides its input",
        )
    window = (value.height // rows, value.width // columns)
    made = _average(builder, call, value, window, window, (0, 0, 0, 0), math.prod(window))
    builder.fixed_maps[made.name] = (value.height, value.width)
    return made


def _global_average(builder: Builder, call: Call, value: Value, flat: bool = False) -> Value:
    name = builder.name(call, "global_average")
    builder.emit(GlobalAvgPool(name, builder.read(value), name), value.channels)
    order = np.arange(value.channels, dtype=np.int64)
    return Value(name, order, 1, 1, flat, pooled=True)


def mean(builder: Builder, call: Call) -> Value:
    value = map_value(call, "self")
    dims = call.arguments.get("dim")
    if sorted(d % 4 for d in dims or ()) != [2, 3]:
        raise call.refuse(f"dim={dims}", "mean over dim=[2, 3]")
    return _global_average(builder, call, value, flat=not call["keepdim"])
