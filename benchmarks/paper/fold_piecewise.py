"""Exact piecewise linear networks on the line: the folding network of the paper's equation (1).

In: the biases of every layer and a set of closed intervals, all rational. Out: the preimage of
that set as closed intervals, the breakpoints of the network, and the biases at which the number of
components changes. Why: section 4's claim is a count of components; a sampled curve cannot tell a
component that is one point from none, and cannot give the bias where the count changes.

One layer, equation (1) with p even and biases b_0 .. b_p:

    q(x; b) = 2 ReLU(s(x; b)),
    s(x; b) = sum over i < p of (-1)^i max(0, c_i x - i + b_i) + b_p,  c_0 = 1, c_i = 2 else

Every finite number is a `fractions.Fraction`; the two infinite ends are floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import inf

End = Fraction | float
Biases = tuple[Fraction, ...]


@dataclass(frozen=True)
class Interval:
    """A closed interval; an infinite end is -inf or inf. low = high is a single point."""

    low: End
    high: End

    @property
    def is_point(self) -> bool:
        return self.low == self.high


@dataclass(frozen=True)
class Stage:
    """A range of the first bias over which the number of components does not change.

    Attributes:
        low, high: the ends, exact; -inf and inf where unbounded.
        low_closed, high_closed: whether the end itself belongs to the range.
        components: connected components of the preimage.
    """

    low: End
    high: End
    low_closed: bool
    high_closed: bool
    components: int

    def contains(self, bias: Fraction) -> bool:
        """Whether a bias lies in this range."""
        above = bias >= self.low if self.low_closed else bias > self.low
        return above and (bias <= self.high if self.high_closed else bias < self.high)


REAL_LINE = Interval(-inf, inf)


def evaluate_fold(biases: Biases, x: Fraction) -> Fraction:
    """q(x; b) of equation (1), exact."""
    return 2 * max(Fraction(0), _sum_before_relu(biases, x))


def evaluate_folds(layers: Sequence[Biases], x: Fraction) -> Fraction:
    """F(x) of equation (1): the layers one after the other, the first one first."""
    for biases in layers:
        x = evaluate_fold(biases, x)
    return x


def solve_preimage(
    layers: Sequence[Biases], target: Sequence[Interval], domain: Interval = REAL_LINE
) -> tuple[Interval, ...]:
    """Every x of the domain that the layers map into the target.

    Returns:
        The maximal closed intervals, in order; two that touch are one. A single point is an
        interval of its own.

    Raises:
        ValueError: a layer has not p + 1 biases for an even p of at least 2.
    """
    found = merge_intervals(target)
    for biases in reversed(layers):
        found = _preimage_of_fold(biases, found)
    return merge_intervals(part for part in (_intersect(one, domain) for one in found) if part)


def merge_intervals(intervals: Iterable[Interval]) -> tuple[Interval, ...]:
    """The maximal closed intervals of a union: those that overlap or touch become one."""
    merged: list[Interval] = []
    for one in sorted(intervals, key=lambda part: (part.low, part.high)):
        if merged and one.low <= merged[-1].high:
            merged[-1] = Interval(merged[-1].low, max(merged[-1].high, one.high))
        else:
            merged.append(one)
    return tuple(merged)


def count_components(preimage: Sequence[Interval], count_points: bool = True) -> int:
    """Connected components; without ``count_points`` only those that are longer than a point."""
    return sum(1 for one in preimage if count_points or not one.is_point)


def find_breakpoints(layers: Sequence[Biases]) -> tuple[Fraction, ...]:
    """Points between which F is affine, in order: all its kinks, and perhaps a few more.

    The kinks of a composition are the first layer's kinks and what it maps onto kinks of the rest.
    """
    if not layers:
        return ()
    first, rest = layers[0], layers[1:]
    levels = {Fraction(0), *find_breakpoints(rest)}
    ends = {
        end
        for level in levels
        for part in _preimage_of_fold(first, (Interval(level, level),))
        for end in (part.low, part.high)
        if isinstance(end, Fraction)
    }
    return tuple(sorted(ends | set(_hinges(first))))


def find_stages(
    layers: Sequence[Biases],
    target: Sequence[Interval],
    *,
    domain: Interval = REAL_LINE,
    count_points: bool = True,
) -> tuple[Stage, ...]:
    """How the number of components depends on b_0 of the first layer, for every real b_0.

    The later layers do not depend on b_0, so the question is when {x in domain: q(x; b) in T}
    changes its shape, T being the target pulled back through them. Between two of the biases where
    s at a node (a hinge, an end of the domain) equals half an end of T nothing changes: every node
    stays on its side of every level, and two nodes that trade places are on the same sides. s at a
    node is affine in b_0 between kinks, so all these biases are roots of rational linear
    equations; the count is then taken at every one and once between neighbours.

    Returns:
        Stages from the lowest bias to the highest; neighbours differ in their count.
    """
    first, rest = layers[0], layers[1:]
    pulled = solve_preimage(rest, target)

    def count(bias: Fraction) -> int:
        preimage = solve_preimage(((bias, *first[1:]),), pulled, domain)
        return count_components(preimage, count_points)

    critical = _critical_biases(first, pulled, domain)
    samples: list[tuple[End, End, bool, int]] = []
    for low, high in zip((-inf, *critical), (*critical, inf), strict=True):
        samples.append((low, high, False, count(_between(low, high))))
        if isinstance(high, Fraction):
            samples.append((high, high, True, count(high)))
    return _join_samples(samples)


def _critical_biases(
    first: Biases, pulled: Sequence[Interval], domain: Interval
) -> tuple[Fraction, ...]:
    """Every b_0 at which the shape of the first layer's preimage can change."""
    ends = [end for part in pulled for end in (part.low, part.high) if isinstance(end, Fraction)]
    levels = {end / 2 for end in ends}
    fixed = [
        *_hinges(first)[1:],
        *(e for e in (domain.low, domain.high) if isinstance(e, Fraction)),
    ]
    kinks = sorted({-node for node in fixed})
    pieces = list(zip((-inf, *kinks), (*kinks, inf), strict=True))
    roots: set[Fraction] = set()
    for low, high in pieces:
        one = _between(low, high)
        two = _between(one, high)  # a second point of the same piece
        for node in [None, *fixed]:
            at_one, at_two = (_sum_at_node(first, bias, node) for bias in (one, two))
            if at_one != at_two:
                slope = (at_two - at_one) / (two - one)
                roots |= {one + (level - at_one) / slope for level in levels}
    return tuple(sorted(roots))


