"""Confidence scores: the definitions in integers, and how near they are to the real softmax."""

import math

import numpy as np
import pytest
import slow_cascade
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.cascade.scores import (
    MAX_CONFIDENCE,
    MAX_RATIO,
    SCORE_KINDS,
    confidence,
    exponential_ratio,
    exponential_table,
    log2_fixed,
)
from patchdeploy.errors import ConfigError

HEADS = st.lists(st.integers(-128, 127), min_size=2, max_size=40)
RATIOS = st.integers(1, MAX_RATIO)
SCALES = st.floats(2**-10, 4.0)


@settings(deadline=None)
@given(HEADS, RATIOS, st.sampled_from(SCORE_KINDS))
def test_scores_are_those_of_plain_integers_and_within_their_range(codes, ratio, kind):
    found = confidence(kind, np.array([codes], np.int8), ratio)
    assert found.dtype == np.int64
    assert found.tolist() == [slow_cascade.confidence(kind, codes, ratio)]
    assert 0 <= found[0] <= MAX_CONFIDENCE[kind]


@settings(deadline=None)
@given(st.integers(1, 2**62))
def test_the_integer_logarithm_is_within_two_units_of_the_real_one(number):
    # Truncating 30-bit squares loses under 16 * 2^-30 * 2^16 < 2^-10 of a unit; the result is
    # rounded down (1 unit), and math.log2 of a 62-bit integer rounds it to 53 bits.
    found = int(log2_fixed(np.array([number]))[0])
    assert -1.01 <= found - 2**16 * math.log2(number) <= 0.01
    assert found == slow_cascade.log2_units(number)


@settings(deadline=None)
@given(HEADS, SCALES)
def test_a_probability_is_that_of_the_softmax(codes, scale):
    # e[d] / 2^24 is off by d + 1 truncations of 2^-31 in a, one of 2^-24, and the ratio's rounding
    # (2^-33 relative, 255 times): below 2^-23 a class, so below classes * 2^-23 of a total of 1 or
    # more; the quotient adds 2^-30.
    heads = np.array(codes, np.float64) * scale
    truth = 1 / np.exp(heads - heads.max()).sum()
    found = confidence("probability", np.array([codes], np.int8), exponential_ratio(scale))
    assert abs(found[0] / 2**30 - truth) <= len(codes) * 2**-23 + 2**-30


@settings(deadline=None)
@given(HEADS, SCALES)
def test_an_entropy_is_that_of_the_softmax(codes, scale):
    # Units of 2^-16 bit: two logarithms and the mean are each rounded by at most a unit. A unit of
    # error in bits_per_code counts for each code of the mean difference, at most 255 * share, and
    # weights off by 2^-23 move the mean by at most classes * 2^-23 * 255 codes.
    heads = np.array(codes, np.float64) * scale
    shares = np.exp(heads - heads.max())
    shares /= shares.sum()
    differences = max(codes) - np.array(codes, np.float64)
    mean = float((shares * differences).sum())
    truth = -float((shares * np.log2(np.maximum(shares, 1e-300))).sum())
    found = confidence("entropy", np.array([codes], np.int8), exponential_ratio(scale))
    entropy = (MAX_CONFIDENCE["entropy"] - found[0]) / 2**16
    weights = len(codes) * 2**-23 * (255 * scale + 1) * 2
    assert abs(entropy - truth) <= (4 + 2 * mean) * 2**-16 + weights


def test_a_surer_head_has_a_greater_confidence_in_every_kind():
    codes = np.array([[10, 10, -128], [10, 0, -128], [60, -60, -128]], np.int8)
    for kind in SCORE_KINDS:
        found = confidence(kind, codes, exponential_ratio(0.1))
        assert found[0] < found[1] < found[2], kind
    assert confidence("margin", codes, 0).tolist() == [0, 10, 120]


def test_the_table_begins_near_one_and_falls_to_nothing():
    table = exponential_table(exponential_ratio(0.25))
    assert table[0] == 2**24 - 1
    assert (np.diff(table) <= 0).all()
    # exp(-0.25 d) within the truncations of the recurrence, see above.
    assert np.abs(table / 2**24 - np.exp(-0.25 * np.arange(256))).max() < 2**-23


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_an_output_scale_that_is_no_positive_number_is_refused(scale):
    with pytest.raises(ConfigError, match="must be a finite positive number"):
        exponential_ratio(scale)


def test_extreme_scales_keep_the_ratio_in_its_range():
    assert exponential_ratio(1e-12) == MAX_RATIO
    assert exponential_ratio(1e3) == 1


def test_no_product_leaves_64_bits_at_the_most_classes():
    for ratio in (1, MAX_RATIO // 2, exponential_ratio(1 / 255), MAX_RATIO):
        codes = np.full((1, 65_536), -128, np.int8)
        codes[0, 0] = 127
        for kind in SCORE_KINDS:
            found = confidence(kind, codes, ratio)
            assert found[0] == slow_cascade.confidence(kind, codes[0].tolist(), ratio)
