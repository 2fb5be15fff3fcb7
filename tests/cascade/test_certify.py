"""The certificate: how often it errs, how often it finds, and what it refuses."""

import math

import numpy as np
import pytest

from patchdeploy.cascade.certify import (
    betting_p_value,
    certify_path,
    contradicts,
    paired_interval,
    smallest_tolerance,
)
from patchdeploy.errors import ConfigError

TRIALS = 2000


def draw(rng, count, disagreeing, gap):
    """Losses with a share of pairs that disagree and a true mean."""
    chances = [(disagreeing + gap) / 2, (disagreeing - gap) / 2, 1 - disagreeing]
    return rng.choice(np.array([1, -1, 0]), size=count, p=chances)


@pytest.mark.parametrize(("disagreeing", "tolerance"), [(0.03, 0.01), (0.01, 0.01), (0.2, 0.05)])
def test_a_cascade_that_is_just_too_bad_is_certified_in_at_most_a_twentieth(disagreeing, tolerance):
    rng = np.random.default_rng(0)
    wrong = sum(
        betting_p_value(draw(rng, 500, disagreeing, tolerance), tolerance, 0.05) <= 0.05
        for _ in range(TRIALS)
    )
    # The claim is 5 %; the bound is its mean plus four standard deviations of 2,000 draws.
    assert wrong / TRIALS <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / TRIALS)
    assert wrong > 0  # a test that never errs would never find anything either


def test_along_a_path_the_first_wrong_certificate_is_as_rare():
    # Cascades that share their images: every one past the first two is too bad.
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(TRIALS // 2):
        order = rng.random(400)
        losses = [
            np.where(order < gap + 0.01, 1, np.where(order > 0.99, -1, 0))
            for gap in (0.0, 0.005, 0.021, 0.025, 0.03)
        ]
        wrong += certify_path(losses, 0.02, 0.95) > 2
    assert wrong / (TRIALS // 2) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / (TRIALS // 2))


def test_equal_accuracy_is_found_more_often_with_more_images():
    rng = np.random.default_rng(2)
    power = [
        np.mean([betting_p_value(draw(rng, n, 0.03, 0.0), 0.01, 0.05) <= 0.05 for _ in range(200)])
        for n in (500, 2000, 5000)
    ]
    # Measured with 500 draws: 0.20, 0.65, 0.96; 200 draws have a
    # standard deviation of at most 0.035.
    assert 0.05 < power[0] < power[1] < power[2]
    assert power[1] > 0.5
    assert power[2] > 0.85


def test_no_loss_at_all_is_certified_from_some_number_of_images_on():
    same = np.zeros(2000, np.int64)
    assert betting_p_value(same, 0.01, 0.05) <= 0.05
    assert betting_p_value(same[:20], 0.01, 0.05) > 0.05
    assert betting_p_value(same[:0], 0.01, 0.05) == 1.0


def test_a_cascade_that_keeps_its_promise_is_accused_in_at_most_a_twentieth_and_a_bad_one_found():
    rng = np.random.default_rng(5)
    kept = [contradicts(draw(rng, 1000, 0.05, 0.01), 0.01, 0.95) for _ in range(400)]
    # 400 trials at 5 %: mean 20, and 20 + 3 sqrt(19) = 33 is passed once in a thousand.
    assert sum(kept) <= 33
    broken = [contradicts(draw(rng, 1000, 0.06, 0.05), 0.01, 0.95) for _ in range(50)]
    assert all(broken)
    assert not contradicts(np.zeros(1000, np.int64), 0.01, 0.95)


def test_the_p_value_grows_with_losses_and_stays_one_where_all_are_lost():
    rng = np.random.default_rng(3)
    losses = draw(rng, 1000, 0.02, 0.0)
    worse = np.where(rng.random(1000) < 0.03, 1, losses)
    assert betting_p_value(losses, 0.02, 0.05) < betting_p_value(worse, 0.02, 0.05)
    assert betting_p_value(np.ones(1000, np.int64), 0.02, 0.05) == 1.0


def test_testing_stops_at_the_first_failure():
    good, bad = np.zeros(2000, np.int64), np.ones(2000, np.int64)
    assert certify_path([good, good, bad, good], 0.01, 0.95) == 2
    assert certify_path([good, good], 0.01, 0.95) == 2
    assert certify_path([bad], 0.01, 0.95) == 0


@pytest.mark.parametrize(("count", "wrong"), [(60, 0), (1000, 0), (1000, 20), (1250, 60), (50, 50)])
def test_the_smallest_tolerance_is_certified_and_the_next_smaller_one_is_not(count, wrong):
    losses = np.zeros(count, np.int64)
    losses[:: max(count // max(wrong, 1), 1)][:wrong] = 1
    losses = losses if wrong else np.zeros(count, np.int64)
    found = smallest_tolerance(losses, 0.95)
    if found < 1:
        assert certify_path([losses], found, 0.95) == 1
    assert certify_path([losses], found - 1e-4, 0.95) == 0
    assert (found == 1.0) == (wrong == count)
    assert smallest_tolerance(losses[:0], 0.95) == 1.0


def test_an_interval_covers_the_true_difference():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(TRIALS):
        _, low, high = paired_interval(draw(rng, 300, 0.05, 0.01))
        covered += low <= 0.01 <= high
    # Agresti and Min report coverage near or above 95 % from 30 pairs on; four deviations below.
    assert covered / TRIALS >= 0.95 - 4 * math.sqrt(0.05 * 0.95 / TRIALS)


@pytest.mark.parametrize("tolerance", [0.0, -0.01, 1.0, math.nan])
def test_a_tolerance_that_no_images_could_show_is_refused(tolerance):
    with pytest.raises(ConfigError, match="it must be above 0 and below 100"):
        certify_path([np.zeros(5, np.int64)], tolerance, 0.95)


@pytest.mark.parametrize("confidence", [1.0, 0.3, math.nan, 95])
def test_a_confidence_of_certainty_is_refused(confidence):
    with pytest.raises(ConfigError, match="it must be at least 0\\.5 and below 1"):
        certify_path([np.zeros(5, np.int64)], 0.01, confidence)
