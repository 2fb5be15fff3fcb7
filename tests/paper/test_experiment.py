"""Claims are decided by bounds on paired gaps; tables and the page say what was not run."""

import json
import re
from pathlib import Path

import cells
import collect
import experiment
import numpy as np
import pytest
import run
from cells import Cell, Spread, spread
from experiment import Claim, markdown_table
from gaps import COMPARABLE, MOST_SEEDS, Gap, gap_of_pairs, paired_gap, seeds_to_decide
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_tables import best_rates, fig9_claims

# Student's t, one side, 95 %, from printed tables; their last digit is rounded: 0.0005.
T_95 = {1: 6.314, 2: 2.920, 8: 1.860}
PATCH, HEAD = "S/B patch + last layer", "last layer"


def record(row, column, seed, top1, **more):
    return {"row": row, "column": column, "seed": seed, "test_top1": top1, **more}


def keyed(records):
    return {str(k): one for k, one in enumerate(records)}


def gap_of_seeds(*means):
    return gap_of_pairs({("digits", seed): mean for seed, mean in enumerate(means)})


def test_a_spread_is_the_mean_and_the_deviation_with_n_minus_1():
    own = spread([0.7, 0.8, 0.9])
    # Decimal fractions are not exact in binary: a few units of 2.2e-16.
    assert own == Spread(pytest.approx(0.8, rel=1e-14), pytest.approx(0.1, rel=1e-14), 3)
    assert own.percent() == "80.0 ± 10.0"
    assert spread([0.8]) == Spread(0.8, 0.0, 1)
    assert spread([0.8]).percent() == "80.0"
    assert spread([]).percent() == "not run"


def test_a_gap_pairs_rows_by_column_and_seed_and_means_each_seed_over_its_columns():
    records = keyed(
        [
            *(record("a", "x", s, v) for s, v in enumerate((0.80, 0.90, 0.85))),
            *(record("a", "y", s, v) for s, v in enumerate((0.50, 0.60, 0.55))),
            *(record("b", "x", s, v) for s, v in enumerate((0.70, 0.82, 0.80))),
            *(record("b", "y", s, v) for s, v in enumerate((0.52, 0.58, 0.56))),
            record("c", "x", 0, 0.1),
        ]
    )
    gap = paired_gap(records, "a", "b")
    # x: 0.10, 0.08, 0.05; y: -0.02, 0.02, -0.01. Sums of four decimals below 1: 4 * 2^-53.
    assert gap.by_seed == pytest.approx({0: 0.04, 1: 0.05, 2: 0.02}, abs=5e-16)
    assert gap.by_column == pytest.approx({"x": 0.23 / 3, "y": -0.01 / 3}, abs=5e-16)
    # Mean 0.11/3; squares of (0.01, 0.04, -0.05)/3 sum to 0.0042/9, over n - 1 = 2.
    assert gap.spread.mean == pytest.approx(0.11 / 3, rel=1e-12)
    assert gap.spread.deviation == pytest.approx((0.0021 / 9) ** 0.5, rel=1e-12)
    expected = T_95[2] * (0.0021 / 9 / 3) ** 0.5
    assert gap.margin == pytest.approx(expected, rel=0.0005 / T_95[2])


@pytest.mark.parametrize("freedom", list(T_95))
def test_the_bound_is_students_t_over_the_seeds(freedom):
    # n alternating values of +-1: for even n the sum of squares is n; for odd n it is n - 1/n.
    values = [(-1.0) ** k for k in range(freedom + 1)]
    n = len(values)
    deviation = ((n if n % 2 == 0 else n - 1 / n) / freedom) ** 0.5
    expected = T_95[freedom] * deviation / n**0.5
    assert gap_of_seeds(*values).margin == pytest.approx(expected, rel=0.0005 / T_95[freedom])


def test_a_seed_that_lacks_a_column_is_left_out():
    pairs = {("x", 0): 0.1, ("y", 0): 0.3, ("x", 1): 0.9}
    assert gap_of_pairs(pairs) == Gap({0: pytest.approx(0.2)}, {"x": 0.1, "y": 0.3})
    assert gap_of_pairs({("x", 0): 0.1, ("y", 1): 0.3}) == gap_of_pairs({}) == Gap({}, {})


def test_columns_of_one_run_do_not_count_as_repetitions():
    # Five resolutions of one network agree to the digit in each seed; there are still two seeds.
    pairs = {(f"{px} px", seed): (0.01, 0.03)[seed] for px in range(5) for seed in (0, 1)}
    gap = gap_of_pairs(pairs)
    assert gap.spread.count == 2
    assert Claim("", gap).verdict == "undecided"