def _sum_at_node(first: Biases, bias: Fraction, node: Fraction | None) -> Fraction:
    """s at a fixed node, or at the moving hinge x = -b_0 for None, with b_0 = bias."""
    return _sum_before_relu((bias, *first[1:]), -bias if node is None else node)


def _join_samples(samples: Sequence[tuple[End, End, bool, int]]) -> tuple[Stage, ...]:
    """Neighbouring ranges (low, high, whether closed, count) of equal count become one stage."""
    stages: list[Stage] = []
    for low, high, closed, components in samples:
        if stages and stages[-1].components == components:
            last = stages[-1]
            stages[-1] = Stage(last.low, high, last.low_closed, closed, components)
        else:
            stages.append(Stage(low, high, closed, closed, components))
    return tuple(stages)


def _between(low: End, high: End) -> Fraction:
    """A rational strictly between two ends."""
    if isinstance(low, Fraction) and isinstance(high, Fraction):
        return (low + high) / 2
    if isinstance(low, Fraction):
        return low + 1
    return high - 1 if isinstance(high, Fraction) else Fraction(0)


def _sum_before_relu(biases: Biases, x: Fraction) -> Fraction:
    """s(x; b) of the module's docstring."""
    total = biases[-1]
    for i in range(len(biases) - 1):
        unit = max(Fraction(0), (x if i == 0 else 2 * x) - i + biases[i])
        total += -unit if i % 2 else unit
    return total


def _hinges(biases: Biases) -> tuple[Fraction, ...]:
    """Where each of the p units starts: -b_0, then (i - b_i) / 2."""
    width = len(biases) - 1
    if width < 2 or width % 2:
        raise ValueError(f"a layer has {len(biases)} biases: give p + 1 for an even p >= 2")
    return (-biases[0], *((i - biases[i]) / 2 for i in range(1, width)))


def _preimage_of_fold(biases: Biases, target: Sequence[Interval]) -> tuple[Interval, ...]:
    """Every real x with q(x; b) in the target: solve each affine piece of s."""
    wanted = [
        Interval(one.low / 2 if one.low > 0 else -inf, one.high / 2)
        for one in target
        if one.high >= 0
    ]
    nodes = sorted(set(_hinges(biases)))
    found = []
    for low, high in zip((-inf, *nodes), (*nodes, inf), strict=True):
        one = _between(low, high)
        two = _between(one, high)
        at_one, at_two = _sum_before_relu(biases, one), _sum_before_relu(biases, two)
        slope = (at_two - at_one) / (two - one)
        for goal in wanted:
            part = _solve_affine(slope, at_one - slope * one, goal)
            part = part and _intersect(part, Interval(low, high))
            if part:
                found.append(part)
    return merge_intervals(found)


def _solve_affine(slope: Fraction, offset: Fraction, goal: Interval) -> Interval | None:
    """Every x with slope * x + offset in the goal."""
    if slope == 0:
        return REAL_LINE if goal.low <= offset <= goal.high else None
    ends = sorted(((goal.low - offset) / slope, (goal.high - offset) / slope))
    return Interval(ends[0], ends[1])


def _intersect(one: Interval, other: Interval) -> Interval | None:
    """What two closed intervals share; None for nothing."""
    low, high = max(one.low, other.low), min(one.high, other.high)
    return Interval(low, high) if low <= high else None
