#!/usr/bin/env python
"""Why a table does not show what the paper shows: runs that the notes of docs/paper.md use.

In: the cells of a table with a setting changed. Out: results/probes.json, and a line for each
row and column. Validation accuracies here choose the rates of Table 3, left; test images choose
nothing.

    python benchmarks/paper/probes.py [--seeds 3] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from cells import SEEDS, Cell, Record, by_place, run_cells
from notes import DETECTOR_SWEEP, LONGER, PROBES, SECOND, detector_row
from transfer_cell import measure_transfer
from transfer_tables import table3_detector_cells


def list_cells(seeds: int) -> list[Cell]:
    """Each is a cell of a table with a setting changed."""
    found = []
    for cell in table3_detector_cells(False, seeds):
        rates = DETECTOR_SWEEP.get(cell.row, ())
        found += [
            _changed(cell, detector_row(cell.row, rate, network), rate=rate, network=network)
            for network in ("detector", SECOND)
            for rate in rates
        ]
        if (cell.row, cell.column) == ("all weights", "surfaces"):
            found.append(_changed(cell, LONGER, epochs=18, rate=1e-3))
    return found


def _changed(cell: Cell, row: str, **settings: Any) -> Cell:
    return Cell(row, cell.column, cell.seed, {**cell.settings, **settings})


def show(records: Mapping[str, Record]) -> None:
    """Validation and test accuracy of each row and column."""
    tests = by_place(records, "test_top1")
    for (row, column), held in by_place(records, "validation_top1").items():
        test = tests[row, column].percent()
        print(f"{row} | {column} | validation {held.percent()} | test {test} | n = {held.count}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    cells = list_cells(arguments.seeds)
    alike = ("table3_detector",)
    show(run_cells(PROBES, cells, measure_transfer, jobs=arguments.jobs, quick=False, alike=alike))


if __name__ == "__main__":
    main()
