"""A base's torch module -> the neutral graph at one input size, by rules for operators.

In: a `Base` (module in eval mode, preprocessing, content hash). Out: a `Lowered`: the graph as it
is at that size; `lower.sizes` makes one graph of several. `torch.export` traces the module;
`lower.rules` says what each ATen operator means; `lower.passes` merges paddings, normalisations
and activations into the convolutions. An operator without a rule is named with its module path.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from patchdeploy.errors import BaseError, UnsupportedOperatorError
from patchdeploy.graph import Conv2d, Graph, Operator
from patchdeploy.lower.builder import Builder, Call, CallRefusedError, Value
from patchdeploy.lower.names import ModuleNames
from patchdeploy.lower.passes import RawGraph, simplify
from patchdeploy.lower.rules import VIEWS
from patchdeploy.lower.walk import as_parameters, rule_name, walk_nodes

if TYPE_CHECKING:
    from patchdeploy.base import Base

IMAGE = "image"
"""Name of the graph's input value."""

EXAMPLE_BATCH = 2
"""Not 1: a squeeze() without dimensions would drop the batch."""


@dataclass(frozen=True)
class Lowered:
    """A network as it is at one input size.

    Attributes:
        graph: right at that size.
        windows: average poolings, by the name that they have as a window, and their kernels.
        whole: those of them that average the whole map.
    """

    graph: Graph
    windows: Mapping[str, tuple[int, int]]
    whole: frozenset[str]


@dataclass(frozen=True)
class Trace:
    """What `torch.export` says of a network at one input size."""

    base: Base
    program: torch.export.ExportedProgram

    def lower(
        self, fixed_windows: frozenset[str] = frozenset(), exact_border: bool = False
    ) -> Lowered:
        """The graph at this size.

        Args:
            fixed_windows: average poolings that keep their window though it is the whole map here.
            exact_border: put a 1x1 identity convolution after the input, so that normalisation is
                exact also where the first convolution pads with zeros (see `fold.fold_patch`).

        Raises:
            UnsupportedOperatorError: an operator, or a setting of one, that has no rule.
            BaseError: the network's output is not class scores, or its head is no convolution.
        """
        builder, output = _walk(self.program, self.base, fixed_windows)
        graph = _finish(self.base, builder, output, exact_border)
        return Lowered(graph, dict(builder.windows), frozenset(builder.whole))


def trace_base(base: Base, px: int) -> Trace:
    """Trace ``base`` on images of ``px`` x ``px``.

    Raises:
        UnsupportedOperatorError: torch.export does not take the module.
    """
    return Trace(base, _export(base, px))


def _finish(base: Base, builder: Builder, output: str, exact_border: bool) -> Graph:
    """The builder's operators after all passes, as a graph."""
    raw = RawGraph(
        IMAGE,
        output,
        tuple(builder.operators),
        builder.channels,
        builder.parameters,
        base.preprocessing,
        builder.fixed_maps,
    )
    raw = simplify(raw, exact_border)
    operators: tuple[Operator, ...] = tuple(o for o in raw.operators if isinstance(o, Operator))
    assert len(operators) == len(raw.operators)
    heads = [o for o in operators if isinstance(o, Conv2d) and o.module == base.head_name]
    if any(o.weight != f"{base.head_name}.weight" for o in heads):
        raise BaseError(
            f"base {base.name!r}: its last layer {base.head_name!r} computes its kernel from other "
            "tensors; a patch brings a kernel that is used as it is; end the network with "
            "torch.nn.Linear or Conv2d"
        )
    if not any(o.name == base.head_name for o in heads):
        raise BaseError(
            f"base {base.name!r} names {base.head_name!r} as its last layer, which is no "
            "convolution or linear layer of the lowered network; correct head_name"
        )
    return Graph(
        name=base.name,
        base_sha256=base.tensors_sha256,
        preprocessing=raw.preprocessing,
        input=raw.input,
        output=raw.output,
        head=base.head_name,
        operators=operators,
        channels=dict(raw.channels),
        parameters=dict(raw.parameters),
        fixed_maps=dict(raw.fixed_maps),
    )


def _export(base: Base, example_px: int) -> torch.export.ExportedProgram:
    device = next((p.device for p in base.module.parameters()), torch.device("cpu"))
    example = torch.zeros(EXAMPLE_BATCH, 3, example_px, example_px, device=device)
    try:
        with torch.no_grad():
            return torch.export.export(base.module, (example,))
    except Exception as error:  # torch.export raises many unrelated types
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise UnsupportedOperatorError(
            f"base {base.name!r} cannot be traced at {example_px} px "
            f"({type(error).__name__}: {first_line}); lowering needs a module that torch.export "
            "takes, without control flow on tensor values; rewrite its forward"
        ) from error


