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
