"""Which resolutions, in which order, with which thresholds: the search on the choosing split.

In: for every resolution the answers and confidences on labelled images, and what a run costs.
Out: a path of cascades from costly to cheap, for `certify`. Two searches:

- Streeter's greedy algorithm (Approximation Algorithms for Cascading Prediction Models, ICML 2018,
  algorithm 1), which the paper uses in Appendix C: each stage must be as right as the reference,
  times alpha, on the very images that it newly answers.
- every subset of at most five resolutions, cheapest first, with every combination of thresholds on
  a grid, whose cost and loss follow from cumulative histograms; then each threshold in turn is
  moved to the best of all its values while the others stay.

Loss of an image: 1 where the cascade is wrong and the reference right, -1 the other way round,
else 0. Losses are whole numbers of images here; tolerances are shares.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from patchdeploy.cascade.rule import MAX_THRESHOLD, CascadeRule, Stage, first_sure
from patchdeploy.cascade.scores import ScoreKind

GRID = {1: 1024, 2: 128, 3: 40, 4: 20}
"""Values of a threshold on the grid, by the number of thresholds: at most about 200,000 cells."""
MAX_MEMBERS = 5
FEW_MEMBERS = 3
"""Members of a subset where there are more than MAX_MEMBERS resolutions to choose from."""
PATH_STEPS = 50
"""Cascades on a path."""

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """What every resolution says about the same images.

    Attributes:
        correct: by resolution, bool [N].
        confidence: by resolution, int64 [N], see `patchdeploy.cascade.scores`.
        costs: by resolution, of one image; any unit, positive.
        reference: the resolution that losses are counted against.
    """

    correct: Mapping[int, BoolArray]
    confidence: Mapping[int, Int64Array]
    costs: Mapping[int, float]
    reference: int

    @property
    def count(self) -> int:
        """Images."""
        return len(self.correct[self.reference])

    @property
    def by_cost(self) -> tuple[int, ...]:
        """Resolutions, the cheapest first."""
        return tuple(sorted(self.costs, key=lambda px: (self.costs[px], px)))

    def loss(self, px: int) -> Int64Array:
        """int64 [N] in -1, 0, 1: what answering at ``px`` loses against the reference."""
        return self.correct[self.reference].astype(np.int64) - self.correct[px].astype(np.int64)

    def losses(self, sides: Sequence[int], stage: Int64Array) -> Int64Array:
        """int64 [N] in -1, 0, 1: of each image at ``sides[stage]``, which answers it."""
        found: Int64Array = np.stack([self.loss(px) for px in sides])[stage, np.arange(len(stage))]
        return found


@dataclass(frozen=True)
class Thresholds:
    """A cascade in the search: resolutions in order, a threshold for each but the last."""

    resolutions: tuple[int, ...]
    values: tuple[int, ...]

    def rule(self, kind: ScoreKind, ratios: Mapping[int, int]) -> CascadeRule:
        """The rule with each stage's ratio (not looked at for a margin)."""
        found = {px: 0 if kind == "margin" else ratios[px] for px in self.resolutions}
        stages = [
            Stage(px, value, found[px])
            for px, value in zip(self.resolutions[:-1], self.values, strict=True)
        ]
        return CascadeRule(kind, (*stages, Stage(self.resolutions[-1], 0, 0)))


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a cascade does on images.

    Attributes:
        stage: int64 [N], position of the stage that answers.
        loss: int64 [N], in -1, 0, 1.
        cost: of an image, the mean; every stage that ran counts.
    """

    stage: Int64Array
    loss: Int64Array
    cost: float


def run_thresholds(answers: Answers, cascade: Thresholds) -> Outcome:
    """Send every image through ``cascade``."""
    sides = cascade.resolutions
    if len(sides) == 1:
        stage = np.zeros(answers.count, np.int64)
    else:
        stage = first_sure(
            [
                answers.confidence[px] >= value
                for px, value in zip(sides[:-1], cascade.values, strict=True)
            ]
        )
    spent = np.cumsum([answers.costs[px] for px in sides])
    loss = answers.losses(sides, stage)
    return Outcome(stage, loss, float(spent[stage].mean()))


# -- Streeter's greedy algorithm -------------------------------------------------------------------


def greedy_cascade(answers: Answers, alpha: float) -> Thresholds:
    """Streeter's algorithm 1 with the reference as the accuracy that each stage must keep.

    Args:
        alpha: each stage is right on its images at least ``alpha`` times as often as the reference.
    """
    remaining = np.ones(answers.count, bool)
    sides: list[int] = []
    values: list[int] = []
    while remaining.any():
        found = [
            (share / answers.costs[px], px, threshold)
            for px in answers.by_cost
            if px not in sides
            for share, threshold in [_least_threshold(answers, px, remaining, alpha)]
            if share > 0
        ]
        _, px, threshold = max(found, key=lambda one: one[0])
        sides.append(px)
        values.append(threshold)
        remaining = remaining & (answers.confidence[px] < threshold)
    return Thresholds(tuple(sides), tuple(values[:-1]))


def _least_threshold(
    answers: Answers, px: int, remaining: BoolArray, alpha: float
) -> tuple[int, int]:
    """Images answered and the least threshold at which ``px`` keeps the reference's accuracy.

    Cuts lie between different confidences alone. (0, MAX_THRESHOLD) where none will do.
    """
    order = np.flatnonzero(remaining)
    if px == answers.reference:  # always feasible, whatever alpha is
        return len(order), 0
    score = answers.confidence[px][order]
    sorting = np.argsort(-score, kind="stable")
    score, order = score[sorting], order[sorting]
    right = np.cumsum(answers.correct[px][order])
    needed = alpha * np.cumsum(answers.correct[answers.reference][order])
    ends = np.append(score[1:] != score[:-1], True)
    feasible = np.flatnonzero(ends & (right >= needed))
    if not feasible.size:
        return 0, MAX_THRESHOLD
    last = int(feasible[-1])
    return last + 1, 0 if last + 1 == len(order) else int(score[last])


# -- every subset, thresholds on a grid ------------------------------------------------------------


def search_path(answers: Answers, tolerance: float) -> list[Thresholds]:
    """Cascades from the reference alone to the cheapest within ``tolerance`` of it.

    Args:
        tolerance: the greatest mean loss on these images, as a share.

    Returns:
        At most PATH_STEPS cascades with falling cost; the first is the reference alone. Each is the
        cheapest found for some number of images that it may lose.
    """
    most = int(np.floor(tolerance * answers.count))
    budgets = sorted({round(b) for b in np.linspace(-answers.count // 20, most, PATH_STEPS - 1)})
    best: dict[int, tuple[float, Thresholds]] = {}
    for sides in subsets(answers):
        for budget, cost, cascade in _best_on_grid(answers, sides, budgets):
            if budget not in best or cost < best[budget][0]:
                best[budget] = (cost, cascade)
    alone = Thresholds((answers.reference,), ())
    path, cost = [alone], answers.costs[answers.reference]
    for budget in budgets:
        if budget in best:
            refined = refine(answers, best[budget][1], budget)
            spent = run_thresholds(answers, refined).cost
            if spent < cost:
                path.append(refined)
                cost = spent
    return path


def subsets(answers: Answers) -> Iterator[tuple[int, ...]]:
    """Sets of resolutions in order of cost, as far as the search looks at them.

    None of them costs more to begin with than the reference alone.
    """
    sides = answers.by_cost
    most = MAX_MEMBERS if len(sides) <= MAX_MEMBERS else FEW_MEMBERS
    for size in range(1, most + 1):
        yield from combinations(sides, size)


def _best_on_grid(
    answers: Answers, sides: Sequence[int], budgets: Sequence[int]
) -> Iterator[tuple[int, float, Thresholds]]:
    """(budget, cost, cascade): the cheapest combination of grid thresholds within each budget."""
    grids = [_grid(answers.confidence[px], GRID[len(sides) - 1]) for px in sides[:-1]]
    costs, losses = _grid_outcomes(answers, sides, grids)
    order = np.argsort(costs, axis=None, kind="stable")
    flat_loss = losses.ravel()[order]
    lowest = np.minimum.accumulate(flat_loss)
    for budget in budgets:
        # `lowest` falls along the order of cost: the first that is within the budget is cheapest.
        place = int(np.searchsorted(-lowest, -budget, side="left"))
        if place < len(order):
            cell = np.unravel_index(order[place], costs.shape)
            values = tuple(int(grid[k]) for grid, k in zip(grids, cell, strict=True))
            yield budget, float(costs[cell]), Thresholds(tuple(sides), values)


def _grid(confidence: Int64Array, count: int) -> Int64Array:
    """Thresholds with about equal numbers of images between them, the last above all of them."""
    distinct = np.unique(confidence)
    if len(distinct) > count - 1:
        places = np.linspace(0, len(confidence) - 1, count - 1).round().astype(np.int64)
        distinct = np.unique(np.sort(confidence)[places])
    return np.append(distinct, MAX_THRESHOLD)


def _grid_outcomes(
    answers: Answers, sides: Sequence[int], grids: Sequence[Int64Array]
) -> tuple[FloatArray, Int64Array]:
    """Mean cost and summed loss of every combination of thresholds, [len(grid) for each grid].

    An image passes stage j where its confidence is below the threshold, so what reaches a stage is
    a cumulative histogram over the bins of the stages before it.
    """
    shape = tuple(len(grid) for grid in grids)
    # Bin k: the image passes at thresholds k and above of the grid, that is confidence < grid[k].
    bins = [
        np.searchsorted(grid, answers.confidence[px], side="right")
        for grid, px in zip(grids, sides[:-1], strict=True)
    ]
    ones = np.ones(answers.count, np.int64)
    costs = np.full(shape, float(answers.costs[sides[0]]))
    losses = np.zeros(shape, np.int64)
    for j in range(len(sides)):
        arrived = _passing(bins[:j], shape[:j], answers.loss(sides[j]))
        if j < len(grids):
            passed = _passing(bins[: j + 1], shape[: j + 1], answers.loss(sides[j]))
            losses += _widen(arrived[..., None] - passed, len(shape))
            onward = _passing(bins[: j + 1], shape[: j + 1], ones)
            costs += answers.costs[sides[j + 1]] * _widen(onward, len(shape)) / answers.count
        else:
            losses += arrived
    return costs, losses


def _passing(bins: Sequence[Int64Array], shape: tuple[int, ...], weights: Int64Array) -> Int64Array:
    """Sum of ``weights`` over the images that pass every stage, for each combination; [*shape].

    ``bins`` are 1 .. len(grid) - 1 for images that some threshold lets pass; none is 0 where the
    grid begins with the least confidence.
    """
    if not bins:
        return np.asarray(weights.sum())
    histogram = np.zeros(shape, np.int64)
    np.add.at(histogram, tuple(bins), weights)
    for axis in range(len(shape)):
        histogram = np.cumsum(histogram, axis=axis)
    return histogram


def _widen(array: NDArray[np.int64], dimensions: int) -> NDArray[np.int64]:
    return array.reshape(array.shape + (1,) * (dimensions - array.ndim))


def refine(answers: Answers, cascade: Thresholds, budget: int) -> Thresholds:
    """Move each threshold in turn to its cheapest value within ``budget`` until none moves.

    Args:
        budget: the greatest summed loss.
    """
    best, cost = cascade, run_thresholds(answers, cascade).cost
    moved = True
    while moved:
        moved = False
        for place in range(len(cascade.values)):
            found = _move(answers, best, place, budget)
            if found is not None and found[0] < cost - 1e-12:
                cost, best = found
                moved = True
    return best


def _move(
    answers: Answers, cascade: Thresholds, place: int, budget: int
) -> tuple[float, Thresholds] | None:
    """The cheapest value of one threshold within the budget, the others as they are."""
    sides, values = cascade.resolutions, cascade.values
    arrived = np.ones(answers.count, bool)
    for px, value in zip(sides[:place], values[:place], strict=True):
        arrived &= answers.confidence[px] < value
    # What the images that reach this stage cost and lose if it answers, and if it passes them on.
    here = run_thresholds(answers, cascade)
    rest = Thresholds(sides[place + 1 :], values[place + 1 :])
    onward = run_thresholds(answers, rest)
    spent = np.cumsum([answers.costs[px] for px in rest.resolutions])[onward.stage]
    own_loss = answers.loss(sides[place])
    order = np.flatnonzero(arrived)
    order = order[np.argsort(-answers.confidence[sides[place]][order], kind="stable")]
    score = answers.confidence[sides[place]][order]
    fixed_loss = int(here.loss[~arrived].sum())
    gained = np.concatenate([[0], np.cumsum(own_loss[order] - onward.loss[order])])
    saved = np.concatenate([[0.0], np.cumsum(spent[order])])
    loss = fixed_loss + int(onward.loss[order].sum()) + gained
    cuts = np.concatenate([[True], np.append(score[1:] != score[:-1], True)])[: len(order) + 1]
    feasible = np.flatnonzero(cuts & (loss <= budget))
    if not feasible.size:
        return None
    cut = int(feasible[np.argmax(saved[feasible])])
    value = MAX_THRESHOLD if cut == 0 else int(score[cut - 1])
    moved = Thresholds(sides, (*values[:place], value, *values[place + 1 :]))
    return run_thresholds(answers, moved).cost, moved
