"""What decides a claim: one row of a table minus another, seed by seed.

In: records of cells. Out: a `Gap`: its mean over seeds, a bound on it, and what each column says.

The seed is what is repeated. The columns of one seed are not: resolutions and jointly trained tasks
come out of one training run, and data sets are few and chosen, not drawn. So each seed gives one
number, its mean gap over all columns, and the bound is Student's t over the seeds (n - 1 degrees of
freedom, one side, 95 %). It covers the training images, the heads and the orders that seeds draw;
it says nothing about other data sets or other test images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from cells import Record, Spread, spread
from scipy.special import stdtrit

CONFIDENCE = 0.95
MOST_SEEDS = 100
COMPARABLE = 0.02
"""Shortfall that still counts as comparable: the paper (section 5.3) calls 70.2 comparable to 71.8;
1.6 points rounded up to whole points."""


@dataclass(frozen=True)
class Gap:
    """A paired difference.

    Attributes:
        by_seed: seed -> mean difference over the columns; only seeds that have all columns.
        by_column: column -> mean difference over those seeds.
    """

    by_seed: Mapping[int, float]
    by_column: Mapping[str, float]

    @property
    def spread(self) -> Spread:
        """Mean and standard deviation over seeds."""
        return spread(list(self.by_seed.values()))

    @property
    def margin(self) -> float:
        """Half width of the bound: t(0.95, n - 1) s / sqrt(n); infinite for fewer than 2 seeds."""
        own = self.spread
        if own.count < 2:
            return math.inf
        quantile = float(stdtrit(own.count - 1, CONFIDENCE))
        return quantile * own.deviation / math.sqrt(own.count)


def seeds_to_decide(gap: Gap, allowed: float = 0.0) -> int | None:
    """The fewest seeds whose bound would be on one side of -``allowed``.

    Supposes that the mean and the deviation stay what they are. None where `MOST_SEEDS` are too
    few, or where there is no deviation yet.
    """
    own = gap.spread
    if own.count < 2:
        return None
    distance = abs(own.mean + allowed)
    for count in range(2, MOST_SEEDS + 1):
        quantile = float(stdtrit(count - 1, CONFIDENCE))
        if quantile * own.deviation / math.sqrt(count) < distance:
            return count
    return None


def paired_gap(
    records: Mapping[str, Record], higher: str, lower: str, figure: str = "test_top1"
) -> Gap:
    """Row ``higher`` minus row ``lower``, paired by column and seed."""
    rows: dict[str, dict[tuple[str, int], float]] = {higher: {}, lower: {}}
    for record in records.values():
        if record["row"] in rows:
            rows[record["row"]][(record["column"], record["seed"])] = record[figure]
    both = rows[higher].keys() & rows[lower].keys()
    return gap_of_pairs({place: rows[higher][place] - rows[lower][place] for place in both})


def gap_of_pairs(pairs: Mapping[tuple[str, int], float]) -> Gap:
    """A gap from differences by (column, seed).

    A seed that lacks a column is left out: its mean would be one over other data.
    """
    columns = sorted({column for column, _ in pairs})
    seeds = [
        seed
        for seed in sorted({seed for _, seed in pairs})
        if all((column, seed) in pairs for column in columns)
    ]
    if not seeds:
        return Gap({}, {})
    return Gap(
        {seed: statistics.fmean(pairs[column, seed] for column in columns) for seed in seeds},
        {column: statistics.fmean(pairs[column, seed] for seed in seeds) for column in columns},
    )
