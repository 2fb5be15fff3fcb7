"""Rules for operators that work value by value: activations, sums, products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.graph import Activation, Add, Mul, Pointwise, PointwiseKind
from patchdeploy.lower.builder import (
    Builder,
    Call,
    Parameter,
    RawActivation,
    RawAffine,
    Value,
    input_value,
    like,
)

Elementwise = Callable[[Builder, Call], Value]


def activation(kind: Activation) -> Elementwise:
    def rule(builder: Builder, call: Call) -> Value:
        value = input_value(call, "self")
        name = builder.name(call, kind)
        raw = RawActivation(name, builder.read(value), name, kind)
        builder.emit(raw, value.channels)
        return like(value, name)

    return rule


def clamp(builder: Builder, call: Call) -> Value:
    input_value(call, "self")
    low = call.arguments.get("min_val", call.arguments.get("min"))
    high = call.arguments.get("max_val", call.arguments.get("max"))
    if low == 0 and high in (None, 6):
        return activation("relu" if high is None else "relu6")(builder, call)
    raise call.refuse(f"it clamps to [{low}, {high}]", "relu or relu6")


def pointwise(kind: PointwiseKind) -> Elementwise:
    def rule(builder: Builder, call: Call) -> Value:
        value = input_value(call, "self")
        name = builder.name(call, kind)
        builder.emit(Pointwise(name, builder.read(value), name, kind), value.channels)
        return like(value, name)

    return rule


def silu(builder: Builder, call: Call) -> Value:
    """x * sigmoid(x)."""
    value = input_value(call, "self")
    gate = pointwise("sigmoid")(builder, call)
    name = builder.name(call, "silu")
    builder.emit(Mul(name, (builder.read(value), gate.name), name), value.channels)
    return like(value, name)


def _per_channel(call: Call, number: Any, channels: int) -> NDArray[np.float64]:
    """A scalar, or a constant tensor that varies along the channels alone, as float64 [C]."""
    if isinstance(number, bool | int | float):
        return np.full(channels, float(number))
    array = np.asarray(number.array, np.float64)
    shape = (1, *array.shape) if array.ndim == 3 else array.shape
    if array.size == 1:
        return np.full(channels, float(array.reshape(-1)[0]))
    flat = len(call.shape) == 2 and shape == (channels,)  # [C] over [N, C]
    if array.size == channels and (flat or shape in ((1, channels, 1, 1), (1, channels))):
        return array.reshape(-1)
    raise call.refuse(f"a constant of shape {list(array.shape)}", "one of shape [1, C, 1, 1]")


def _affine(builder: Builder, call: Call, value: Value, factor: Any, offset: Any) -> Value:
    factors = _per_channel(call, factor, value.channels)
    offsets = _per_channel(call, offset, value.channels)
    name = builder.name(call, "affine")
    raw = RawAffine(
        name, builder.read(value), name, tuple(factors.tolist()), tuple(offsets.tolist())
    )
    builder.emit(raw, value.channels)
    return like(value, name)


def _negated(number: Any) -> Any:
    return replace(number, array=-number.array) if isinstance(number, Parameter) else -number


def _inverted(number: Any) -> Any:
    if isinstance(number, Parameter):
        return replace(number, array=(1.0 / number.array).astype(np.float32))
    return 1.0 / number


def _operands(call: Call) -> tuple[Value, Any]:
    """The two operands of a commutative operator, a map first."""
    first, second = call["self"], call["other"]
    if isinstance(first, Value):
        return first, second
    return input_value(call, "other"), first


def add(builder: Builder, call: Call) -> Value:
    first, second = call["self"], _times(builder, call, call["other"])
    if not isinstance(first, Value):
        first, second = second, first
    if not isinstance(second, Value):
        return _affine(
            builder, call, input_value(call, "self") if first is None else first, 1.0, second
        )
    if _form(first) != _form(second) or first.pooled != second.pooled:
        raise call.refuse("it broadcasts one map over another", "a sum of equal shapes")
    name = builder.name(call, "add")
    builder.emit(Add(name, (builder.read(first), builder.read(second)), name), first.channels)
    return like(first, name)


def _times(builder: Builder, call: Call, other: Any) -> Any:
    """alpha * other."""
    alpha = call.arguments.get("alpha", 1)
    if alpha == 1:
        return other
    if isinstance(other, Value):
        return _affine(builder, call, other, alpha, 0.0)
    if isinstance(other, Parameter):
        return replace(other, array=(alpha * other.array).astype(np.float32))
    return alpha * other


def _form(value: Value) -> tuple[object, ...]:
    return (value.order.shape, value.height, value.width, value.flat)


def subtract(builder: Builder, call: Call) -> Value:
    first, second = call["self"], call["other"]
    if call.arguments.get("alpha", 1) == 1:
        if isinstance(first, Value) and not isinstance(second, Value):
            return _affine(builder, call, first, 1.0, _negated(second))
        if isinstance(second, Value) and not isinstance(first, Value):
            return _affine(builder, call, second, -1.0, first)
    raise call.refuse("it subtracts maps", "a sum, the sign in the convolution before it")


def subtract_reversed(builder: Builder, call: Call) -> Value:
    """other - self, where other is a constant."""
    if call.arguments.get("alpha", 1) != 1:
        raise call.refuse(f"alpha={call['alpha']}", "1 - x")
    return _affine(builder, call, input_value(call, "self"), -1.0, call["other"])


def multiply(builder: Builder, call: Call) -> Value:
    first, second = _operands(call)
    if not isinstance(second, Value):
        return _affine(builder, call, first, second, 0.0)
    if first.pooled and not second.pooled:
        first, second = second, first
    sizes = (second.height, second.width)
    broadcast = second.pooled and sizes == (1, 1)
    same_channels = first.order.shape == second.order.shape and first.flat == second.flat
    if not same_channels or not (broadcast or sizes == (first.height, first.width)):
        raise call.refuse("it broadcasts other than over height and width", "[N, C, 1, 1] factors")
    name = builder.name(call, "mul")
    builder.emit(Mul(name, (builder.read(first), builder.read(second)), name), first.channels)
    return like(first, name)


def divide(builder: Builder, call: Call) -> Value:
    first, second = call["self"], call["other"]
    if not isinstance(first, Value) or isinstance(second, Value) or "mode" in call.arguments:
        raise call.refuse("it divides by a map", "a product with a constant")
    return _affine(builder, call, first, _inverted(second), 0.0)
