"""Whether a cascade may lose at most a tolerance against its reference, with a confidence level.

In: losses in {-1, 0, 1} of a path of cascades on images that chose nothing. Out: how far along the
path the hypothesis "its mean loss is above the tolerance" is rejected.

The path runs from costly to cheap and was fixed on other images. Fixed-sequence testing: test each
at the full level, stop at the first that is not rejected; the chance that any cascade before it is
worse than the tolerance is at most 1 - confidence (Bauer 1991; Angelopoulos et al., Learn then
Test, 2021). The p-value is that of a bet against the hypothesis (Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting, 2023): with X = (loss + 1) / 2 in [0, 1]
and m = (1 + tolerance) / 2,

    K_t = product over i <= t of (1 - lambda_i (X_i - m)),   p = 1 / max_t K_t

is valid at any sample size, since K is a supermartingale where the mean of X is m or more. lambda_i
depends on the images before i alone: min(sqrt(2 log(1 / delta) / (n var_{i-1})), 0.75 / (1 - m)).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import ConfigError

LARGEST_BET = 0.75
"""Share of the stake at risk on one image: a factor of K never falls below 1 - LARGEST_BET."""
TOLERANCE_STEPS = 10_000
"""A person is given a tolerance in hundredths of a point."""

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Certificate:
    """What was shown about a cascade, and on what.

    Attributes:
        reference: resolution that losses are counted against, px.
        tolerance: greatest mean loss, as a share of all images.
        confidence: of the statement, as a share below 1.
        images: number that the test saw.
        certified: the test holds; else the figures say only what was asked.
    """

    reference: int
    tolerance: float
    confidence: float
    images: int
    certified: bool


def check_level(tolerance: float, confidence: float) -> None:
    """Whether a test can be made with these.

    Raises:
        ConfigError: the tolerance is not in (0, 1), or the confidence not in [0.5, 1).
    """
    if not 0.0 < tolerance < 1.0:
        raise ConfigError(
            f"tolerance {100 * tolerance:g} points; it must be above 0 and below 100: no finite "
            "number of images shows that nothing at all is lost; choose 0.5 or 1"
        )
    if not 0.5 <= confidence < 1.0:
        raise ConfigError(
            f"confidence {confidence:g}; it must be at least 0.5 and below 1: no finite number of "
            "images makes certain; choose 0.95"
        )


def betting_p_value(losses: Int64Array, tolerance: float, level: float) -> float:
    """p-value of "the mean loss is above ``tolerance``"; see the module.

    Args:
        losses: int64 [n] in -1, 0, 1, in an order that does not depend on them.
        tolerance: as a share.
        level: error probability that the bets are sized for, 1 - confidence.

    Returns:
        In (0, 1].
    """
    values = (losses.astype(np.float64) + 1) / 2
    mean = (1 + tolerance) / 2
    count = len(values)
    if count == 0:
        return 1.0
    seen = np.arange(1, count + 1)
    # Mean and variance of the images so far, begun with one image at 1/2 and variance 1/4.
    means = (0.5 + np.cumsum(values)) / (seen + 1)
    variances = (0.25 + np.cumsum((values - means) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], variances[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / level) / (count * before)), LARGEST_BET / (1 - mean))
    wealth = np.cumsum(np.log1p(-bets * (values - mean)))
    return float(min(1.0, math.exp(-max(0.0, float(wealth.max())))))


def certify_path(losses: Sequence[Int64Array], tolerance: float, confidence: float) -> int:
    """How many cascades at the beginning of the path are certified.

    Args:
        losses: of each cascade on the path, costly ones first, int64 [n] over the same images.

    Raises:
        ConfigError: see `check_level`.
    """
    check_level(tolerance, confidence)
    level = 1 - confidence
    for place, loss in enumerate(losses):
        if betting_p_value(loss, tolerance, level) > level:
            return place
    return len(losses)


def contradicts(losses: Int64Array, tolerance: float, confidence: float) -> bool:
    """Whether images show that a cascade loses MORE than ``tolerance``.

    The same bet from the other side: -loss against "its mean is above -tolerance". A cascade that
    keeps its promise is accused in at most 1 - confidence of cases.

    Args:
        losses: int64 [n] in -1, 0, 1.
    """
    level = 1 - confidence
    return betting_p_value(-losses, -tolerance, level) <= level


def smallest_tolerance(losses: Int64Array, confidence: float) -> float:
    """The least tolerance, in hundredths of a point, that the test certifies on these losses.

    Args:
        losses: int64 [n] in -1, 0, 1, in the order of the test.

    Returns:
        A share; 1 where none below it is certified.
    """
    level = 1 - confidence

    def certifies(step: int) -> bool:
        return betting_p_value(losses, step / TOLERANCE_STEPS, level) <= level

    steps = range(1, TOLERANCE_STEPS)
    return (1 + bisect_left(steps, True, key=certifies)) / TOLERANCE_STEPS


def paired_interval(losses: Int64Array, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean loss and its interval (low, high), as shares.

    Agresti and Min (2005): half an image is added to each of the four cells of the paired table, so
    that the interval has a width where no pair disagrees.
    """
    from statistics import NormalDist

    count = len(losses) + 2
    wrong, right = int((losses == 1).sum()) + 0.5, int((losses == -1).sum()) + 0.5
    centre = (wrong - right) / count
    spread = math.sqrt(wrong + right - (wrong - right) ** 2 / count) / count
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * spread
    mean = float(losses.mean()) if len(losses) else 0.0
    return mean, centre - reach, centre + reach