@pytest.mark.parametrize(
    ("gap", "allowed", "verdict"),
    [
        (Gap({}, {}), 0.0, "not run"),
        (gap_of_seeds(0.5), 0.0, "undecided: one seed"),
        # Mean 0.02, deviation 0.01: t s / sqrt(3) = 2.920 * 0.01 / 1.732 = 0.0169.
        (gap_of_seeds(0.01, 0.02, 0.03), 0.0, "holds"),
        (gap_of_seeds(-0.01, -0.02, -0.03), 0.0, "does not hold"),
        # 0.0169 above and below 0.015; the standard error, 0.0058, would have said "holds".
        (gap_of_seeds(0.005, 0.015, 0.025), 0.0, "undecided"),
        (gap_of_seeds(0.0, 0.0, 0.0), 0.0, "undecided"),
        # Comparable: 0.002 below on average and 0.0169 either way is above -0.02.
        (gap_of_seeds(-0.012, -0.002, 0.008), COMPARABLE, "holds"),
        (gap_of_seeds(-0.02, -0.01, 0.0), COMPARABLE, "undecided"),
        (gap_of_seeds(-0.05, -0.04, -0.03), COMPARABLE, "does not hold"),
    ],
)
def test_a_claim_is_decided_where_the_bound_is_on_one_side(gap, allowed, verdict):
    assert Claim("", gap, allowed).verdict == verdict


def test_a_claim_that_holds_on_average_names_the_columns_that_say_the_opposite():
    gap = gap_of_pairs(
        {("x", 0): 0.20, ("x", 1): 0.21, ("y", 0): -0.02, ("y", 1): -0.01, ("z", 0): 0.1,
         ("z", 1): 0.1}
    )  # fmt: skip
    assert Claim("", gap).verdict == "holds on average, not for y"
    assert Claim("", gap, COMPARABLE).verdict == "holds"


gaps_of_seeds = st.lists(st.floats(-1, 1), min_size=2, max_size=6)


@given(gaps_of_seeds)
def test_a_claim_and_its_opposite_never_both_hold(values):
    one = Claim("", gap_of_seeds(*values)).verdict
    other = Claim("", gap_of_seeds(*(-value for value in values))).verdict
    opposite = {"holds": "does not hold", "does not hold": "holds", "undecided": "undecided"}
    assert other == opposite[one]


@given(gaps_of_seeds, st.floats(0.01, 1))
@settings(max_examples=50)
def test_allowing_a_shortfall_is_shifting_the_gap(values, allowed):
    shifted = [value + allowed for value in values]
    own, moved = Claim("", gap_of_seeds(*values), allowed), Claim("", gap_of_seeds(*shifted))
    edges = (own.gap.spread.mean - own.gap.margin, own.gap.spread.mean + own.gap.margin)
    # Sums of values below 2 are rounded at 2^-53, times t up to 6.3: nearer than this is a tie.
    if min(abs(edge + allowed) for edge in edges) > 1e-13:
        assert own.verdict == moved.verdict


def test_where_there_is_no_gap_a_claim_holds_by_chance_in_one_table_of_twenty():
    draws = np.random.default_rng(0).standard_normal((4000, 3))
    held = np.mean([Claim("", gap_of_seeds(*seeds)).verdict == "holds" for seeds in draws.tolist()])
    # Binomial, p = 0.05: deviation sqrt(0.05 * 0.95 / 4000) = 0.0034, four of them.
    assert abs(held - 0.05) < 4 * (0.05 * 0.95 / 4000) ** 0.5


def test_the_row_of_a_claim_says_its_gap_its_seeds_and_its_columns():
    pairs = {("x", 0): 0.03, ("x", 1): 0.05, ("y", 0): 0.01, ("y", 1): 0.01}
    # Seeds 0.02 and 0.03: deviation 0.01 / sqrt(2) = 0.007; bound 6.314 * 0.005 = 0.032; of three
    # such seeds 2.920 * 0.007 / sqrt(3) = 0.012, below 0.025.
    assert Claim("a beats b", gap_of_pairs(pairs)).markdown() == (
        "| a beats b | +2.5 ± 0.7, n = 2; columns +1.0 to +4.0 | undecided; n = 3 might decide |"
    )
    assert Claim("a is as good", gap_of_seeds(0.012), COMPARABLE).markdown() == (
        "| a is as good (at most 2 below) | +1.2, n = 1 | undecided: one seed |"
    )
    assert Claim("a beats b", Gap({}, {})).markdown() == "| a beats b | - | not run |"


