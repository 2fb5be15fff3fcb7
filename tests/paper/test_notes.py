"""Notes compute their figures from the records and are empty where a row is missing."""

import json

import cells
import notes
import pytest
from beyond import describe_int8
from int8_gap import list_cells

TOPS = {
    "S/B patch + last layer": 0.90,
    "last layer": 0.60,
    "last layer, own statistics": 0.75,
    "independently trained": 0.95,
}


SIDES_TOPS = {
    "S/B patch, ensemble (ours)": 0.85,
    "S/B patch, summed losses": 0.80,
    "all shared": 0.60,
    "all shared, own statistics": 0.75,
    "independently trained": 0.90,
}


def table5_records(tops):
    return {
        f"{row} {seed}": {"row": row, "column": "all", "seed": seed, "top1": {"32 px": top1}}
        for row, top1 in tops.items()
        for seed in (0, 1)
    }


def table4_records(tops):
    return {
        f"{row} {seed}": {
            "row": row,
            "column": "both",
            "seed": seed,
            "top1": {"digits": top1 + 0.01 * seed, "fashion": top1},
        }
        for row, top1 in tops.items()
        for seed in (0, 1)
    }


def test_the_note_of_table_4_says_how_much_of_the_gap_is_statistics():
    note = notes.note_table4(table4_records(TOPS))
    assert "(+30.0 ± 0.0 points) +15.0 ± 0.0 are these statistics, 50 % of it" in note
    assert "+15.0 ± 0.0 points are left for the patch" in note
    assert "(90.5 ± 0.7 against 95.5 ± 0.7)" in note


@pytest.mark.parametrize("row", list(TOPS)[:3])
def test_a_note_is_empty_where_a_row_that_it_needs_was_not_run(row):
    assert notes.note_table4(table4_records({key: TOPS[key] for key in TOPS if key != row})) == ""


def test_the_note_of_table_5_says_how_much_of_the_gap_is_statistics():
    note = notes.note_table5(table5_records(SIDES_TOPS))
    assert "(+20.0 ± 0.0 points) +15.0 ± 0.0 are these statistics, 75 % of it" in note
    assert "At 32 px 60.0 ± 0.0 becomes 75.0 ± 0.0" in note
    assert "+5.0 ± 0.0 points are left for private" in note
    for row in SIDES_TOPS:
        rest = {key: SIDES_TOPS[key] for key in SIDES_TOPS if key != row}
        assert notes.note_table5(table5_records(rest)) == ""


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ((0.05, 0.06, 0.07), "all weights are +6.0 ± 1.0 points above: holds."),
        ((-0.05, -0.06, -0.07), "all weights are -6.0 ± 1.0 points above: does not hold."),
        ((-0.05, 0.00, 0.05), "all weights are +0.0 ± 5.0 points above: undecided."),
    ],
)
def test_the_note_of_table_3_compares_a_second_detector_at_its_own_best_rates(
    monkeypatch, added, said
):
    """The rate is chosen by validation, where test accuracy would choose another one."""
    chosen = {"all weights": 4e-3, "S/B + last layer": 1e-2}
    probes = {}
    for row, rates in notes.DETECTOR_SWEEP.items():
        for rate in rates:
            for seed, more in enumerate(added if row == "all weights" else (0.0, 0.0, 0.0)):
                best = rate == chosen[row]
                probes[f"{row} {rate} {seed}"] = {
                    "row": notes.detector_row(row, rate, notes.SECOND),
                    "column": "digits",
                    "seed": seed,
                    "validation_top1": 0.8 if best else 0.7,
                    "test_top1": 0.6 + more if best else 0.9,
                }
    monkeypatch.setattr(notes, "read_probes", lambda: probes)
    note = notes.note_table3_detector(table4_records({"all weights": 0, "S/B + last layer": 0}))
    assert "chooses 0.004 for all weights and 0.01 for S/B + last layer" in note
    assert note.endswith(said)
    monkeypatch.setattr(notes, "read_probes", dict)
    assert "second one" not in notes.note_table3_detector(
        table4_records({"all weights": 0, "S/B + last layer": 0})
    )


@pytest.mark.parametrize(
    ("drop", "verdict"), [(0.0, "holds"), (0.0005, "holds"), (0.002, "does not hold")]
)
def test_the_goal_of_int8_is_a_tenth_of_a_point(tmp_path, monkeypatch, drop, verdict):
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    plan = type("Plan", (), {"network": "embedded", "quick": False, "seeds": 3})

    def record(cell):
        ways = {
            "float": 0.9,
            "plain": 0.9 - drop,
            "retuned": 0.91,
            "through": 0.8 + 0.1 * cell.seed,
        }
        tests = {f"{way} test": {"top1": top1} for way, top1 in ways.items()}
        return {"row": cell.row, "column": cell.column, "seed": cell.seed, **tests}

    kept = {cell.key: record(cell) for cell in list_cells(plan)}
    (tmp_path / "int8_gap.json").write_text(json.dumps({"cells": kept}))
    lines = describe_int8("embedded")
    assert lines[0] == "`int8_gap.py --network embedded`, 9 of 9 runs:"
    cell = f"{-100 * drop + 0.0:+.2f} ± 0.00"
    assert f"| exported as it is | {cell} | {cell} | {cell} |" in lines
    (decided,) = [line for line in lines if line.startswith("| exported as it is: as good")]
    assert decided.endswith(f"| {verdict} |")
    assert next(line for line in lines if "| undecided" in line).startswith("| through int8")


STATISTICS_TOPS = {
    notes.OLD: 0.90,
    notes.ALL_NEW: 0.78,
    notes.ONE_FACTOR: 0.85,
    notes.EARLY: 0.88,
    notes.LATE: 0.80,
}


def statistics_records(tops):
    places = [("digits, 64 px", 0.0), ("fashion, 64 px", 0.0), ("digits, 160 px", 0.05)]
    return {
        f"{row} {column} {seed}": {
            "row": row,
            "column": column,
            "seed": seed,
            "test_top1": top1 + (better if row == notes.ALL_NEW else 0.0) + 0.01 * seed,
            "effective_rank": 100.0 if row == notes.OLD else 300.0,
        }
        for row, top1 in tops.items()
        for column, better in places
        for seed in (0, 1)
    }


def test_what_new_statistics_cost_is_said_by_layers_channels_and_side():
    text = notes.explain_statistics(statistics_records(STATISTICS_TOPS))
    assert "loses as much (-12.0 ± 0.0;" in text
    assert "one factor a layer cost -5.0 ± 0.0:" in text
    assert "grows from 100 to 300" in text
    assert "alone costs -10.0 ± 0.0, the first half -2.0 ± 0.0." in text
    assert "all new statistics cost -7.0 ± 0.0." in text


@pytest.mark.parametrize("row", STATISTICS_TOPS)
def test_nothing_is_explained_where_a_row_was_not_run(row):
    tops = {key: STATISTICS_TOPS[key] for key in STATISTICS_TOPS if key != row}
    assert notes.explain_statistics(statistics_records(tops)).endswith("was not measured.")
