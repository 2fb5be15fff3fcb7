"""A base -> one graph that computes what the module computes, at every resolution asked for.

In: a `Base` and resolutions. Out: a `Graph`. A forward pass that looks at the size of its input is
traced as what it does at one size. So the graph of the smallest resolution is compared with the
module at every other; where they differ the network is lowered there too, and the graphs are made
one (`lower.join`). What has no such form is refused with the operator, the resolutions, and what
to do. Two more sizes, below and above, tell whether the graph is right everywhere: if not, it is
limited to the resolutions that it was compared at (`graph.SizeLimit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from patchdeploy.errors import (
    BaseError,
    LoweringMismatchError,
    PatchdeployError,
    UnknownResolutionError,
    UnsupportedOperatorError,
)
from patchdeploy.graph import Graph, SizeLimit
from patchdeploy.lower.compare import compare_graph
from patchdeploy.lower.join import Difference, join_sizes
from patchdeploy.lower.program import Lowered, Trace, trace_base

if TYPE_CHECKING:
    from patchdeploy.base import Base

REMEDY = (
    "export each resolution as a bundle of its own, or rewrite the layer so that it does the same "
    "at every size"
)


def lower_base(
    base: Base, resolutions: Sequence[int] | None = None, exact_border: bool = False
) -> Graph:
    """Lower ``base`` to a graph.

    Args:
        base: the network; its module must be in eval mode.
        resolutions: square sides in pixels at which the graph must be the module; the base's
            input size unless given.
        exact_border: put a 1x1 identity convolution after the input, so that normalisation is
            exact also where the first convolution pads with zeros (see `fold.fold_patch`).

    Raises:
        UnsupportedOperatorError: an operator, or a setting of one, that has no rule.
        LoweringMismatchError: the module does at two resolutions what no one graph does, or what
            lowering cannot see; the operator is named.
        BaseError: the module fails at a resolution, the network's output is not class scores, or
            its head is not a convolution.
        UnknownResolutionError: a map would be empty at a resolution.
    """
    sides = tuple(sorted(set(resolutions or (base.preprocessing.input_size,))))
    sizes = _Sizes(base, exact_border)
    graph = sizes.cover(sides)
    for px in probe_sides(sides):
        if sizes.differs(graph, px):
            try:
                graph = sizes.cover((*sides, px))
            except PatchdeployError as error:
                return replace(graph, limit=SizeLimit(sides, str(error).split("; ")[0]))
    return graph


def probe_sides(sides: Sequence[int]) -> tuple[int, ...]:
    """Sizes below and above all of ``sides``, whose maps are odd at every depth, or even.

    Halved L times with the rest rounded up, 2^L j + 1 is odd each time, where the usual multiples
    of 32 are even: padding, cuts and windows that happen to agree there differ here. Where
    ``sides`` are no such multiples, one that is comes last.
    """
    below, above = _step(min(sides)), _step(max(sides))
    multiple = above * (max(sides) // above + 1)
    odd = (below * max(1, (min(sides) - 2) // below) + 1, multiple + 1)
    return odd if all(px % above == 0 for px in sides) else (*odd, multiple)


def _step(px: int) -> int:
    """The largest power of two that is at most half of ``px``, and at most 32."""
    return max(power for power in (1, 2, 4, 8, 16, 32) if power == 1 or 2 * power <= px)


@dataclass
class _Sizes:
    """A base, and its traces at the sizes where it had to be traced."""

    base: Base
    exact_border: bool
    traces: dict[int, Trace] = field(default_factory=dict)

    def cover(self, sides: Sequence[int]) -> Graph:
        """One graph that was compared with the module at each of ``sides``.

        Raises:
            PatchdeployError: see `lower_base`.
        """
        own = self.base.preprocessing.input_size
        if not self.traces:
            self._trace(own if own in sides else sides[0])
        graph = self._join()
        while (found := self._first_fault(graph, sides)) is not None:
            self._trace(found[0])
            try:
                graph = self._join()
            except UnsupportedOperatorError as error:
                raise (found[1] or error) from error
        return graph

    def _first_fault(
        self, graph: Graph, sides: Sequence[int]
    ) -> tuple[int, UnknownResolutionError | None] | None:
        """The first size that needs a trace, and why ``graph`` cannot run there if it cannot."""
        for px in sides:
            try:
                if self._disagrees(graph, px):
                    return px, None
            except UnknownResolutionError as error:
                if px in self.traces:
                    raise
                return px, error
        return None

    def differs(self, graph: Graph, px: int) -> bool:
        """Whether ``graph`` runs at ``px`` and the module, where it runs too, is something else."""
        try:
            return compare_graph(self.base, graph, px) is not None
        except (UnknownResolutionError, BaseError):
            return False

    def _disagrees(self, graph: Graph, px: int) -> bool:
        """Whether a trace at ``px`` is needed.

        Raises:
            LoweringMismatchError: it is there already, so that lowering does not see the reason.
            UnknownResolutionError, BaseError: the graph or the module cannot run at ``px``.
        """
        found = compare_graph(self.base, graph, px)
        if found is not None and px in self.traces:
            raise LoweringMismatchError(
                f"base {self.base.name!r} at {px} px: the graph is not the module: {found}; "
                "a base's forward pass must be a function of the image alone, made of operators "
                "that torch.export sees; rewrite that layer"
            )
        return found is not None

    def _trace(self, px: int) -> None:
        self.traces[px] = trace_base(self.base, px)

    def _join(self) -> Graph:
        """One graph of all traces.

        Raises:
            LoweringMismatchError: there is none.
            UnsupportedOperatorError: one of them has an operator without a rule.
        """
        found = {px: self._lower(px) for px in self.traces}
        whole = [lowered.whole for lowered in found.values()]
        fixed = frozenset.union(*whole) - frozenset.intersection(*whole)
        if fixed:
            found = {px: self._lower(px, fixed) for px in self.traces}
        joined = join_sizes({px: lowered.graph for px, lowered in found.items()})
        if isinstance(joined, Difference):
            raise LoweringMismatchError(
                f"base {self.base.name!r} looks at the size of its input at operator "
                f"{joined.operator!r}: {joined.text}; one graph of shared kernels serves every "
                f"resolution of a bundle; {REMEDY}"
            )
        return joined

    def _lower(self, px: int, fixed_windows: frozenset[str] = frozenset()) -> Lowered:
        try:
            return self.traces[px].lower(fixed_windows, self.exact_border)
        except UnsupportedOperatorError as error:
            if len(self.traces) == 1:
                raise
            raise UnsupportedOperatorError(f"at {px} px, {error}; or leave {px} px out") from error
