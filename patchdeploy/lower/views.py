"""Rules for views: reshapes, transposes, slices and splits of channels.

They emit nothing: a `Value` carries which channels of which map it stands for, and the builder
emits a `ChannelSelect` only where an operator reads it. So a channel shuffle followed by a
split is one selection per half.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from patchdeploy.lower.builder import Builder, Call, Value, input_value


def reshape(builder: Builder, call: Call) -> Value:
    """Flatten, view, squeeze and unsqueeze, as far as they regroup channels or drop ones."""
    value = input_value(call, "self")
    shape, spatial = call.shape[1:], (value.height, value.width)
    area = value.height * value.width
    size = value.channels * area
    flat_order = value.order.reshape(-1)
    regroups = len(shape) > 2 and shape[-2:] == spatial and math.prod(shape[:-2]) * area == size
    if regroups and (not value.flat or len(shape) == 3):
        return replace(value, order=value.order.reshape(shape[:-2]), flat=False)
    if not value.flat and len(shape) == 2 and shape == spatial and value.channels == 1:
        return replace(value, order=value.order.reshape(()))
    if shape == (size,) or (area == 1 and shape[:1] == (size,) and math.prod(shape) == size):
        return replace(value, order=flat_order, flat=True)
    raise call.refuse(
        f"it makes {list(call.shape)} of a map [N, {value.channels}, {value.height}, "
        f"{value.width}]",
        "flatten(1), or view, transpose, view of the channels (a channel shuffle)",
    )


def permute(builder: Builder, call: Call) -> Value:
    value = input_value(call, "self")
    rank = value.order.ndim + 3
    axes = list(range(rank))
    if "dims" in call.arguments:
        axes = [d % rank for d in call["dims"]]
    else:
        a, b = call["dim0"] % rank, call["dim1"] % rank
        axes[a], axes[b] = axes[b], axes[a]
    if value.flat or axes[0] != 0 or axes[-2:] != [rank - 2, rank - 1]:
        raise call.refuse(f"it permutes dimensions to {axes}", "a permutation of channels")
    return replace(value, order=value.order.transpose([axis - 1 for axis in axes[1:-2]]))


def _channel_axis(call: Call, value: Value) -> int:
    """The axis of ``order`` that ``dim`` names."""
    rank = value.order.ndim + (1 if value.flat else 3)
    dim = int(call["dim"]) % rank
    if not 1 <= dim <= value.order.ndim or (value.flat and not value.pooled):
        raise call.refuse(f"dim={call['dim']}", "the same operator on dim=1, the channels")
    return dim - 1


def slice_channels(builder: Builder, call: Call) -> Value:
    value = input_value(call, "self")
    start, end, step = call["start"] or 0, call["end"], call["step"]
    rank = value.order.ndim + (1 if value.flat else 3)
    dim = int(call["dim"]) % rank
    if start == 0 and step == 1 and (end is None or end >= 2**31):
        return value
    if not value.flat and dim >= rank - 2:
        return _crop(call, value, value.height if dim == rank - 2 else value.width)
    axis = _channel_axis(call, value) if dim else -1
    if axis < 0:
        raise call.refuse("it slices the batch", "whole batches")
    index = [slice(None)] * value.order.ndim
    index[axis] = slice(start, end, step)
    return replace(value, order=value.order[tuple(index)])


def _crop(call: Call, value: Value, length: int) -> Value:
    """The whole map: a network that cuts its maps to a multiple does nothing at a multiple."""
    kept = range(length)[call["start"] : call["end"] : call["step"]]
    if len(kept) != length:
        raise call.refuse(
            f"it cuts a map from {length} to {len(kept)} pixels",
            "a size at which nothing is cut, or images that are cut before the network",
        )
    return value


def select_channel(builder: Builder, call: Call) -> Value:
    value = input_value(call, "self")
    axis = _channel_axis(call, value)
    order = np.asarray(np.take(value.order, call["index"], axis=axis), np.int64)
    return replace(value, order=order)


def split(builder: Builder, call: Call) -> tuple[Value, ...]:
    value = input_value(call, "self")
    axis = _channel_axis(call, value)
    length = value.order.shape[axis]
    if "chunks" in call.arguments:
        step = -(-length // int(call["chunks"]))
        cuts = list(range(step, length, step))
    else:
        sizes = call.arguments.get("split_sizes", call.arguments.get("split_size"))
        if isinstance(sizes, int):
            cuts = list(range(sizes, length, sizes))
        else:
            cuts = [int(cut) for cut in np.cumsum(sizes)[:-1]]
    return tuple(replace(value, order=part) for part in np.split(value.order, cuts, axis=axis))


def take_item(builder: Builder, call: Call) -> Value:
    values: tuple[Value, ...] = call["self"]
    item: Value = values[call["index"]]
    return item


def keep(builder: Builder, call: Call) -> Value:
    """Dropout when it does not train, clone, contiguous, detach."""
    if call.arguments.get("train", False):
        raise call.refuse("it drops at random", "eval()")
    return input_value(call, next(iter(call.arguments)))
