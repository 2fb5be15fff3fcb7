#!/usr/bin/env python
"""Regenerate tables and figures of the paper in small.

    python benchmarks/paper/run.py table2            # one, three seeds
    python benchmarks/paper/run.py all               # all tables: 65 minutes on two cores
    python benchmarks/paper/run.py all --quick       # that everything runs: no results

First: python benchmarks/paper/train_detector.py, and the wheel of the ImageNet backbone (make paper
does both); where they are missing and needed, it says so.
A run that was stopped goes on where it was. Results are in benchmarks/paper/results, pictures in
docs/paper; collect.py writes docs/paper.md from them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
from cells import OWN_STATISTICS, SEEDS, Cell, by_column, missing_cells, run_cells, seeds_kept
from experiment import Experiment, Records, markdown_table
from networks import lacking
from shared_tables import EXPERIMENTS as SHARED
from transfer_tables import EXPERIMENTS as TRANSFER

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one
    for one in sorted((*TRANSFER, *SHARED), key=lambda one: (one.name != "fig9", one.name))
}
PICTURES = Path("docs/paper")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=[*EXPERIMENTS, "all"], help="what to run")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--quick", action="store_true", help="tiny runs that show no result")
    arguments = parser.parse_args()
    names = list(EXPERIMENTS) if "all" in arguments.names else arguments.names
    if reasons := find_lacking(names, arguments.seeds, arguments.quick):
        sys.exit("\n".join(f"error: {reason}" for reason in reasons))
    for name in names:
        start = time.perf_counter()
        run_experiment(EXPERIMENTS[name], arguments.seeds, arguments.jobs, arguments.quick)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


def find_lacking(names: Sequence[str], seeds: int, quick: bool) -> list[str]:
    """What must be run first, for the networks of all cells that are still missing."""
    networks = {
        cell.settings.get("network", "random")
        for name in names
        for cell in missing_cells(name, planned_cells(EXPERIMENTS[name], seeds, quick), quick)
    }
    return [reason for network in sorted(networks) if (reason := lacking(network))]


def planned_cells(experiment: Experiment, seeds: int, quick: bool) -> list[Cell]:
    """All cells of a table; a quick run has one seed, others no fewer than were run before."""
    if quick:
        return experiment.cells(True, 1)
    kept = seeds_kept(experiment.name, lambda count: experiment.cells(False, count))
    return experiment.cells(False, max(seeds, kept))


def run_experiment(experiment: Experiment, seeds: int, jobs: int, quick: bool) -> None:
    """Measure what is missing, print the table and the claims, draw the picture."""
    cells = planned_cells(experiment, seeds, quick)
    alike = [
        one.name
        for one in EXPERIMENTS.values()
        if one.measure is experiment.measure and one is not experiment
    ]
    records = run_cells(
        experiment.name, cells, experiment.measure, jobs=jobs, quick=quick, alike=alike
    )
    print(f"\n{experiment.title}\n\n{show(experiment, records, cells)}\n")
    for claim in experiment.claims(records):
        print(claim.markdown())
    folder = Path("out/paper") if quick else PICTURES
    experiment.draw(records, folder / f"{experiment.name}.png")


def show(experiment: Experiment, records: Records, cells: Sequence[Cell]) -> str:
    """The table in Markdown; a run that measured several columns is taken apart first."""
    if any("top1" in record for record in records.values()):
        twice = {one["row"] for one in records.values() if "top1_own_statistics" in one}
        records = by_column(records)
        columns = list(dict.fromkeys(record["column"] for record in records.values()))
        rows = [
            (one, one.row + ending)
            for one in cells
            for ending in ("", *([OWN_STATISTICS] if one.row in twice else []))
        ]
        cells = [Cell(row, column, one.seed) for one, row in rows for column in columns]
    return markdown_table(records, cells, "test_top1")


if __name__ == "__main__":
    main()
