"""Probing finds what a step costs each convolution, whatever else moves the scores.

The scorers are hand-written: real ones are in the export's and the benchmark's tests.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from coding_cases import tiny_table, tiny_values

from patchdeploy.coding.choose_steps import CodingConfig, choose_steps, steps_of_share
from patchdeploy.coding.decode import decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodedRows, CodingSteps
from patchdeploy.coding.probe import (
    FIRST_BIAS,
    FIRST_SCALE,
    LEAST_BIAS,
    LEAST_SCALE,
    MOST_BIAS,
    MOST_SCALE,
    UNSEEN,
    bias_exponents,
    divergence,
    output_steps,
    probe_costs,
    softmax,
)

PX, CLASSES, IMAGES = 64, 3, 40
TABLE, VALUES = tiny_table(), tiny_values()
ROWS = CodedRows.of(TABLE, CLASSES)


def moved(values):
    """(octaves, shifts) of the coded rows, as the format codes them; float64 [rows]."""
    scale = np.delete(values.weight_scale, ROWS.spare).astype(np.float64)
    bias = np.delete(values.bias, ROWS.spare)
    unit = values.activation_scale.astype(np.float64)[ROWS.x] * scale
    return np.log2(scale / ROWS.scale), bias * unit - ROWS.slope * scale - ROWS.beta


START = moved(VALUES)
OUTPUT_STEPS = output_steps({PX: VALUES}, TABLE)


class QuadraticScorer:
    """Scores whose divergence is the sum over rows of weight * moved^2, up to its cubic term.

    Of three even chances, moving one score by e and another by -e costs half the scores' variance,
    e^2 / 3. ``noise`` nats come on top of it for any values but the start's.
    """

    def __init__(self, scale_weights, bias_weights, noise=0.0):
        self.scale_weights, self.bias_weights = np.array(scale_weights), np.array(bias_weights)
        self.noise, self.calls = noise, 0

    def cost(self, values) -> float:
        octaves, shifts = moved(values)
        units = 256 * (octaves - START[0])
        steps = (shifts - START[1]) / OUTPUT_STEPS[ROWS.conv]
        per_row = self.scale_weights[ROWS.conv] * units**2 + self.bias_weights[ROWS.conv] * steps**2
        return float(per_row.sum()) + (self.noise if np.abs(units).max() > 0 else 0.0)

    def __call__(self, px, values):
        self.calls += 1
        e = math.sqrt(3 * self.cost(values))
        return np.tile(np.array([e, -e, 0.0], np.float32), (IMAGES, 1))


def expected(weights, noise_rows):
    """a_l = weight * sum of squared noise, the noise being what was added for a step of 1."""
    return np.array(
        [weights[k] * (noise_rows[ROWS.conv == k] ** 2).sum() for k in range(len(TABLE.convs))]
    )


def noise():
    generator = np.random.default_rng(0)
    return generator.uniform(-0.5, 0.5, (2, len(ROWS.conv)))


def test_a_quadratic_cost_is_found_for_every_convolution():
    scale_weights, bias_weights = (3e-6, 1e-5, 4e-7, 2e-6), (2e-3, 1e-4, 5e-4, 3e-3)
    found = probe_costs(PX, VALUES, CLASSES, TABLE, QuadraticScorer(scale_weights, bias_weights))
    scales, biases = noise()
    # A probe shows at NATS to 4 NATS = 0.012: e <= 0.19, so the cubic and quartic terms of the
    # divergence are below e^2 = 4 %. Whole units and fine steps round by half of 1 unit of at
    # least 4 / 2, and by 1/128 output step of at least 1/8: each below 25 % of a row's square at
    # the least step, and these weights stop at steps of 16 and more: below 6 %. 15 % covers both.
    np.testing.assert_allclose(found.scale, expected(scale_weights, scales), rtol=0.15)
    np.testing.assert_allclose(found.bias, expected(bias_weights, biases), rtol=0.15)


def test_what_any_change_costs_is_taken_off():
    weights = ((3e-6,) * 4, (2e-3,) * 4)
    quiet = probe_costs(PX, VALUES, CLASSES, TABLE, QuadraticScorer(*weights))
    noisy = probe_costs(PX, VALUES, CLASSES, TABLE, QuadraticScorer(*weights, noise=0.002))
    # The floor is measured once, with the fine steps' own cost, which is below 1e-5 nats here.
    np.testing.assert_allclose(noisy.scale, quiet.scale, rtol=0.05)
    np.testing.assert_allclose(noisy.bias, quiet.bias, rtol=0.05)


def test_convolutions_that_do_not_matter_count_for_the_largest_step_and_little():
    found = probe_costs(PX, VALUES, CLASSES, TABLE, QuadraticScorer((0.0,) * 4, (0.0,) * 4))
    np.testing.assert_array_equal(found.scale, UNSEEN / MOST_SCALE**2)
    np.testing.assert_array_equal(found.bias, UNSEEN / MOST_BIAS**2)


def test_a_sensitive_convolution_is_probed_with_small_steps():
    weights, count = ((2e-3,) * 4, (0.6,) * 4), len(TABLE.convs)
    scorer = QuadraticScorer(*weights)
    found = probe_costs(PX, VALUES, CLASSES, TABLE, scorer)
    scales, biases = noise()
    # Scales stop at steps of 4 units, whose noise rounds to whole ones: a row is off by up to 0.5
    # of 2, at random. The first step of 128 would cost 8 nats if costs stayed quadratic, and costs
    # at most e = sqrt(24): half of it is lost there.
    np.testing.assert_allclose(found.scale, expected(weights[0], scales), rtol=0.4)
    np.testing.assert_allclose(found.bias, expected(weights[1], biases), rtol=0.15)
    ladder = math.log2(FIRST_SCALE / LEAST_SCALE) + math.log2(FIRST_BIAS / LEAST_BIAS)
    assert scorer.calls <= 2 + ladder + 4 * count  # each begins where the one before it ended


def test_probing_leaves_the_values_alone_and_gives_the_same_again():
    before = {name: array.copy() for name, array in vars(VALUES).items()}
    scorer = QuadraticScorer((3e-6, 1e-5, 4e-7, 2e-6), (2e-3,) * 4)
    first, second = (probe_costs(PX, VALUES, CLASSES, TABLE, scorer) for _ in range(2))
    np.testing.assert_array_equal(first.scale, second.scale)
    np.testing.assert_array_equal(first.bias, second.bias)
    for name, array in before.items():
        np.testing.assert_array_equal(array, getattr(VALUES, name))


def test_cheaper_convolutions_get_coarser_steps():
    costs = probe_costs(
        PX, VALUES, CLASSES, TABLE, QuadraticScorer((3e-5, 3e-7, 3e-5, 3e-7), (1e-2, 1e-4) * 2)
    )
    steps = steps_of_share({PX: VALUES}, TABLE, costs, 1e-4)
    assert steps.scale[0] < steps.scale[1]
    assert steps.scale[2] < steps.scale[3]
    lsb = np.log2(output_steps({PX: VALUES}, TABLE))
    relative = np.array(steps.bias) - lsb
    assert relative[0] < relative[1]
    assert relative[2] < relative[3]


def test_known_costs_are_not_probed_again():
    scorer = QuadraticScorer((3e-6,) * 4, (2e-3,) * 4)
    costs = probe_costs(PX, VALUES, CLASSES, TABLE, scorer)
    labels = np.zeros(IMAGES, np.int64)
    config = CodingConfig(points=100.0, nats=0.01)

    def choose(**given):
        counted = QuadraticScorer((3e-6,) * 4, (2e-3,) * 4)
        return choose_steps({PX: VALUES}, labels, TABLE, counted, config, **given), counted.calls

    (plain, all_calls), (given, few_calls) = choose(), choose(costs=costs)
    assert few_calls < all_calls
    separate = QuadraticScorer((3e-6,) * 4, (2e-3,) * 4)
    (apart, same_calls) = choose(probe_score=separate)
    assert same_calls == few_calls
    assert separate.calls == all_calls - few_calls
    assert plain.steps == apart.steps
    assert plain.head_levels == given.head_levels


def test_exponents_are_the_nearest_powers_of_two_of_the_least_output_step():
    fine = replace(VALUES, activation_scale=VALUES.activation_scale / 2)
    steps = np.array([0.5, 1.0, 2.0, 0.25])
    found = bias_exponents({64: VALUES, 32: fine}, TABLE, steps)
    for k, conv in enumerate(TABLE.convs):
        exact = math.log2(steps[k] * float(fine.activation_scale[conv.y_index]))
        assert abs(found[k] - exact) <= 0.5 + 1e-12


def test_divergence_is_that_of_the_definition():
    scores = np.array([[0.0, 1.0, -2.0], [3.0, 0.0, 0.5]], np.float32)
    other = np.array([[0.5, 0.5, -1.0], [2.0, 1.0, 0.0]], np.float32)

    def chances(row):
        powers = [math.exp(x) for x in row]
        return [x / sum(powers) for x in powers]

    exact = sum(
        p * math.log(p / q)
        for a, b in zip(scores.tolist(), other.tolist(), strict=True)
        for p, q in zip(chances(a), chances(b), strict=True)
    )
    # A dozen float64 operations on numbers near 1: below 1e-14.
    assert divergence(softmax(scores), other) == pytest.approx(exact / 2, abs=1e-14)
    assert divergence(softmax(scores), scores) == 0.0


def test_fine_steps_decode_close_to_the_start():
    """What the probes' own scorer takes for "not disturbed"."""
    steps = CodingSteps((0,) * 4, bias_exponents({PX: VALUES}, TABLE, np.full(4, 2.0**-6)))
    decoded = decode_values(encode_values({PX: VALUES}, CLASSES, TABLE, steps), TABLE)[PX]
    # Half a unit of a scale's logarithm: 2^(1/512) - 1 = 0.14 %.
    np.testing.assert_allclose(decoded.weight_scale, VALUES.weight_scale, rtol=0.0014)
