"""One graph of a network that was lowered at several input sizes.

In: its `Graph` at each size. Out: one graph that is all of them, or a `Difference` that names the
operator. Graphs differ where the forward pass looks at the size of its input. Padding as TensorFlow
computes it (SAME) has a form that is right at every size; the parameters are the base's own, so
what else differs (a window, a factor, a branch) has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from patchdeploy.graph import (
    Conv2d,
    FloatArray,
    Graph,
    MaxPool,
    Operator,
    infer_shapes,
    window_padding,
)


@dataclass(frozen=True)
class Difference:
    """What a network does otherwise at two sizes.

    Attributes:
        operator: its name in the graph: a module path, and a kind where it has no parameters.
        text: what it is at each size, for people.
    """

    operator: str
    text: str


def join_sizes(graphs: Mapping[int, Graph]) -> Graph | Difference:
    """One graph for the sizes in ``graphs``, a graph of one base by side in pixels."""
    sides = sorted(graphs)
    first = graphs[sides[0]]
    for px in sides[1:]:
        found = _compare(first, graphs[px], sides[0], px)
        if found is not None:
            return found
    operators: list[Operator] = []
    for k, operator in enumerate(first.operators):
        joined = _join_operator(operator, k, graphs)
        if isinstance(joined, Difference):
            return joined
        operators.append(joined)
    return replace(first, operators=tuple(operators))


def _compare(first: Graph, other: Graph, px: int, other_px: int) -> Difference | None:
    """What differs between two graphs but padding, the first in their order."""
    for a, b in zip(first.operators, other.operators, strict=False):
        changed = _changed_fields(a, b) - {"padding"}
        if type(a) is not type(b) or a.name != b.name:
            text = f"{_kind(a)} at {px} px, {_kind(b)} {b.name!r} in its place at {other_px} px"
            return Difference(a.name, text)
        if changed:
            return Difference(a.name, _describe(a, b, sorted(changed), px, other_px))
        if isinstance(a, Conv2d) and not _same_constants(a, first, other):
            return Difference(a.name, f"other constants at {px} px than at {other_px} px")
    longer, where = (
        (first, px) if len(first.operators) > len(other.operators) else (other, other_px)
    )
    shorter = min(len(first.operators), len(other.operators))
    if len(longer.operators) > shorter:
        extra = longer.operators[shorter]
        return Difference(extra.name, f"{_kind(extra)} at {where} px alone")
    if first.preprocessing != other.preprocessing:
        return Difference(first.input, f"another normalisation at {px} px than at {other_px} px")
    if (first.output, first.fixed_maps) != (other.output, other.fixed_maps):
        return Difference(first.output, f"another output at {px} px than at {other_px} px")
    return None


def _kind(operator: Operator) -> str:
    return type(operator).__name__


def _changed_fields(a: Operator, b: Operator) -> set[str]:
    names = {one.name for one in fields(a)} & {one.name for one in fields(b)}
    return {name for name in names if getattr(a, name) != getattr(b, name)}


def _describe(a: Operator, b: Operator, changed: Sequence[str], px: int, other_px: int) -> str:
    def at(operator: Operator) -> str:
        return ", ".join(f"{name} {getattr(operator, name)}" for name in changed)

    return f"{at(a)} at {px} px, {at(b)} at {other_px} px"


def _same_constants(conv: Conv2d, first: Graph, other: Graph) -> bool:
    keys = [key for key in (conv.weight, conv.bias) if key is not None]
    pairs: list[tuple[FloatArray, FloatArray]] = [
        (first.parameters[key], other.parameters[key]) for key in keys
    ]
    return all(np.array_equal(a, b) for a, b in pairs)


def _join_operator(
    operator: Operator, index: int, graphs: Mapping[int, Graph]
) -> Operator | Difference:
    """``operator``, its padding "same" where that is what it has at every size."""
    if not isinstance(operator, Conv2d | MaxPool):
        return operator
    found = {px: _window(graph.operators[index]) for px, graph in graphs.items()}
    paddings = {px: one.padding for px, one in found.items()}
    if len(set(paddings.values())) == 1:
        return operator
    same = replace(operator, padding="same")
    if all(_is_same(same, found[px], px, graphs[px]) for px in graphs):
        return same
    text = ", ".join(f"{padding} at {px} px" for px, padding in sorted(paddings.items()))
    return Difference(operator.name, f"zeros at (top, bottom, left, right): {text}")


def _window(operator: Operator) -> Conv2d | MaxPool:
    assert isinstance(operator, Conv2d | MaxPool)
    return operator


def _is_same(same: Conv2d | MaxPool, found: Conv2d | MaxPool, px: int, graph: Graph) -> bool:
    if isinstance(same, MaxPool) and same.ceil_mode:
        return False
    rows, columns, _ = infer_shapes(graph, px, px)[same.input]
    return found.padding == window_padding(same, rows, columns)
