"""The committed results are those of the tables as they are now, and the page is made from them."""

import json
import re
from pathlib import Path

import beyond
import collect
import default_rates
import pytest
import run
import transfer_tables
from cells import SEEDS, results_path
from gaps import gap_of_pairs
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


@pytest.mark.parametrize(("network", "row"), default_rates.SCOPES)
def test_no_other_rate_that_was_tried_is_better_than_a_default_beyond_noise(network, row):
    """By validation accuracy, the mean of two sets, paired over three seeds. And the default is no
    edge of what was tried.
    """
    scope = default_rates.SCOPES[network, row]
    found, default = default_rates.kept_rates(network, row), TrainConfig().rate(scope)
    assert min(found) < default < max(found)
    for rate, others in found.items():
        if rate == default:
            continue
        pairs = {place: value - found[default][place] for place, value in others.items()}
        assert len(pairs) == (3 if row in (default_rates.SHARED, default_rates.PRIVATE) else 6)
        gap = gap_of_pairs(pairs)
        assert gap.spread.mean - gap.margin <= 0, (rate, gap)


def test_the_measured_tables_of_the_training_page_are_what_the_results_give():
    page = (ROOT / "docs" / "training.md").read_text()
    for rows in (*map(beyond.int8_rows, ("embedded", "imagenet")), default_rates.table_rows()):
        assert "\n".join(rows) + "\n\n" in page
