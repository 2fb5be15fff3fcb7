"""How sure a head is of its answer, in integers, so that every language takes the same decision.

In: int8 scores of a head [N, classes] and one ratio a resolution. Out: a confidence per image, an
integer that is greater where the head is surer. Nothing here calls exp or log at run time:

    margin       best code - second best code                               0 .. 255
    probability  softmax probability of the best class, in units of 2^-30   0 .. 2^30
    entropy      2^20 - entropy of the softmax in units of 2^-16 bit        0 .. 2^20

A head's score is output_scale * (code - zero point), so a class that is d codes below the best has
exp(-output_scale * d) of its weight. That table of exponentials follows from one number a
resolution, ``ratio`` = round(2^32 exp(-output_scale)), by integer products alone:

    a[0] = 2^31 - 1,  a[d + 1] = (a[d] * ratio) >> 32,  e[d] = a[d] >> 7       d = 0 .. 255

Every product is below 2^63, so a signed 64-bit integer holds it. The table itself would take 512
bytes and more a resolution in a patch file; the ratio takes 4.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import ConfigError

ScoreKind = Literal["margin", "probability", "entropy"]
SCORE_KINDS: tuple[ScoreKind, ...] = get_args(ScoreKind)

RATIO_BITS = 32
MAX_RATIO = 2**RATIO_BITS - 1
PROBABILITY_BITS = 30
ENTROPY_BITS = 16
"""Fraction bits of an entropy."""
MAX_ENTROPY = 2 ** (ENTROPY_BITS + 4)
"""16 bits, the entropy of 65,536 equal classes."""
MAX_CONFIDENCE: dict[ScoreKind, int] = {
    "margin": 255,
    "probability": 2**PROBABILITY_BITS,
    "entropy": MAX_ENTROPY,
}
_DIFFERENCES = 256
_TABLE_SHIFT = 7

Int64Array = NDArray[np.int64]


def exponential_ratio(output_scale: float) -> int:
    """round(2^32 exp(-output_scale)), kept in 1 .. 2^32 - 1. Called when a cascade is fitted.

    Args:
        output_scale: real value of one code of the head's output; finite and positive.

    Raises:
        ConfigError: it is not.
    """
    if not math.isfinite(output_scale) or output_scale <= 0:
        raise ConfigError(
            f"output scale {output_scale}; one code of a head's output must be a finite positive "
            "number; export the task again"
        )
    return int(min(max(round(2**RATIO_BITS * math.exp(-output_scale)), 1), MAX_RATIO))


@lru_cache(maxsize=64)
def exponential_table(ratio: int) -> Int64Array:
    """int64 [256]: 2^24 exp(-output_scale * d) for d codes below the best; see the module."""
    assert 1 <= ratio <= MAX_RATIO
    entries, entry = [], 2**31 - 1
    for _ in range(_DIFFERENCES):
        entries.append(entry >> _TABLE_SHIFT)
        entry = (entry * ratio) >> RATIO_BITS
    table = np.array(entries, np.int64)
    table.flags.writeable = False  # it is kept
    return table


def confidence(kind: ScoreKind, codes: NDArray[np.int8], ratio: int) -> Int64Array:
    """How sure the head is of each image's best class.

    Args:
        codes: int8 [N, classes] scores of a head, two classes or more, at most 65,536.
        ratio: of the resolution's exponentials; a margin does not look at it.

    Returns:
        int64 [N], 0 .. MAX_CONFIDENCE[kind].

    Raises:
        ConfigError: fewer than two classes.
    """
    if codes.shape[1] < 2:
        raise ConfigError(
            f"scores of {codes.shape[1]} class; how sure a head is compares classes, so a cascade "
            "takes two or more; use one resolution"
        )
    differences = codes.max(axis=1, keepdims=True).astype(np.int64) - codes
    if kind == "margin":
        margin: Int64Array = np.partition(differences, 1, axis=1)[:, 1]
        return margin
    table = exponential_table(ratio)
    weights: Int64Array = table[differences]
    total: Int64Array = weights.sum(axis=1)
    if kind == "probability":
        # 2^24 / total in units of 2^-30; the best class alone has weight e[0], just below 2^24.
        probability: Int64Array = (int(table[0]) << PROBABILITY_BITS) // total
        return probability
    surplus: Int64Array = np.subtract(MAX_ENTROPY, _entropy(differences, weights, total, ratio))
    return surplus


def _entropy(
    differences: Int64Array, weights: Int64Array, total: Int64Array, ratio: int
) -> Int64Array:
    """H = log2(total / e[0]) + output_scale log2(e) * sum(d e[d]) / total, in units of 2^-16 bit.

    ``output_scale log2(e)`` is 32 - log2(ratio). The product stays below 2^63: d e[d] is at most
    e[0] / (output_scale e), so 65,536 classes give under 2^16 * 2^24 * 2^16.
    """
    bits_per_code = _bits_per_code(ratio)
    spread = bits_per_code * (differences * weights).sum(axis=1) // total
    entropy: Int64Array = np.clip(log2_fixed(total) - _FIRST_LOG2 + spread, 0, MAX_ENTROPY)
    return entropy


@lru_cache(maxsize=64)
def _bits_per_code(ratio: int) -> int:
    return (RATIO_BITS << ENTROPY_BITS) - _log2(ratio)


def log2_fixed(numbers: Int64Array) -> Int64Array:
    """floor(2^16 log2(n)) but for the last unit, int64 [N] -> int64 [N]; each n from 1 to 2^62."""
    return np.array([_log2(number) for number in numbers.tolist()], np.int64)


def _log2(number: int) -> int:
    """The mantissa, in [1, 2) with 30 bits behind the point, is squared 16 times; each square that
    reaches 2 gives a one bit and is halved. Squares are truncated to 30 bits.

    Plain integers: an app decides about one image at a time, where arrays cost more than the sums.
    """
    result = number.bit_length() - 1
    mantissa = number >> (result - 30) if result >= 30 else number << (30 - result)
    for _ in range(ENTROPY_BITS):
        mantissa = (mantissa * mantissa) >> 30
        bit = mantissa >> 31
        mantissa >>= bit
        result = (result << 1) | bit
    return result


_FIRST_LOG2 = _log2(2 ** (31 - _TABLE_SHIFT) - 1)
"""log2(e[0]), in units of 2^-16."""
