"""What the lowering rules read and write.

A rule gets a `Call` of the exported network and a `Builder`, emits raw operators into the
builder and returns the `Value` that the call computes. Raw operators are those of `graph` and
four that a later pass merges into convolutions: `RawPad`, `RawAffine`, `RawNorm`,
`RawActivation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import UnsupportedOperatorError
from patchdeploy.graph import (
    COMPUTED,
    Activation,
    ChannelSelect,
    FloatArray,
    Norm,
    Operator,
    Padding,
)


class CallRefusedError(UnsupportedOperatorError):
    """One call that has no form in the graph.

    Attributes:
        target: ATen operator with its overload.
        place: the module that calls it.
        reason: what has no form.
        nearest: what has.
    """

    def __init__(self, target: str, place: str, reason: str, nearest: str) -> None:
        super().__init__(
            f"{target} at {place}: {reason}; the nearest supported form is {nearest}; rewrite the "
            "module and make the base again"
        )
        self.target, self.place, self.reason, self.nearest = target, place, reason, nearest

    def __reduce__(self) -> tuple[type[CallRefusedError], tuple[str, str, str, str]]:
        return type(self), (self.target, self.place, self.reason, self.nearest)


@dataclass(frozen=True)
class RawPad:
    """Zeros around the map, at (top, bottom, left, right)."""

    name: str
    input: str
    output: str
    padding: Padding


@dataclass(frozen=True)
class RawAffine:
    """``factor[c] * x + offset[c]`` with constants of the graph, float64 [C]."""

    name: str
    input: str
    output: str
    factor: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True)
class RawNorm:
    """A normalisation that has not met its convolution yet."""

    name: str
    input: str
    output: str
    norm: Norm


@dataclass(frozen=True)
class RawActivation:
    """relu, relu6 or hard_sigmoid that has not met its convolution yet."""

    name: str
    input: str
    output: str
    kind: Activation


RawOperator = Operator | RawPad | RawAffine | RawNorm | RawActivation


@dataclass(frozen=True)
class Value:
    """What a tensor of the network is in the graph.

    Attributes:
        name: the graph's value, a map [N, height, width, channels].
        order: int64, any shape: which channels of it, in the tensor's own dimensions between
            the batch and the spatial ones.
        height, width: at the example's resolution.
        flat: the tensor is [N, order.size * height * width] (or [N, C, 1] on the way there).
        pooled: height and width are 1 at every resolution.
    """

    name: str
    order: NDArray[np.int64]
    height: int
    width: int
    flat: bool = False
    pooled: bool = False

    @property
    def channels(self) -> int:
        return int(self.order.size)


@dataclass(frozen=True)
class Parameter:
    """A constant tensor.

    Attributes:
        key: of the base's state dict; "" for one that the network computes from others.
        array: its values.
    """

    key: str
    array: FloatArray


@dataclass(frozen=True)
class Call:
    """One call of the exported network.

    Attributes:
        target: ATen operator with its overload, for messages.
        path: module path, "" for the root.
        module: class name of that module.
        arguments: by the operator's argument names, defaults filled in.
        shape: of the result; () where it is not one tensor.
    """

    target: str
    path: str
    module: str
    arguments: Mapping[str, Any]
    shape: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def refuse(self, reason: str, nearest: str) -> CallRefusedError:
        """The error for a call that has no rule, or that its rule does not cover."""
        place = f"module {self.path!r} ({self.module})" if self.path else f"the root {self.module}"
        return CallRefusedError(self.target, place, reason, nearest)


@dataclass
class Builder:
    """Collects raw operators in topological order while the network is walked.

    ``windows`` and ``whole`` are those of `program.Lowered`.
    """

    reserved: frozenset[str] = frozenset()
    fixed_windows: frozenset[str] = frozenset()
    operators: list[RawOperator] = field(default_factory=list)
    channels: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, FloatArray] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    selected: dict[tuple[str, tuple[int, ...]], str] = field(default_factory=dict)
    fixed_maps: dict[str, tuple[int, int]] = field(default_factory=dict)
    windows: dict[str, tuple[int, int]] = field(default_factory=dict)
    whole: set[str] = field(default_factory=set)

    def site_name(self, path: str) -> str:
        """``path``, with a number behind it where the module is called more than once."""
        return self._unique(path, frozenset())

    def name(self, call: Call, kind: str) -> str:
        """A new name for an operator without parameters: module path and kind."""
        return self._unique(f"{call.path}.{kind}" if call.path else kind, self.reserved)

    def _unique(self, wanted: str, reserved: frozenset[str]) -> str:
        name, number = wanted, 1
        while name in self.used or name in reserved:
            number += 1
            name = f"{wanted}_{number}"
        self.used.add(name)
        return name

    def emit(self, operator: RawOperator, channels: int) -> None:
        self.operators.append(operator)
        self.channels[operator.output] = channels

    def keep(self, parameter: Parameter) -> str:
        self.parameters[parameter.key] = parameter.array
        return parameter.key

    def constant(self, key: str, array: FloatArray) -> str:
        self.parameters[key] = array
        return key

    def read(self, value: Value) -> str:
        """The name of a map that holds exactly the channels of ``value``, in its order."""
        indices = tuple(int(k) for k in value.order.reshape(-1))
        if indices == tuple(range(self.channels[value.name])):
            return value.name
        if (value.name, indices) not in self.selected:
            name = self._unique(f"{value.name}.select", self.reserved)
            self.emit(ChannelSelect(name, value.name, name, indices), len(indices))
            self.selected[value.name, indices] = name
        return self.selected[value.name, indices]


Result = Value | tuple[Value, ...]
Rule = Callable[[Builder, Call], Result]


def like(value: Value, name: str) -> Value:
    """The result of an elementwise operator on ``value``."""
    order = np.arange(value.channels, dtype=np.int64).reshape(value.order.shape)
    return replace(value, name=name, order=order)


def map_result(call: Call, name: str, channels: int, pooled: bool) -> Value:
    height, width = call.shape[2:]
    order = np.arange(channels, dtype=np.int64)
    return Value(name, order, height, width, False, pooled and (height, width) == (1, 1))


def input_value(call: Call, name: str = "input") -> Value:
    value = call[name]
    if not isinstance(value, Value):
        raise call.refuse("it computes on parameters alone", "a parameter stored as computed")
    return value


def map_value(call: Call, name: str = "input") -> Value:
    """The input as a map [N, C, H, W]."""
    value = input_value(call, name)
    if value.flat or value.order.ndim != 1:
        raise call.refuse("its input is not [N, C, H, W]", "the same operator before the reshape")
    return value


def parameter(call: Call, name: str) -> Parameter | None:
    given = call[name]
    if given is not None and not isinstance(given, Parameter):
        raise call.refuse(f"its {name} is computed from the image", "a parameter")
    return given


def named_weight(builder: Builder, call: Call) -> Parameter:
    """The kernel of a layer. One that the network computes (weight standardisation) is called
    ``<module>.computed``: no tensor of a patch can take its place."""
    weight = parameter(call, "weight")
    assert weight is not None
    return weight if weight.key else _name_computed(builder, call, weight)


def named_bias(builder: Builder, call: Call) -> Parameter | None:
    """The bias of a layer, or None; a computed one is called ``<module>.computed_2`` or so."""
    bias = parameter(call, "bias")
    return bias if bias is None or bias.key else _name_computed(builder, call, bias)


def _name_computed(builder: Builder, call: Call, given: Parameter) -> Parameter:
    stem = f"{call.path}{COMPUTED}" if call.path else COMPUTED.removeprefix(".")
    key, number = stem, 1
    while key in builder.parameters:
        number += 1
        key = f"{stem}_{number}"
    builder.parameters[key] = given.array
    return replace(given, key=key)


def pair(values: int | Sequence[int]) -> tuple[int, int]:
    pair = (values,) if isinstance(values, int) else tuple(values)
    return (pair[0], pair[-1])
