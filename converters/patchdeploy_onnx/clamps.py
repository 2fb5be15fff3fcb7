"""Where saturation is the activation, and where it is not.

In: a graph. Out: the values that need a clamp of their own. Requantisation saturates to the
integer range. That is what ReLU and its kin do as long as the range of the activation SITE
starts at 0 and ends no higher than the activation does, which quantisation sees to. But a value
that is tied (by a concatenation, for instance) to one that is negative somewhere, or larger,
shares a site that reaches further.

The answer depends on the structure alone, and so do the file's bytes outside slots.
"""

from __future__ import annotations

from math import inf

from patchdeploy.errors import UnsupportedOperatorError
from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    Graph,
    MaxPool,
    Operator,
    tied_values,
)

Interval = tuple[float, float]
INTERVALS: dict[str, Interval] = {
    "none": (-inf, inf),
    "relu": (0.0, inf),
    "relu6": (0.0, 6.0),
    "hard_sigmoid": (0.0, 1.0),
}
"""What each activation can put out."""


def find_clamped(graph: Graph) -> dict[str, Interval]:
    """Value -> (low, high), for every activation that saturation alone does not compute.

    Raises:
        UnsupportedOperatorError: a hard sigmoid that is tied to a value with another range: the
            integer arithmetic has no clamp for it, in any runtime.
    """
    ties = tied_values(graph)
    reach: dict[str, Interval] = {ties[graph.input]: INTERVALS["none"]}
    for operator in graph.operators:
        if not isinstance(operator, Concat | MaxPool | ChannelSelect):
            site, (low, high) = ties[operator.output], _interval(operator)
            known = reach.get(site, (low, high))
            reach[site] = (min(low, known[0]), max(high, known[1]))
    clamped = {
        operator: _interval(operator)
        for operator in graph.operators
        if isinstance(operator, Conv2d | Add)
        and operator.activation != "none"
        and reach[ties[operator.output]] != _interval(operator)
    }
    for operator in clamped:
        if operator.activation == "hard_sigmoid":
            raise UnsupportedOperatorError(
                f"operator {operator.name!r} ends in a hard sigmoid, and its output is joined "
                "with values outside [0, 1]; a hard sigmoid needs the range [0, 1] to itself; "
                "put a multiplication or a convolution between it and the concatenation"
            )
    return {operator.output: interval for operator, interval in clamped.items()}


def _interval(operator: Operator) -> Interval:
    """What ``operator`` can put out; all numbers where it has no activation."""
    return INTERVALS[getattr(operator, "activation", "none")]
