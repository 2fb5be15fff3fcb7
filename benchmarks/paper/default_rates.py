#!/usr/bin/env python
"""The default learning rates over two bases: validation accuracy at each and at smaller ones.

In: packaged images; the embedded base and the ImageNet backbone. Out: a table of mean validation
accuracy by base, what is trained and rate; results/default_rates.json. Why: a default that does
well over the one base can ruin the other. The backbone's other rates are in fig9.json, whose cells
have the same settings and are read beside these.

    python benchmarks/paper/default_rates.py [--seeds 2] [--jobs 1] [--quick]

Nothing here is chosen by test images. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cells import Cell, Record, by_place, results_path, run_cells
from rich.console import Console
from rich.table import Table
from transfer_cell import measure_transfer
from transfer_tables import FULL, ROWS

PATCH, HEAD, EVERY = "S/B + last layer", "last layer", "all weights"
BACKBONE_RATES: Mapping[str, Sequence[float]] = {PATCH: (5e-3, 2e-2), EVERY: (5e-4,)}
"""What fig9 has not: the defaults, and one between."""
EMBEDDED_RATES: Mapping[str, Sequence[float]] = {
    PATCH: (3e-3, 5e-3, 1e-2, 2e-2),
    HEAD: (3e-3, 1e-2, 3e-2, 1e-1),
    EVERY: (3e-4, 5e-4, 1e-3),
}
BACKBONE = {**FULL, "images": 600, "tests": 500, "statistics": "frozen"}
EMBEDDED = {**BACKBONE, "network": "embedded", "images": 1000, "px": 32, "epochs": 5}
BACKBONE_SETS, EMBEDDED_SETS = ("digits", "fashion"), ("digits", "surfaces")


def list_cells(quick: bool, seeds: int) -> list[Cell]:
    """Every rate over each base that is not in fig9."""
    plans = [(EMBEDDED, EMBEDDED_RATES, EMBEDDED_SETS), (BACKBONE, BACKBONE_RATES, BACKBONE_SETS)]
    if quick:
        tiny = {"images": 96, "tests": 50, "epochs": 1}
        plans = [({**EMBEDDED, **tiny}, {HEAD: EMBEDDED_RATES[HEAD][:2]}, EMBEDDED_SETS[:1])]
    return [
        Cell(
            f"{common['network']}: {row} at {rate:g}",
            dataset,
            seed,
            {**common, "dataset": dataset, "kinds": ROWS[row], "rate": rate},
        )
        for common, rates, datasets in plans
        for row, own in rates.items()
        for rate in own
        for dataset in datasets
        for seed in range(seeds)
    ]


def read_sweep(seeds: int) -> dict[str, Record]:
    """The backbone's cells of fig9 of those seeds, under this table's row names."""
    path = results_path("fig9", quick=False)
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    return {
        key: {**one, "row": f"imagenet: {one['row']}"}
        for key, one in found.items()
        if one["seed"] < seeds and one["row"].rpartition(" at ")[0] in (PATCH, HEAD, EVERY)
    }


def show(records: Mapping[str, Record], console: Console) -> None:
    """A row for each base, method and rate, in that order."""
    found = by_place(records, "validation_top1")
    columns = sorted({column for _, column in found})

    def order(row: str) -> tuple[str, float]:
        name, _, rate = row.rpartition(" at ")
        return name, float(rate)

    table = Table("validation top-1, %", *columns)
    for row in sorted({row for row, _ in found}, key=order):
        cells = [found.get((row, column)) for column in columns]
        table.add_row(row, *("-" if one is None else one.percent() for one in cells))
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    cells = list_cells(arguments.quick, seeds)
    records = run_cells(
        "default_rates", cells, measure_transfer, jobs=arguments.jobs, quick=arguments.quick
    )
    show(records if arguments.quick else records | read_sweep(seeds), Console(width=110))


if __name__ == "__main__":
    main()
