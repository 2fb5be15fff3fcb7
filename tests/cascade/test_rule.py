"""The rule: what it may hold, and which stage answers."""

import numpy as np
import pytest
import slow_cascade
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdeploy.cascade import CascadeRule, Stage, confidence, route
from patchdeploy.cascade.rule import MAX_THRESHOLD
from patchdeploy.cascade.scores import SCORE_KINDS
from patchdeploy.errors import ConfigError

LAST = Stage(64, 0, 0)


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(SCORE_KINDS),
    st.lists(st.integers(0, 2**20), min_size=2, max_size=2),
    st.integers(0, 10**6),
)
def test_the_first_stage_that_is_sure_answers(kind, thresholds, seed):
    rng = np.random.default_rng(seed)
    ratio = 0 if kind == "margin" else 2**31
    if kind == "margin":
        thresholds = [t % 256 for t in thresholds]
    stages = (Stage(32, thresholds[0], ratio), Stage(48, thresholds[1], ratio), LAST)
    rule = CascadeRule(kind, stages)
    codes = {px: rng.integers(-128, 128, (20, 5)).astype(np.int8) for px in (32, 48)}
    found = route(rule, {px: confidence(kind, codes[px], ratio) for px in codes})
    expected = [
        slow_cascade.answering_stage(rule, {px: codes[px][i].tolist() for px in codes})
        for i in range(20)
    ]
    assert found.tolist() == expected


def test_thresholds_at_the_ends_always_and_never_answer():
    confidences = {32: np.array([0, 5, 255]), 48: np.array([0, 5, 255])}
    never = CascadeRule("margin", (Stage(32, MAX_THRESHOLD, 0), Stage(48, 256, 0), LAST))
    assert route(never, confidences).tolist() == [2, 2, 2]
    assert never.idle_resolutions == never.resolutions[:2]
    always = CascadeRule("margin", (Stage(32, 0, 0), LAST))
    assert route(always, confidences).tolist() == [0, 0, 0]
    assert always.idle_resolutions == always.resolutions[1:]


@pytest.mark.parametrize(
    ("kind", "stages", "message"),
    [
        ("margin", (), "stages at no px"),
        ("margin", (Stage(64, 3, 0), LAST), "stages at 64, 64 px"),
        ("chance", (LAST,), "score 'chance'"),
        ("margin", (Stage(32, -1, 0), LAST), "threshold -1"),
        ("margin", (Stage(32, 2**31, 0), LAST), "threshold 2147483648"),
        ("margin", (Stage(32, 3, 7), LAST), "0 to 0"),
        ("entropy", (Stage(32, 3, 0), LAST), "ratio 0"),
        ("entropy", (Stage(32, 3, 2**32), LAST), "ratio 4294967296"),
        ("margin", (Stage(32, 3, 0), Stage(64, 1, 0)), "the last stage has threshold 1"),
    ],
)
def test_a_rule_outside_its_ranges_is_refused(kind, stages, message):
    with pytest.raises(ConfigError, match=message):
        CascadeRule(kind, stages)
