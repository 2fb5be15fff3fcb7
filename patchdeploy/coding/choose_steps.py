"""How coarsely each convolution may be coded: the fewest bytes that keep the accuracy.

In: a task's slot values, a way to score decoded values on validation images, a budget. Out: the
values to code (the head on fewer levels) and `CodingSteps`. Never give it test images: it chooses.

Coding convolution l with a step d alone moves the scores by about a_l d^2 (rounding errors are
uniform, so their variance is d^2 / 12, and a small change of the scores costs a Kullback-Leibler
divergence that is quadratic in it). Halving the step of its N_l values costs N_l bits. The least
sum of bits for a given sum of divergences has a_l d_l^2 / N_l the same for all (reverse
water-filling: Cover and Thomas, Elements of Information Theory, 10.3.3). So each a_l is measured
once (`coding.probe`), and one number, the common share, is searched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodingSteps
from patchdeploy.coding.layout import PatchLayout, masked_head_rows, padding_rows
from patchdeploy.coding.lossless_steps import at_least, lossless_steps
from patchdeploy.coding.probe import (
    FINE_BIAS_LSB,
    FINE_SCALE,
    Costs,
    bias_exponents,
    divergence,
    probe_costs,
    softmax,
)
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.slots import PatchValues

Scores = NDArray[np.float32]
Score = Callable[[int, PatchValues], Scores]
"""(resolution, slot values) -> float32 [N, classes] on the validation images of that size."""
Progress = Callable[[str], None]

COARSEST_SCALE, COARSEST_BIAS_LSB = 10, 64.0
LEVELS = (63, 31, 21, 15, 11, 7)
SHARES = tuple(2.0 ** (k / 2) for k in range(-52, -7))
"""Common shares that are tried, nats a value; in half octaves."""
MIN_IMAGES = 32
PASSES = 15
"""Scores of every image at every resolution: of the head's levels and of the search for a share."""


