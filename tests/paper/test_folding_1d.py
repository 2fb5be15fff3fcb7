"""Section 4: the exact solver against direct evaluation, and the paper's five ranges of b0."""

import importlib
import json
import sys
from fractions import Fraction
from itertools import pairwise
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks" / "paper"))
folds = importlib.import_module("fold_piecewise")
folding = importlib.import_module("folding_1d")

Interval = folds.Interval
rationals = st.fractions(min_value=-2, max_value=2, max_denominator=40)


@st.composite
def networks(draw):
    """One to three layers of 2 or 4 hidden units with any biases."""
    widths = draw(st.lists(st.sampled_from((2, 4)), min_size=1, max_size=3))
    return [tuple(draw(rationals) for _ in range(width + 1)) for width in widths]


@st.composite
def segments(draw):
    """A closed interval, perhaps one point."""
    low, high = sorted((draw(rationals), draw(rationals)))
    return Interval(low, high)


def holds(intervals, x):
    return any(one.low <= x <= one.high for one in intervals)


@given(networks(), segments(), st.lists(rationals, min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_point_is_in_the_preimage_just_when_its_value_is_in_the_target(layers, target, points):
    preimage = folds.solve_preimage(layers, [target])
    ends = [end for one in preimage for end in (one.low, one.high) if abs(end) != inf]
    for x in [*points, *ends]:
        assert holds(preimage, x) == holds([target], folds.evaluate_folds(layers, x))


@given(networks(), segments())
@settings(max_examples=50, deadline=None)
def test_between_two_components_there_is_a_point_outside(layers, target):
    preimage = folds.solve_preimage(layers, [target])
    for left, right in pairwise(preimage):
        assert left.high < right.low
        middle = (left.high + right.low) / 2
        assert not holds([target], folds.evaluate_folds(layers, middle))


@given(networks(), st.lists(rationals, min_size=1, max_size=10))
@settings(max_examples=30, deadline=None)
def test_the_network_is_affine_between_its_breakpoints(layers, points):
    kinks = folds.find_breakpoints(layers)
    for x in points:
        low = max((k for k in kinks if k <= x), default=None)
        high = min((k for k in kinks if k > x), default=None)
        if low is None or high is None:
            continue
        share = (x - low) / (high - low)
        at_low, at_high = folds.evaluate_folds(layers, low), folds.evaluate_folds(layers, high)
        assert folds.evaluate_folds(layers, x) == (1 - share) * at_low + share * at_high


@given(networks(), segments(), st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_stage_of_any_bias_gives_its_number_of_components(layers, target, points):
    domain = Interval(Fraction(-1), Fraction(3, 2))
    stages = folds.find_stages(layers, [target], domain=domain, count_points=points)
    for bias in (Fraction(n, 8) for n in range(-24, 25)):
        own = [stage for stage in stages if stage.contains(bias)]
        preimage = folds.solve_preimage([(bias, *layers[0][1:]), *layers[1:]], [target], domain)
        assert [stage.components for stage in own] == [folds.count_components(preimage, points)]


def test_the_ranges_of_the_first_bias_are_the_papers_but_for_one_end():
    found = folding.solve_stages(2)
    paper = {stage.components: folding.describe_stage(stage) for stage in folding.PAPER}
    ours = {stage.components: folding.describe_stage(stage) for stage in found}
    assert [stage.components for stage in found] == [0, 1, 2, 3, 4]
    assert ours == paper | {3: "[-0.1, -0.05]", 2: "(-0.4, -0.1)"}


def test_at_minus_a_tenth_the_third_component_is_one_point():
    preimage = folds.solve_preimage(folding.fold_layers(2, Fraction(-1, 10)), folding.TARGET)
    assert preimage == (
        Interval(Fraction(3, 20), Fraction(1, 5)),
        Interval(Fraction(1, 2), Fraction(1, 2)),
        Interval(Fraction(4, 5), Fraction(17, 20)),
    )
    assert folds.count_components(preimage, count_points=False) == 2
    page = (ROOT / "docs" / "paper" / "folding_1d.md").read_text()
    left, middle, right = (f"[{one.low}, {one.high}]" for one in preimage)
    assert left in page
    assert right in page
    assert middle == "[1/2, 1/2]"
    assert "the single point 1/2" in page


@pytest.mark.parametrize(
    ("bias", "components"), list(zip(folding.PANELS, (4, 3, 2, 1, 0), strict=True))
)
def test_a_dense_evaluation_finds_the_components_of_each_panel(bias, components):
    # No component of a panel and no gap between two is narrower than 1/20 (see the JSON), so a
    # step of 1/1000 cannot miss one.
    grid = [Fraction(n, 1000) for n in range(-200, 1201)]
    layers = folding.fold_layers(2, bias)
    inside = np.array([holds(folding.TARGET, folds.evaluate_folds(layers, x)) for x in grid])
    starts = int(np.sum(inside[1:] & ~inside[:-1]))
    assert starts == components
    assert len(folds.solve_preimage(layers, folding.TARGET)) == components


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_one_bias_takes_k_layers_through_every_count_from_two_to_the_k_to_none(depth):
    counts = [stage.components for stage in folding.solve_stages(depth)]
    assert counts == list(range(2**depth + 1))


def test_on_the_unit_interval_alone_a_large_bias_loses_components_too():
    stages = folding.solve_stages(2, domain=folding.UNIT)
    assert [stage.components for stage in stages] == [0, 1, 2, 3, 4, 2, 0]


def test_touching_intervals_are_one_component():
    one, two, three = Fraction(1), Fraction(2), Fraction(3)
    merged = folds.merge_intervals([Interval(two, three), Interval(one, two)])
    assert merged == (Interval(one, three),)


def test_a_layer_with_an_odd_number_of_units_is_refused():
    whole = r"^a layer has 4 biases: give p \+ 1 for an even p >= 2$"
    with pytest.raises(ValueError, match=whole):
        folds.solve_preimage([(Fraction(0),) * 4], folding.TARGET)


def test_the_kept_json_is_what_the_code_solves_and_the_page_shows_its_table():
    kept = json.loads((folding.RESULTS / "folding_1d.json").read_text())
    solved = folding.measure((2, 3))
    assert kept["stages"] == solved["stages"]
    assert kept["panels"] == solved["panels"]
    page = (ROOT / "docs" / "paper" / "folding_1d.md").read_text()
    assert "\n".join(folding.table_lines(kept)) in page


def test_the_figures_are_drawn(tmp_path):
    folding.draw_figure_2(tmp_path / "a.png")
    folding.draw_counts(tmp_path / "b.png", (2, 3))
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert (tmp_path / "b.png").stat().st_size > 10_000
