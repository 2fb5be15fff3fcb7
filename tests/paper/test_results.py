"""The committed results are those of the tables as they are now, and the page is made from them."""

import json
import re
from pathlib import Path

import collect
import default_rates
import pytest
import run
import transfer_tables
from cells import SEEDS, results_path
from transfer_tables import RATES, SWEEP, SWEEP_ROWS

from patchdeploy.training import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def read(name: str):
    return json.loads(results_path(name, quick=False).read_text())["cells"]


def best_rate(row: str) -> float:
    """By mean validation accuracy over the sets and seeds of the sweep."""
    means = {}
    for rate in SWEEP:
        own = [one for one in read("fig9").values() if one["row"] == f"{row} at {rate:g}"]
        assert len(own) == 6  # two sets, three seeds
        means[rate] = sum(one["validation_top1"] for one in own) / len(own)
    return max(means, key=means.__getitem__)


@pytest.mark.parametrize("row", SWEEP_ROWS)
def test_the_rate_of_a_row_is_the_one_with_the_best_validation_accuracy_of_the_sweep(row):
    assert RATES[row] == best_rate(row)


def test_tables_2_and_6_run_at_those_rates():
    for cell in transfer_tables.table2_cells(False, 1):
        assert cell.settings["rate"] == RATES[cell.row]
    kinds = {("head",): "last layer", ("statistics", "head"): "last layer"}
    for cell in transfer_tables.table6_cells(False, 1):
        row = kinds.get(tuple(cell.settings["kinds"]), "S/B + last layer")
        assert cell.settings["rate"] == RATES[row]


@pytest.mark.parametrize("name", run.EXPERIMENTS)
def test_every_cell_of_a_table_was_run(name):
    kept = read(name)
    cells = run.EXPERIMENTS[name].cells(False, SEEDS)
    assert [cell.key for cell in cells if cell.key not in kept] == []


@pytest.mark.parametrize(("name", "row"), [("table4", "last layer"), ("table5", "all shared")])
def test_rows_that_share_a_normalisation_were_also_tested_with_own_statistics(name, row):
    for one in read(name).values():
        assert ("top1_own_statistics" in one) == (one["row"] == row)


@pytest.mark.parametrize("name", run.EXPERIMENTS)
def test_a_claim_that_is_undecided_or_does_not_hold_has_a_note(name):
    table = run.EXPERIMENTS[name]
    records = {cell.key: read(name)[cell.key] for cell in run.planned_cells(table, SEEDS, False)}
    verdicts = [claim.verdict for claim in table.claims(records)]
    if not all(re.match("holds", one) for one in verdicts):
        assert table.note(records)


def test_the_page_is_what_the_results_give(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert Path("docs/paper.md").read_text() == collect.make_page()


@pytest.mark.parametrize(
    ("network", "row", "scope"),
    [
        ("embedded", "S/B + last layer", "patch"),
        ("embedded", "last layer", "head"),
        ("imagenet", "S/B + last layer", "large_patch"),
        ("imagenet", "last layer", "large_head"),
    ],
)
def test_a_default_rate_is_the_best_of_those_that_were_tried(network, row, scope):
    """By mean validation accuracy over two sets; the backbone's rates are in two files."""
    means = {}
    for one in [*default_rates.read_sweep(1).values(), *read("default_rates").values()]:
        name, _, rate = one["row"].rpartition(" at ")
        if name == f"{network}: {row}" and one["seed"] == 0:
            means.setdefault(float(rate), []).append(one["validation_top1"])
    assert all(len(found) == 2 for found in means.values())
    assert len(means) >= 4
    assert max(means, key=lambda rate: sum(means[rate])) == TrainConfig().rate(scope)
