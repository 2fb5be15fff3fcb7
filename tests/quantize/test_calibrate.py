"""Histograms and range methods on known distributions; calibration on a small network."""

from dataclasses import replace

import numpy as np
import pytest
from graph_cases import GRAPH_CASES, conv_stack, random_images, squeeze_excitation
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patchdeploy.errors import ConfigError, EmptyCalibrationError, QuantizationError
from patchdeploy.floatnet import FloatRunner, run_float
from patchdeploy.fold import fold_patch
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.histogram import (
    BINS,
    count_values,
    merge,
    mse_range,
    percentile_range,
)

batches = st.lists(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=50), min_size=1, max_size=6
)


def merged(parts):
    total = None
    for part in parts:
        one = count_values(np.array(part, np.float32))
        total = one if total is None else merge(total, one)
    return total


@given(batches, st.randoms())
def test_a_streamed_histogram_does_not_depend_on_the_order_of_batches(parts, random):
    first = merged(parts)
    random.shuffle(parts)
    second = merged(parts)
    assert (first.exponent, first.first) == (second.exponent, second.first)
    np.testing.assert_array_equal(first.counts, second.counts)


@given(batches)
@example([[8188.0, -5.605193857299268e-45]])  # underflows when scaled in float32
def test_a_histogram_counts_every_value_in_its_bin(parts):
    histogram = merged(parts)
    values = np.concatenate([np.array(part, np.float32) for part in parts]).astype(np.float64)
    assert len(histogram.counts) <= BINS
    # Bin edges are whole multiples of a power of two: comparing with them is exact.
    place = np.searchsorted(histogram.edges(), values, side="right") - 1
    np.testing.assert_array_equal(
        np.bincount(place, minlength=len(histogram.counts)), histogram.counts
    )


def test_percentiles_of_a_uniform_distribution_cut_the_stated_share():
    values = np.linspace(-1, 1, 200_001, dtype=np.float32)
    low, high = percentile_range(count_values(values), 99.0)
    # The exact quantiles are -0.98 and 0.98; a bin is at most 2 * 2 / 2048 wide.
    assert abs(low + 0.98) < 2**-9
    assert abs(high - 0.98) < 2**-9


def test_percentiles_ignore_one_far_outlier_that_minmax_keeps():
    values = np.random.default_rng(0).normal(0, 1, 100_000).astype(np.float32)
    values[0] = 50.0
    low, high = percentile_range(count_values(values), 99.99)
    # 10 of 100,000 lie beyond; the Gaussian quantile is 3.72, a bin 2^-5 wide.
    assert 3.3 < high < 4.5
    assert -4.5 < low < -3.3


def brute_force_mse(values, low, high):
    scale = (high - low) / 255
    codes = np.clip(np.round((values - low) / scale), 0, 255)
    return float(np.mean((codes * scale + low - values) ** 2))


def test_the_mse_range_of_a_heavy_tail_beats_minmax_and_nearby_ranges():
    values = np.random.default_rng(1).laplace(0, 1, 200_000)
    low, high = mse_range(count_values(values.astype(np.float32)))
    best = brute_force_mse(values, low, high)
    assert best < 0.8 * brute_force_mse(values, values.min(), values.max())
    # Near the optimum the cost is flat: 2 % covers the grid's step and the 1/12 model.
    for shrink in (0.6, 0.8, 1.25, 1.6):
        assert best < 1.02 * brute_force_mse(values, low * shrink, high * shrink)


def test_the_mse_range_of_a_uniform_distribution_is_all_of_it():
    low, high = mse_range(count_values(np.linspace(0, 5, 100_001, dtype=np.float32)))
    assert low == 0.0
    assert high >= 4.9  # clipping 2 % off would cost more than a step of 5 / 255 does


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_each_method_runs_every_image_through_the_network_once(method, monkeypatch):
    network = fold_patch(conv_stack())
    images = random_images(7, 16)
    seen = []
    run = FloatRunner.__call__

    def counted(self, given, observe=None):
        seen.append(len(given))
        return run(self, given, observe)

    monkeypatch.setattr(FloatRunner, "__call__", counted)
    calibrate(network, images, method, batch=3)
    assert seen == [3, 3, 1]


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_minmax_ranges_and_means_are_exact_and_do_not_depend_on_the_batch(name):
    network = fold_patch(GRAPH_CASES[name]())
    images = random_images(5, 18)
    values = {}
    run_float(network, images, lambda value, x: values.__setitem__(value, x.numpy().copy()))
    for batch in (2, 5):
        calibration = calibrate(network, images, "minmax", batch=batch)
        assert set(calibration) == set(values)
        for value, x in values.items():
            # The batch changes the order of float32 sums: at most 1e-5 of the largest value.
            slack = 1e-5 * max(1.0, float(np.abs(x).max()))
            assert calibration[value] == pytest.approx((x.min(), x.max()), abs=slack)
            mean = x.astype(np.float64).mean((0, 2, 3))
            np.testing.assert_allclose(calibration.means[value], mean, rtol=0, atol=slack)


@settings(deadline=None, max_examples=10)
@given(st.sampled_from(["percentile", "mse"]), st.integers(0, 1000))
def test_no_method_claims_more_than_was_seen(method, seed):
    network = fold_patch(squeeze_excitation())
    images = random_images(3, 16, seed)
    seen = calibrate(network, images, "minmax")
    chosen = calibrate(network, images, method)
    for value, (low, high) in chosen.items():
        assert seen[value][0] <= low <= high <= seen[value][1]


def test_an_empty_calibration_set_is_refused():
    with pytest.raises(EmptyCalibrationError) as error:
        calibrate(fold_patch(conv_stack()), random_images(0, 16))
    assert str(error.value) == (
        "0 calibration images; activation ranges need at least 1 (64 to 512 are usual); pass "
        "images of the task's training set"
    )


def test_a_value_that_is_not_finite_is_named():
    network = fold_patch(conv_stack())
    bias = network.convs["stem"].bias.copy()
    bias[0] = np.nan
    convs = {**network.convs, "stem": replace(network.convs["stem"], bias=bias)}
    with pytest.raises(QuantizationError) as error:
        calibrate(replace(network, convs=convs), random_images(1, 16))
    assert str(error.value) == (
        "value 'stem:out' is NaN or infinite on a calibration image; ranges need finite values; "
        "check the patch's parameters and the checkpoint"
    )


def test_an_unknown_method_or_percentile_is_refused():
    network, images = fold_patch(conv_stack()), random_images(1, 16)
    with pytest.raises(ConfigError) as error:
        calibrate(network, images, "entropy")
    assert str(error.value) == (
        "calibration method 'entropy'; the methods are minmax, percentile, mse; choose one of them"
    )
    with pytest.raises(ConfigError) as error:
        calibrate(network, images, "percentile", percentile=20)
    assert str(error.value) == (
        "percentile 20; it must lie in (50, 100], 99.999 is usual; choose one there"
    )
