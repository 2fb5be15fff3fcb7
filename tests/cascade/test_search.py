"""The search: costs and losses by definition, Streeter's condition, and that none is cheaper."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.cascade.rule import MAX_THRESHOLD
from patchdeploy.cascade.search import (
    PATH_STEPS,
    Answers,
    Thresholds,
    _best_on_grid,
    greedy_cascade,
    refine,
    run_thresholds,
    search_path,
)

COSTS = {32: 1.0, 48: 2.5, 64: 4.0, 96: 9.0, 128: 16.0}


def make_answers(seed, count=200, sides=(32, 48, 64), levels=30, reference=None):
    """Answers of networks that are surer where they are right, larger ones right more often."""
    rng = np.random.default_rng(seed)
    hard = rng.random(count)
    correct, confidence = {}, {}
    for k, px in enumerate(sides):
        correct[px] = hard + 0.2 * rng.standard_normal(count) < 0.75 + 0.06 * k
        sure = 1 - hard + 0.3 * rng.standard_normal(count) + 0.2 * correct[px]
        confidence[px] = np.clip(levels * sure, 0, levels).astype(np.int64)
    costs = {px: COSTS[px] for px in sides}
    return Answers(correct, confidence, costs, reference or sides[-1])


def by_definition(answers, cascade):
    """Cost and loss image by image."""
    cost = loss = 0.0
    for i in range(answers.count):
        for place, px in enumerate(cascade.resolutions):
            cost += answers.costs[px]
            last = place == len(cascade.resolutions) - 1
            if last or answers.confidence[px][i] >= cascade.values[place]:
                loss += int(answers.correct[answers.reference][i]) - int(answers.correct[px][i])
                break
    return cost / answers.count, loss


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 31), min_size=2, max_size=2))
def test_cost_and_loss_are_those_of_the_definition(seed, values):
    answers = make_answers(seed, count=60)
    cascade = Thresholds((32, 48, 64), tuple(values))
    outcome = run_thresholds(answers, cascade)
    cost, loss = by_definition(answers, cascade)
    assert outcome.loss.sum() == loss
    assert outcome.cost == pytest.approx(cost, rel=1e-12)  # 60 sums of three exact halves


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(-3, 6))
def test_no_combination_of_thresholds_is_cheaper_than_the_grid_search(seed, budget):
    answers = make_answers(seed, count=80, levels=12)
    grids = [[*np.unique(answers.confidence[px]), MAX_THRESHOLD] for px in (32, 48)]
    found = list(_best_on_grid(answers, (32, 48, 64), [budget]))
    costs = [
        by_definition(answers, Thresholds((32, 48, 64), values))
        for values in product(*[[int(v) for v in grid] for grid in grids])
    ]
    within = [cost for cost, loss in costs if loss <= budget]
    assert bool(found) == bool(within)
    if found:
        assert found[0][1] == pytest.approx(min(within), rel=1e-12)
        assert run_thresholds(answers, found[0][2]).loss.sum() <= budget


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 10))
def test_refining_stays_within_the_budget_and_never_costs_more(seed, budget):
    answers = make_answers(seed, sides=(32, 48, 64, 96))
    start = Thresholds((32, 48, 64, 96), (MAX_THRESHOLD,) * 3)  # the reference answers all
    refined = refine(answers, start, budget)
    outcome = run_thresholds(answers, refined)
    assert outcome.loss.sum() <= budget
    assert outcome.cost <= run_thresholds(answers, start).cost
    assert outcome.cost == pytest.approx(by_definition(answers, refined)[0], rel=1e-12)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([0.95, 0.99, 1.0]))
def test_each_stage_of_the_greedy_cascade_is_as_right_as_the_reference_on_its_images(seed, alpha):
    answers = make_answers(seed)
    cascade = greedy_cascade(answers, alpha)
    outcome = run_thresholds(answers, cascade)
    for place, px in enumerate(cascade.resolutions):
        own = outcome.stage == place
        right = answers.correct[answers.reference][own].sum()
        assert answers.correct[px][own].sum() >= alpha * right
    assert len(set(cascade.resolutions)) == len(cascade.resolutions)


def test_the_greedy_cascade_takes_most_images_a_cost_first():
    # 32 px may answer 2 of 4 images at cost 1, 64 px all 4 at cost 4: 2 > 1 images a cost.
    correct = {32: np.array([1, 1, 0, 0], bool), 64: np.ones(4, bool)}
    confidence = {32: np.array([9, 8, 7, 6]), 64: np.zeros(4, np.int64)}
    answers = Answers(correct, confidence, {32: 1.0, 64: 4.0}, 64)
    assert greedy_cascade(answers, 1.0) == Thresholds((32, 64), (8,))


def test_a_path_begins_with_the_reference_and_each_step_is_cheaper_and_within_the_tolerance():
    for sides in ((32,), (32, 64), (32, 48, 64), tuple(COSTS)):
        answers = make_answers(3, count=400, sides=sides)
        path = search_path(answers, 0.02)
        assert path[0] == Thresholds((sides[-1],), ())
        assert len(path) <= PATH_STEPS
        outcomes = [run_thresholds(answers, cascade) for cascade in path]
        costs = [outcome.cost for outcome in outcomes]
        assert costs == sorted(costs, reverse=True)
        assert len(set(costs)) == len(costs)
        assert all(outcome.loss.sum() <= 0.02 * answers.count for outcome in outcomes)
        assert (len(path) > 1) == (len(sides) > 1)


def test_a_smaller_resolution_that_is_as_good_is_the_whole_cascade():
    answers = make_answers(0)
    same = Answers(
        dict.fromkeys((32, 48, 64), answers.correct[64]), answers.confidence, answers.costs, 64
    )
    assert search_path(same, 0.01)[-1] == Thresholds((32,), ())


def test_the_search_is_at_least_as_cheap_as_the_greedy_cascade_where_that_was_chosen():
    for seed in range(5):
        answers = make_answers(seed, count=500)
        greedy = run_thresholds(answers, greedy_cascade(answers, 0.99))
        budget = max(0, int(greedy.loss.sum())) / answers.count
        ours = run_thresholds(answers, search_path(answers, budget + 1e-9)[-1])
        assert ours.cost <= greedy.cost * (1 + 1e-12)


def test_many_resolutions_are_searched_in_small_sets():
    sides = tuple(range(32, 32 + 8 * 7, 8))
    answers = make_answers(1, sides=(32, 48, 64))
    many = Answers(
        dict.fromkeys(sides, answers.correct[64]),
        dict.fromkeys(sides, answers.confidence[32]),
        {px: float(px) for px in sides},
        sides[-1],
    )
    assert search_path(many, 0.01)[-1].resolutions == (32,)