def _walk(
    program: torch.export.ExportedProgram, base: Base, fixed_windows: frozenset[str]
) -> tuple[Builder, str]:
    """Apply a rule to every call that the output depends on; the output is the name of a value."""
    nodes = list(program.graph.nodes)
    wanted = _needed(nodes)
    paths = {key.rpartition(".")[0] for key in program.state_dict}
    builder = Builder(reserved=frozenset(paths), fixed_windows=fixed_windows, used={IMAGE})
    builder.channels[IMAGE] = 3
    tensors = _tensors(program)
    shared = ModuleNames(base.module)
    inputs: dict[torch.fx.Node, Any] = {}
    constants: dict[torch.fx.Node, torch.Tensor] = {}
    for node in nodes:
        if node.op == "placeholder" and node.name in tensors:
            key, constants[node] = tensors[node.name]
            inputs[node] = replace(as_parameters(constants[node]), key=key)
        elif node.op == "placeholder":
            side = node.meta["val"].shape[-1]
            inputs[node] = Value(IMAGE, np.arange(3, dtype=np.int64), side, side)
    results = walk_nodes(
        [node for node in nodes if node in wanted],
        builder,
        inputs,
        constants,
        partial(_call, shared=shared),
        _hidden_writes(nodes),
    )
    return builder, builder.read(_output(nodes[-1], results, base))


def _tensors(program: torch.export.ExportedProgram) -> dict[str, tuple[str, torch.Tensor]]:
    """Placeholder name -> the base's tensor behind it, and a name of it."""
    found = {}
    for spec in program.graph_signature.input_specs:
        if spec.target is not None and hasattr(spec.arg, "name"):
            tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
            if isinstance(tensor, torch.Tensor):
                found[spec.arg.name] = (spec.target, tensor.detach())
    return found


def _is_in_place(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and str(node.target).split(".")[1:2] != [rule_name(node)]


def _hidden_writes(nodes: list[torch.fx.Node]) -> list[CallRefusedError]:
    """An in-place call is lowered as out-of-place; see that nothing could tell.

    The export lets later code that reads the written tensor read the call's result, but not
    code that reads the same memory through another tensor.

    Returns:
        errors of calls that write memory which is read later under another name.
    """
    found = []
    position = {node: k for k, node in enumerate(nodes)}
    for node in nodes:
        if not isinstance(node.target, torch._ops.OpOverload) or not _is_in_place(node):
            continue
        target = node.all_input_nodes[0]
        for alias in _aliases(target, node):
            if any(position[user] > position[node] for user in alias.users):
                what = f"it writes into {target.name!r}, whose memory is read later as"
                nearest = f"{rule_name(node)} that is not in place"
                found.append(_place(node).refuse(f"{what} {alias.name!r}", nearest))
                break
    return found


def _aliases(target: torch.fx.Node, writer: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes that share memory with ``target``, itself included, its ``writer`` not."""
    root, chain = target, [target]
    while root.op == "call_function" and rule_name(root) in VIEWS:
        root = root.all_input_nodes[0]
        chain.append(root)
    family: list[torch.fx.Node] = []
    frontier = [root]
    while frontier:
        node = frontier.pop()
        family.append(node)
        for user in node.users:
            is_view = user.op == "call_function" and rule_name(user) in VIEWS
            other_part = rule_name(user) == "getitem" and user not in chain and node in chain[1:]
            if is_view and not other_part and user is not writer:
                frontier.append(user)
    return family


def _needed(nodes: list[torch.fx.Node]) -> set[torch.fx.Node]:
    """The nodes that the output depends on."""
    needed = {nodes[-1]}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return needed


def _place(node: torch.fx.Node) -> Call:
    """A call without its arguments: enough for a message."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, module = stack[-1] if stack else ("", "")
    kind = module if isinstance(module, str) else getattr(module, "__name__", "")
    shape = tuple(getattr(node.meta.get("val"), "shape", ()))
    return Call(str(node.target), path, kind.rpartition(".")[2], {}, shape)


def _call(node: torch.fx.Node, results: Mapping[torch.fx.Node, Any], shared: ModuleNames) -> Call:
    """The call with arguments by name, nodes replaced by what they stand for."""
    place = _place(node)
    if node.target is operator.getitem:
        names: list[tuple[str, Any]] = [("self", None), ("index", None)]
    else:
        schema = getattr(node.target, "_schema", None)
        names = (
            []
            if schema is None
            else [
                (a.name, a.default_value if a.has_default_value() else None)
                for a in schema.arguments
            ]
        )
    arguments: dict[str, Any] = dict(names)
    arguments |= {name: value for (name, _), value in zip(names, node.args, strict=False)}
    arguments |= node.kwargs
    resolved = {
        name: torch.fx.node.map_arg(value, lambda n: shared.rename(results[n], place.path))
        for name, value in arguments.items()
    }
    return Call(place.target, place.path, place.module, resolved, place.shape)


def _output(node: torch.fx.Node, results: Mapping[torch.fx.Node, Any], base: Base) -> Value:
    """The one value that the network returns.

    Raises:
        BaseError: it returns several, or a map instead of scores.
    """
    outputs = [results.get(n) for n in node.all_input_nodes]
    value = outputs[0] if len(outputs) == 1 else None
    if not isinstance(value, Value) or (value.height, value.width) != (1, 1):
        found = f"{len(outputs)} tensors"
        if isinstance(value, Value):
            found = f"a map of {value.height}x{value.width} with {value.channels} channels"
        raise BaseError(
            f"base {base.name!r} returns {found}; a base returns one tensor of class scores "
            "[N, classes]; wrap it in a module that does"
        )
    return value
