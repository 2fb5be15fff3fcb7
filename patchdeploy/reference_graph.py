"""The graph and the kernels of a reference file, read without trust.

In: the document of its metadata and its arrays. Out: a `QuantizedBase` whose parts have the types
of `graph` and `quantize.model`, stay in range and fit each other, or a FileFormatError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data import Preprocessing
from patchdeploy.documents import HEX64, HEX64_RULE, Field
from patchdeploy.errors import ConfigError, FileFormatError
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    GlobalAvgPool,
    Graph,
    MaxPool,
    Mul,
    Norm,
    Operator,
    Pointwise,
    SizedPadding,
    SizeLimit,
)
from patchdeploy.quantize.model import QuantizedBase

FORMAT = 1
FORMAT_BY_SIZE = 2
"""Of a graph with padding "same" or a `SizeLimit`, which readers of format 1 do not know."""
MAX_NAME = 4096
MAX_OPERATORS = 65_536
MAX_CHANNELS = 1 << 20
MAX_WINDOW = 4096
"""Of a kernel, a stride, a dilation and a padding, in pixels."""
MAX_LIMITS = 64
"""Resolutions that a graph can be limited to."""
MAX_OWNED = 1 << 30
"""Elements of the kernels that tasks bring along."""
_REMEDY = "copy the reference file again or export the base again"
_KEYS = (
    "format",
    "name",
    "base_sha256",
    "preprocessing",
    "input",
    "output",
    "head",
    "operators",
) + ("channels", "patch_owned", "head_capacity", "input_zero_point")
_ACTIVATIONS = ("none", "relu", "relu6", "hard_sigmoid")
Arrays = Mapping[str, NDArray[Any]]


def read_base(document: Field, arrays: Arrays) -> QuantizedBase:
    """The base that `reference.save_reference` wrote.

    Raises:
        FileFormatError: naming the field or the array that breaks a rule.
    """
    found = document.value.get("format") if type(document.value) is dict else FORMAT
    if found not in (FORMAT, FORMAT_BY_SIZE):
        raise FileFormatError(
            f"reference file has format {found!r:.80}; this version reads formats {FORMAT} and "
            f"{FORMAT_BY_SIZE}; export the base again or upgrade patchdeploy"
        )
    body = document.keys(_KEYS if found == FORMAT else (*_KEYS, "limit"))
    body["format"].integer(FORMAT, FORMAT_BY_SIZE)
    pairs = [pair.items(2, least=2) for pair in body["channels"].items(MAX_OPERATORS, least=2)]
    graph = Graph(
        name=body["name"].short_text(MAX_NAME),
        base_sha256=body["base_sha256"].text(HEX64, HEX64_RULE),
        preprocessing=_preprocessing(body["preprocessing"]),
        input=_name(body["input"]),
        output=_name(body["output"]),
        head=_name(body["head"]),
        operators=tuple(_operator(one) for one in body["operators"].items(MAX_OPERATORS, least=1)),
        channels={_name(value): count.integer(1, MAX_CHANNELS) for value, count in pairs},
        parameters={},
        limit=_limit(body["limit"]) if "limit" in body else None,
    )
    if depends_on_size(graph) != (found == FORMAT_BY_SIZE):
        body["format"].refuse(f"{FORMAT_BY_SIZE} where padding or a limit depends on the size")
    if len(graph.channels) < len(pairs):
        body["channels"].refuse("pairs of a value and its channels, each value once")
    _check_graph(graph)
    capacity = body["head_capacity"].integer(1, MAX_CHANNELS)
    shapes = {conv.name: _shape(conv, graph.head, capacity) for conv in graph.convolutions()}
    owned = _owned(body["patch_owned"], shapes, graph.head)
    return QuantizedBase(
        graph=graph,
        weights={
            name: np.zeros(shape, np.int8)
            if name in owned
            else _array(arrays, f"weight/{name}", np.dtype(np.int8), shape)
            for name, shape in shapes.items()
        },
        weight_scales={
            name: _array(arrays, f"weight_scale/{name}", np.dtype(np.float32), shape[:1])
            for name, shape in shapes.items()
        },
        patch_owned=owned,
        head_capacity=capacity,
        input_zero_point=body["input_zero_point"].integer(-128, 127),
    )


def depends_on_size(graph: Graph) -> bool:
    """Whether ``graph`` has padding "same" or a `SizeLimit`."""
    windows = (o for o in graph.operators if isinstance(o, Conv2d | MaxPool))
    return graph.limit is not None or any(window.padding == "same" for window in windows)


def _limit(value: Field) -> SizeLimit | None:
    if value.value is None:
        return None
    body = value.keys(("resolutions", "reason"))
    sides = [px.integer(1, MAX_WINDOW) for px in body["resolutions"].items(MAX_LIMITS, least=1)]
    if sides != sorted(set(sides)):
        body["resolutions"].refuse("ascending, each once")
    return SizeLimit(tuple(sides), body["reason"].short_text(MAX_NAME))


def _preprocessing(value: Field) -> Preprocessing:
    value.keys(one.name for one in fields(Preprocessing))
    try:
        return Preprocessing.from_json(value.value)
    except ConfigError as error:
        raise value.error(f"{value.name}: {error}") from error


def _name(value: Field) -> str:
    return value.short_text(MAX_NAME, least=1)


def _operator(value: Field) -> Operator:
    kind = value.value.get("operator") if type(value.value) is dict else None
    if type(kind) is not str or kind not in _READERS:
        raise FileFormatError(
            f"{value.name}: reference file holds an operator {kind!r:.80}; this version knows "
            f"{', '.join(_READERS)}; upgrade patchdeploy"
        )
    make, keys = _READERS[kind]
    return make(value.keys(("operator", *keys)))


Body = Mapping[str, Field]


def _conv(body: Body) -> Conv2d:
    return Conv2d(
        name=_name(body["name"]),
        input=_name(body["input"]),
        output=_name(body["output"]),
        weight=_name(body["weight"]),
        in_channels=body["in_channels"].integer(1, MAX_CHANNELS),
        out_channels=body["out_channels"].integer(1, MAX_CHANNELS),
        kernel=_pair(body["kernel"]),
        bias=None if body["bias"].value is None else _name(body["bias"]),
        norm=None if body["norm"].value is None else _norm(body["norm"]),
        groups=body["groups"].integer(1, MAX_CHANNELS),
        stride=_pair(body["stride"]),
        padding=_padding(body["padding"]),
        dilation=_pair(body["dilation"]),
        activation=body["activation"].choice(_ACTIVATIONS),  # type: ignore[arg-type]
        is_constant=body["is_constant"].flag(),
    )


def _norm(value: Field) -> Norm:
    body = value.keys(("operator", "name", "eps"))
    body["operator"].choice(("Norm",))
    return Norm(_name(body["name"]), body["eps"].number(0, 1e6))


def _pointwise(body: Body) -> Pointwise:
    kind = body["kind"].choice(("hard_swish", "sigmoid"))
    return Pointwise(*_ends(body), kind=kind)  # type: ignore[arg-type]


def _add(body: Body) -> Add:
    activation = body["activation"].choice(_ACTIVATIONS[:3])
    return Add(_name(body["name"]), _two(body), _name(body["output"]), activation)  # type: ignore[arg-type]


def _mul(body: Body) -> Mul:
    return Mul(_name(body["name"]), _two(body), _name(body["output"]))


def _concat(body: Body) -> Concat:
    inputs = tuple(_name(one) for one in body["inputs"].items(MAX_CHANNELS, least=1))
    return Concat(_name(body["name"]), inputs, _name(body["output"]))


def _max_pool(body: Body) -> MaxPool:
    return MaxPool(
        *_ends(body),
        kernel=_pair(body["kernel"]),
        stride=_pair(body["stride"]),
        padding=_padding(body["padding"]),
        ceil_mode=body["ceil_mode"].flag(),
    )


def _pool(body: Body) -> GlobalAvgPool:
    return GlobalAvgPool(*_ends(body))


def _select(body: Body) -> ChannelSelect:
    indices = body["indices"].items(MAX_CHANNELS, least=1)
    return ChannelSelect(
        *_ends(body), indices=tuple(one.integer(0, MAX_CHANNELS) for one in indices)
    )


def _ends(body: Body) -> tuple[str, str, str]:
    return _name(body["name"]), _name(body["input"]), _name(body["output"])


def _two(body: Body) -> tuple[str, str]:
    first, second = body["inputs"].items(2, least=2)
    return _name(first), _name(second)


def _pair(value: Field) -> tuple[int, int]:
    high, wide = value.items(2, least=2)
    return high.integer(1, MAX_WINDOW), wide.integer(1, MAX_WINDOW)


def _padding(value: Field) -> SizedPadding:
    if value.value == "same":
        return "same"
    top, bottom, left, right = (one.integer(0, MAX_WINDOW) for one in value.items(4, least=4))
    return top, bottom, left, right


def _keys(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in fields(kind))


_READERS: dict[str, tuple[Callable[[Body], Operator], tuple[str, ...]]] = {
    "Add": (_add, _keys(Add)),
    "ChannelSelect": (_select, _keys(ChannelSelect)),
    "Concat": (_concat, _keys(Concat)),
    "Conv2d": (_conv, _keys(Conv2d)),
    "GlobalAvgPool": (_pool, _keys(GlobalAvgPool)),
    "MaxPool": (_max_pool, _keys(MaxPool)),
    "Mul": (_mul, _keys(Mul)),
    "Pointwise": (_pointwise, _keys(Pointwise)),
}


def _check_graph(graph: Graph) -> None:
    """Operators read what was written before, and channels add up."""
    channels = graph.channels
    written = [graph.input, *(operator.output for operator in graph.operators)]
    if len(set(written)) < len(written) or set(written) != set(channels):
        raise _unfit("channels", "of the input and of each operator's output, each once")
    if len({operator.name for operator in graph.operators}) < len(graph.operators):
        raise _unfit("operators", "of different names")
    if channels[graph.input] != 3 or graph.output not in channels:
        raise _unfit("input and output", "values of the graph, the input with 3 channels")
    if graph.head not in {conv.name for conv in graph.convolutions()}:
        raise _unfit("head", "a convolution of the graph")
    known = {graph.input}
    for operator in graph.operators:
        if not known.issuperset(operator.inputs):
            raise _unfit(f"operator {operator.name!r:.80}", "after those that write its inputs")
        known.add(operator.output)
        if not _adds_up(operator, [channels[one] for one in operator.inputs], graph):
            raise _unfit(f"operator {operator.name!r:.80}", "of channels that add up")


def _adds_up(operator: Operator, given: list[int], graph: Graph) -> bool:
    out = graph.channels[operator.output]
    if isinstance(operator, Conv2d):
        whole = operator.in_channels % operator.groups == operator.out_channels % operator.groups
        return (
            whole
            and operator.in_channels % operator.groups == 0
            and (given[0], out) == (operator.in_channels, operator.out_channels)
        )
    if isinstance(operator, ChannelSelect):
        return len(operator.indices) == out and max(operator.indices) < given[0]
    if isinstance(operator, Concat):
        return sum(given) == out
    return all(one == out for one in given)


def _shape(conv: Conv2d, head: str, capacity: int) -> tuple[int, int, int, int]:
    """Of its kernel, [O, kh, kw, I/groups]."""
    rows = capacity if conv.name == head else conv.out_channels
    return rows, *conv.kernel, conv.in_channels // conv.groups


def _owned(value: Field, shapes: Mapping[str, tuple[int, ...]], head: str) -> frozenset[str]:
    """The convolutions whose kernels tasks bring along."""
    if type(value.value) is not dict or head not in value.value:
        value.refuse(f"an object with the head, {head!r:.80}")
    total = 0
    for name, shape in value.value.items():
        if name not in shapes or type(shape) is not list or shape != list(shapes[name]):
            raise _unfit(f"patch_owned {name!r:.80}", "a convolution, with its kernel's shape")
        total += int(np.prod(shapes[name], dtype=object))
    if total > MAX_OWNED:
        raise _unfit("patch_owned", f"of at most {MAX_OWNED} elements in all, not {total}")
    return frozenset(value.value)


def _array(arrays: Arrays, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    found = arrays.get(name)
    if found is None or found.dtype != dtype or found.shape != shape:
        shown = "missing" if found is None else f"{found.dtype} {found.shape}"
        raise _unfit(f"array {name!r:.200}, which is {shown},", f"{dtype} {shape}")
    if dtype == np.float32 and not (np.isfinite(found) & (found >= 0)).all():
        raise _unfit(f"array {name!r:.200}", "finite and not negative")
    return found


def _unfit(what: str, rule: str) -> FileFormatError:
    return FileFormatError(f"reference file: {what} must be {rule}; {_REMEDY}")