def test_a_table_says_what_was_not_run_what_was_not_planned_and_what_failed():
    wanted = [Cell("a", "x", 0), Cell("a", "x", 1), Cell("a", "y", 0), Cell("b", "x", 0)]
    records = keyed(
        [
            record("a", "x", 0, 0.5, parameters=1000),
            record("a", "x", 1, 0.0, parameters=0, failed="the loss is nan"),
        ]
    )
    assert markdown_table(records, [*wanted, Cell("c", "y", 0)], "test_top1").splitlines() == [
        "|  | x | y | parameters |",
        "|---|---|---|---|",
        "| a | 25.0 ± 35.4 (1 of 2 failed, counted as chance) | not run | 1,000 |",
        "| b | not run | - | - |",
        "| c | - | not run | - |",
    ]


def sweep(row, column, seed, **rates):
    return [
        {"row": f"{row} at {rate}", "column": column, "seed": seed, "validation_top1": top1}
        for rate, top1 in zip(("0.001", "0.01", "0.1"), rates.values(), strict=False)
    ]


def test_the_best_rate_is_that_of_the_best_validation_accuracy_of_whole_sweeps():
    records = keyed(
        [
            *sweep("S/B + last layer", "x", 0, a=0.1, b=0.2, c=0.3),
            *sweep("S/B + last layer", "x", 1, a=0.1, b=0.3, c=0.3),
            *sweep("all weights", "x", 0, a=0.5, b=0.4, c=0.1),
            *sweep("all weights", "x", 1, a=0.5, b=0.4, c=0.1),
            *sweep("all weights", "x", 2, a=0.5, b=0.6),  # 0.1 is missing
        ]
    )
    assert best_rates(records, "S/B + last layer") == {("x", 0): 0.1, ("x", 1): 0.01}
    assert best_rates(records, "all weights") == {("x", 0): 0.001, ("x", 1): 0.001}
    (claim,) = fig9_claims(records)
    # log10 of two decimal fractions: exact to a few units in the last place.
    assert claim.gap.by_seed == pytest.approx({0: 2.0, 1: 1.0}, rel=1e-14)


def test_the_seeds_that_would_decide_are_the_fewest_whose_bound_is_on_one_side():
    # Mean and deviation 0.01: t / sqrt(n) is 2.353 / 2 = 1.18 for 4 seeds, 2.132 / 2.236 = 0.95
    # for 5. From -0.02 on, the mean is 0.03 away: 6.314 / 1.414 = 4.46, 2.920 / 1.732 = 1.69.
    gap = gap_of_seeds(0.0, 0.01, 0.02)
    assert seeds_to_decide(gap) == 5
    assert seeds_to_decide(gap, COMPARABLE) == 3
    assert seeds_to_decide(gap_of_seeds(0.01)) is None
    assert seeds_to_decide(gap_of_seeds(-0.01, 0.01)) is None
    assert Claim("", gap_of_seeds(-0.01, 0.01)).markdown().endswith(
        f"| undecided; n = {MOST_SEEDS} would not decide |"
    )  # fmt: skip


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Results of a few cells in a folder of their own; returns what writes and reads the page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    Path("docs/paper").mkdir(parents=True)
    for name in collect.FRAGMENTS:
        Path(f"docs/paper/{name}.md").write_text(f"## {name}\n\nFolds.\n")

    def write(name: str, measured, seeds: int = cells.SEEDS) -> str:
        table = run.EXPERIMENTS[name]
        kept = {
            cell.key: {**vars(cell), "seconds": 60.0, **measured(cell)}
            for cell in table.cells(False, seeds)
            if measured(cell)
        }
        document = {"experiment": name, "cells": kept, "device": {"cpu": "a made-up CPU"}}
        cells.results_path(name, quick=False).write_text(json.dumps(document))
        collect.main()
        return Path("docs/paper.md").read_text()

    return write


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_page_shows_the_given_results_and_says_what_is_missing(page):
    tops = {PATCH: (0.90, 0.80), HEAD: (0.70, 0.75)}

    def measured(cell):
        if cell.row not in tops or cell.seed == 2:
            return None
        fashion, digits = (top1 + 0.01 * cell.seed for top1 in tops[cell.row])
        return {"top1": {"fashion": fashion, "digits": digits}, "parameters": 123_456}

    text = page("table4", measured)
    part = section(text, run.EXPERIMENTS["table4"].title)
    assert "**5 of 9 runs are still missing.**" in part
    assert f"| {PATCH} | 90.5 ± 0.7 | 80.5 ± 0.7 | 123,456 |" in part
    assert f"| {HEAD} | 70.5 ± 0.7 | 75.5 ± 0.7 | 123,456 |" in part
    assert "| independently trained | not run | not run | - |" in part
    # Both seeds gap 0.125: no spread, so the bound is 0.125 itself.
    assert "| +12.5 ± 0.0, n = 2; columns +5.0 to +20.0 | holds |" in part
    assert "(gap to them) (at most 2 below) | - | not run |" in part
    assert "4 runs of one thread, 4 minutes in sum by the clock; a made-up CPU." in part
    assert "![" not in part  # no picture was drawn