@dataclass(frozen=True)
class CodingConfig:
    """What coding may cost.

    Attributes:
        points: percentage points of validation top-1 that may be lost, at any resolution, beyond
            what chance explains: of D images whose answer turned right or wrong, the difference
            has a standard deviation of sqrt(D) where coding changes nothing on average.
        nats: mean Kullback-Leibler divergence from the uncoded scores that may arise: the guard
            where a few hundred images cannot tell 0.1 point.
        head_share: of ``nats``, what the head's levels may take.
        probe_images: validation images that each convolution is probed on.
    """

    points: float = 0.1
    nats: float = 0.01
    head_share: float = 0.25
    probe_images: int = 200

    def __post_init__(self) -> None:
        if not (self.points >= 0 and self.nats > 0 and 0 <= self.head_share < 1):
            raise ConfigError(
                f"{self}: points must be at least 0, nats above 0, head_share in [0, 1); the "
                "defaults are usual"
            )
        if self.probe_images < MIN_IMAGES:
            raise ConfigError(
                f"probe_images {self.probe_images}; it must be at least {MIN_IMAGES}; 200 are usual"
            )


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what it costs on the validation images.

    Attributes:
        values: to be coded: those given, the head on ``head_levels`` levels of either sign.
        steps: of each convolution.
        points: by resolution, top-1 lost in percentage points (negative: gained).
        nats: by resolution, mean divergence of the decoded scores.
    """

    values: Mapping[int, PatchValues]
    steps: CodingSteps
    head_levels: int
    points: Mapping[int, float]
    nats: Mapping[int, float]


def fine_steps(values: Mapping[int, PatchValues], table: CodingTable) -> CodingSteps:
    """Steps that need no validation images: 1/32 octave, an eighth of an output step, or coarser
    where ``values`` lie on a coarser grid.
    """
    count = len(table.convs)
    fine = CodingSteps((3,) * count, bias_exponents(values, table, np.full(count, 0.125)))
    return at_least(fine, lossless_steps(values, table))


def choose_steps(
    values: Mapping[int, PatchValues],
    labels: NDArray[np.int64],
    table: CodingTable,
    score: Score,
    config: CodingConfig | None = None,
    progress: Progress | None = None,
    *,
    probe_score: Score | None = None,
    costs: Costs | None = None,
) -> Choice:
    """The coarsest steps whose decoded values stay inside the budget at every resolution.

    Args:
        values: by resolution; head rows from the classes on masked.
        labels: int64 [N] of the validation images that ``score`` runs.
        probe_score: scores fewer of those images (200 will do): four scores for each convolution.
        costs: of an earlier `probe_costs` of these values; by default they are probed here.

    Raises:
        DataError: too few validation images.
    """
    config = config or CodingConfig()
    if len(labels) < MIN_IMAGES:
        raise DataError(
            f"{len(labels)} validation images; choosing steps needs at least {MIN_IMAGES} (500 are "
            "usual); hold more out, or code with the fine default steps"
        )
    search = _Search.start(values, labels, table, score, config)
    levels, chosen = search.choose_levels()
    if progress is not None:
        progress(f"head on {levels} levels; probing {len(table.convs)} convolutions")
    if costs is None:
        px = max(chosen)
        costs = probe_costs(px, chosen[px], search.classes, table, probe_score or score)
    steps, outcome = search.choose_share(chosen, costs)
    return Choice(chosen, steps, levels, outcome.points, outcome.nats)


@dataclass(frozen=True)
class _Outcome:
    """What decoded values lose, by resolution; ``chance`` is one standard deviation of points."""

    points: Mapping[int, float]
    chance: Mapping[int, float]
    nats: Mapping[int, float]


@dataclass(frozen=True)
class _Search:
    """One run of `choose_steps`.

    Attributes:
        chances: by resolution, float64 [N, classes] of the uncoded values.
        right: by resolution, bool [N]: which of them are right.
        least: the steps that ``values`` lie on: finer ones keep nothing more.
        classes: of the task.
    """

    values: Mapping[int, PatchValues]
    labels: NDArray[np.int64]
    table: CodingTable
    score: Score
    config: CodingConfig
    chances: Mapping[int, NDArray[np.float64]]
    right: Mapping[int, NDArray[np.bool_]]
    least: CodingSteps
    classes: int

    @classmethod
    def start(
        cls,
        values: Mapping[int, PatchValues],
        labels: NDArray[np.int64],
        table: CodingTable,
        score: Score,
        config: CodingConfig,
    ) -> _Search:
        first = {px: score(px, one) for px, one in values.items()}
        return cls(
            values={px: values[px] for px in sorted(values, reverse=True)},
            labels=labels,
            table=table,
            score=score,
            config=config,
            chances={px: softmax(one) for px, one in first.items()},
            right={px: _right(one, labels) for px, one in first.items()},
            least=lossless_steps(values, table),
            classes=next(iter(first.values())).shape[1],
        )

    def decoded(
        self, values: Mapping[int, PatchValues], steps: CodingSteps
    ) -> dict[int, PatchValues]:
        return decode_values(encode_values(values, self.classes, self.table, steps), self.table)

    def judge(self, values: Mapping[int, PatchValues]) -> _Outcome:
        """What ``values`` lose against the uncoded ones, at each resolution."""
        points, chance, nats = {}, {}, {}
        for px, one in values.items():
            scores = self.score(px, one)
            before, after = self.right[px], _right(scores, self.labels)
            share = 100 / len(self.labels)
            points[px] = share * (int(before.sum()) - int(after.sum()))
            chance[px] = share * math.sqrt(int((before != after).sum()))
            nats[px] = divergence(self.chances[px], scores)
        return _Outcome(points, chance, nats)

    def accepts(self, outcome: _Outcome) -> bool:
        """Inside the budget at every resolution."""
        beyond = max(outcome.points[px] - outcome.chance[px] for px in outcome.points)
        few = beyond <= self.config.points
        return few and max(outcome.nats.values()) <= self.config.nats

    def choose_levels(self) -> tuple[int, Mapping[int, PatchValues]]:
        """The fewest levels of the head that take no more than their share."""
        best: tuple[int, Mapping[int, PatchValues]] = (127, self.values)
        for levels in LEVELS:
            coarse = {
                px: coarsen_head(one, self.classes, self.table.layout, levels)
                for px, one in self.values.items()
            }
            outcome = self.judge(coarse)
            if max(outcome.nats.values()) > self.config.head_share * self.config.nats:
                break  # the divergence grows as levels get fewer; top-1 goes up and down by chance
            if self.accepts(outcome):
                best = (levels, coarse)
        return best

    def choose_share(
        self,
        values: Mapping[int, PatchValues],
        costs: Costs,
    ) -> tuple[CodingSteps, _Outcome]:
        """The largest of SHARES that stays inside the budget; fine steps where none does."""
        tried: dict[int, tuple[CodingSteps, _Outcome]] = {}

        def attempt(k: int) -> bool:
            steps = at_least(steps_of_share(values, self.table, costs, SHARES[k]), self.least)
            tried[k] = (steps, self.judge(self.decoded(values, steps)))
            return max(tried[k][1].nats.values()) <= self.config.nats

        low, high = -1, len(SHARES)  # the divergence grows with the share: bisect it
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if attempt(middle) else (low, middle)
        for k in range(low, -1, -1):  # top-1 does not: walk down until it agrees
            if k not in tried:
                attempt(k)
            if self.accepts(tried[k][1]):
                return tried[k]
        steps = fine_steps(values, self.table)
        return steps, self.judge(self.decoded(values, steps))


def steps_of_share(
    values: Mapping[int, PatchValues],
    table: CodingTable,
    costs: Costs,
    share: float,
) -> CodingSteps:
    """Steps with a_l d_l^2 = share * N_l, to the nearest power of two, inside what is probed."""
    rows = np.array([conv.rows for conv in table.convs], np.float64)
    scales = 0.5 * np.log2(share * rows / costs.scale)
    biases = np.sqrt(share * rows / costs.bias)
    t = np.clip(np.rint(scales), FINE_SCALE, COARSEST_SCALE)
    inside = np.clip(biases, FINE_BIAS_LSB, COARSEST_BIAS_LSB)
    return CodingSteps(tuple(int(one) for one in t), bias_exponents(values, table, inside))


def coarsen_head(
    values: PatchValues, classes: int, layout: PatchLayout, levels: int
) -> PatchValues:
    """``values`` with the head's int8 kernel on -levels..levels instead of -127..127.

    q' = rint(q * levels / 127), weight_scale' = weight_scale * 127 / levels, and the bias in the
    new units: the same function but for the rounding. Fewer levels take fewer bits.
    """
    spare, padding = padding_rows(classes, layout)
    rows = slice(layout.head_row, spare.start)
    elements = slice(layout.head_element, padding.start)
    ratio = levels / 127
    weights, bias = values.weights.copy(), values.bias.copy()
    weight_scale = values.weight_scale.copy()
    weights[elements] = np.rint(weights[elements] * ratio).astype(np.int8)
    bias[rows] = np.rint(bias[rows] * ratio).astype(np.int32)
    weight_scale[rows] = (weight_scale[rows].astype(np.float64) / ratio).astype(np.float32)
    coarse = replace(values, weights=weights, bias=bias, weight_scale=weight_scale)
    return masked_head_rows(coarse, classes, layout)


def _right(scores: Scores, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(scores.argmax(axis=1) == labels)
