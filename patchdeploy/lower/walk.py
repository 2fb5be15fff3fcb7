"""The calls of an exported network, one after another, through the rules.

In: the nodes of an exported program and the base's tensors behind its placeholders. Out: what each
node is in the graph, or one error that names every call without a form there. A call that reads
constants alone (a standardised kernel, a reshaped scale) is computed and is a constant. After a
call that is refused the walk goes on with a stand-in of the same shape, so that all are found.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from patchdeploy.errors import UnsupportedOperatorError
from patchdeploy.lower.builder import Builder, Call, CallRefusedError, Parameter, Value
from patchdeploy.lower.rules import NEAREST, RULES, SUPPORTED

Node = torch.fx.Node
UNKNOWN = object()
"""The stand-in for a result that is no map and no list of features."""


def walk_nodes(
    nodes: Sequence[Node],
    builder: Builder,
    inputs: Mapping[Node, Any],
    constants: Mapping[Node, Any],
    read_call: Callable[[Node, Mapping[Node, Any]], Call],
    refused: Sequence[CallRefusedError] = (),
) -> dict[Node, Any]:
    """Apply a rule to each of ``nodes``, in their order.

    Args:
        inputs: what the placeholders are.
        constants: the tensors of those that are parameters.
        read_call: node and results -> its call.
        refused: calls that were refused before.

    Raises:
        UnsupportedOperatorError: of one call its own error, of several one that lists all.
    """
    results: dict[Node, Any] = dict(inputs)
    known: dict[Node, Any] = dict(constants)
    faults = list(refused)
    for node in nodes:
        if node.op != "call_function":
            continue
        if (value := _compute(node, known)) is not None:
            known[node], results[node] = value, as_parameters(value)
            continue
        try:
            results[node] = _apply(builder, node, results, read_call)
        except CallRefusedError as error:
            faults.append(error)
            results[node] = _stand_in(builder, node)
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            results[node] = UNKNOWN
            if not faults:  # else a rule met a stand-in, and what led to it is reported
                call = read_call(node, results)
                reason = f"no rule for these arguments ({type(error).__name__}: {error})"
                faults.append(call.refuse(reason, SUPPORTED))
    if faults:
        raise join_refusals(faults)
    return results


def _apply(
    builder: Builder,
    node: Node,
    results: Mapping[Node, Any],
    read_call: Callable[[Node, Mapping[Node, Any]], Call],
) -> Any:
    call = read_call(node, results)
    rule = RULES.get(rule_name(node))
    if rule is None:
        nearest = NEAREST.get(rule_name(node).lstrip("_"), SUPPORTED)
        raise call.refuse("no lowering rule for this operator", nearest)
    if any(results.get(one) is UNKNOWN for one in node.all_input_nodes):
        return UNKNOWN
    return rule(builder, call)


def rule_name(node: Node) -> str:
    """The operator's name without namespace, overload and in-place underscore."""
    if node.target is operator.getitem:
        return "getitem"
    name = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
    return name.removesuffix("_")


@torch.no_grad()
def _compute(node: Node, known: Mapping[Node, Any]) -> Any:
    """The value of a call that reads constants alone, or None."""
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    if random or any(one not in known for one in node.all_input_nodes):
        return None
    if not callable(node.target):
        return None

    def copied(value: Any) -> Any:  # an operator in place writes what it is given
        return value.clone() if isinstance(value, torch.Tensor) else value

    given = {one: known[one] for one in node.all_input_nodes}
    args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), lambda one: copied(given[one]))
    result = node.target(*args, **kwargs)
    return result if isinstance(result, torch.Tensor | list | tuple) else None


def as_parameters(value: Any) -> Any:
    """Computed tensors, which no name of the state dict stands for."""
    if isinstance(value, torch.Tensor):
        return Parameter("", np.array(value.detach().cpu().float().numpy(), np.float32))
    return tuple(as_parameters(one) for one in value)


def _stand_in(builder: Builder, node: Node) -> Any:
    shape = tuple(getattr(node.meta.get("val"), "shape", ()))
    if len(shape) not in (2, 4):
        return UNKNOWN
    name = f"refused {node.name}"
    builder.channels[name] = int(shape[1])
    order = np.arange(int(shape[1]), dtype=np.int64)
    if len(shape) == 2:
        return Value(name, order, 1, 1, flat=True, pooled=True)
    height, width = int(shape[2]), int(shape[3])
    return Value(name, order, height, width, pooled=(height, width) == (1, 1))


def join_refusals(faults: Sequence[CallRefusedError]) -> UnsupportedOperatorError:
    """One error: of one call its own, of several every operator with the modules that call it."""
    places: dict[tuple[str, str, str], dict[str, None]] = {}
    for one in faults:
        group = places.setdefault((one.target, one.reason, one.nearest), {})
        group[one.place.removeprefix("module ") if group else one.place] = None
    count = sum(len(where) for where in places.values())
    if count == 1:
        return faults[0]
    lines = [
        f"\n  {target} at {', '.join(where)}: {reason}; the nearest supported form is {nearest}"
        for (target, reason, nearest), where in places.items()
    ]
    return UnsupportedOperatorError(
        f"{count} places of the network cannot be lowered:{''.join(lines)}\n"
        "rewrite these modules and make the base again"
    )