def test_the_page_shows_all_seeds_that_every_cell_of_a_table_was_run_with(page):
    def measured(cell):
        if cell.seed == 5 and cell.row == HEAD:  # so five seeds are whole, 0 to 4
            return None
        return {"top1": {"fashion": 0.5, "digits": 0.5 + 0.1 * cell.seed}, "parameters": 1}

    part = section(page("table4", measured, seeds=7), run.EXPERIMENTS["table4"].title)
    assert "missing" not in part
    assert "15 runs of one thread" in part  # three rows
    assert "| 50.0 ± 0.0 | 70.0 ± 15.8 |" in part  # of 0, 0.1 .. 0.4: 0.1 sqrt(10 / 4)


def test_a_run_keeps_the_seeds_that_were_run_before(page):
    table = run.EXPERIMENTS["table4"]
    page("table4", lambda cell: {"top1": {"fashion": 0.5, "digits": 0.5}, "parameters": 1}, seeds=5)
    assert len(run.planned_cells(table, 3, quick=False)) == 3 * 5
    assert len(run.planned_cells(table, 6, quick=False)) == 3 * 6


def test_runs_that_another_table_has_are_named_and_not_counted_twice():
    records = {
        str(k): {"seconds": 60.0 * (k % 2), **({} if k % 2 else {"copied_from": "table2"})}
        for k in range(5)
    }
    assert collect.describe_runs(records) == (
        "2 runs of one thread, 2 minutes in sum by the clock, and 3 that are also cells of `table2`"
    )


def test_a_table_without_results_shows_no_figure_but_the_papers(page):
    text = page("table4", lambda cell: None)
    for table in run.EXPERIMENTS.values():
        part = section(text, table.title)
        own = part.replace(table.setup, "").replace(table.paper, "")
        assert own.split() == ["Not", "run", "yet.", "The", "paper:"]


def test_every_figure_on_the_page_comes_from_a_result_or_the_paper(page):
    def measured(cell):
        return {"test_top1": 0.4321, "validation_top1": 0.4, "parameters": 777}

    table = run.EXPERIMENTS["table6"]
    part = section(page("table6", measured), table.title)
    own = part.replace(table.setup, "").replace(table.paper, "")
    count = len(table.cells(False, cells.SEEDS))
    numbers = set(re.findall(r"\d[\d.,]*\d|\d", own))
    gaps = {"0.0", str(cells.SEEDS), str(MOST_SEEDS)}  # all rows are equal
    assert numbers - {"43.2", "777", str(count)} <= gaps
    assert "undecided" in own
    assert "holds" not in own


def test_fragments_join_the_page_in_their_order(page):
    text = page("table4", lambda cell: None)
    assert text.endswith("## folding_1d\n\nFolds.\n\n## toy_2d\n\nFolds.\n")


def test_a_fragment_that_is_not_there_is_an_error_that_says_what_makes_it(page):
    Path("docs/paper/toy_2d.md").unlink()
    with pytest.raises(SystemExit) as stopped:
        page("table4", lambda cell: None)
    assert stopped.value.code == (
        "error: docs/paper/toy_2d.md is not there; the page has a section of it; run: "
        "python benchmarks/paper/toy_2d.py"
    )
    assert not Path("docs/paper.md").exists()


def test_what_goes_beyond_the_paper_says_that_it_was_not_run(page):
    part = section(page("table4", lambda cell: None), "Beyond the paper: int8")
    assert part.count("Not run yet.") == 2
    assert "0 of 9 runs" in part


def test_every_experiment_has_a_name_of_its_own_and_cells_of_its_own():
    assert len(run.EXPERIMENTS) == 7
    for name, table in run.EXPERIMENTS.items():
        assert name == table.name
        for quick in (False, True):
            keys = [cell.key for cell in table.cells(quick, 3)]
            assert len(set(keys)) == len(keys) > 0


def test_a_picture_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(AttributeError):
        experiment.save_picture(object(), path)
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["picture.png"]
