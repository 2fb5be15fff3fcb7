#!/usr/bin/env python
"""The default learning rates over two bases: validation accuracy at each and at smaller ones.

In: packaged images; the embedded base and the ImageNet backbone. Out: a table of mean validation
accuracy by base, what is trained and rate; results/default_rates.json. Why: a default that does
well over the one base can ruin the other. The backbone's other rates are in fig9.json, whose cells
have the same settings and are read beside these.

    python benchmarks/paper/default_rates.py [--seeds 3] [--jobs 1] [--quick]

Nothing here is chosen by test images. Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cells import SEEDS, Cell, Record, by_place, results_path, run_cells
from networks import open_network
from rich.console import Console
from rich.table import Table
from transfer_cell import draw, measure_transfer
from transfer_tables import FULL, ROWS

from patchdeploy.data import load_packaged
from patchdeploy.errors import NonFiniteLossError
from patchdeploy.training import TaskImages, TrainConfig, train_tasks
from patchdeploy.training.config import Scope

Place = tuple[str, int]

PATCH, HEAD, EVERY = "S/B + last layer", "last layer", "all weights"
BACKBONE_RATES: Mapping[str, Sequence[float]] = {PATCH: (5e-3, 2e-2), EVERY: (5e-4,)}
"""What fig9 has not: the defaults, and one between."""
EMBEDDED_RATES: Mapping[str, Sequence[float]] = {
    PATCH: (3e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2),
    HEAD: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    EVERY: (3e-4, 5e-4, 1e-3, 2e-3, 3e-3),
}
SHARED, PRIVATE = "shared weights", "each task's own"
JOINT_RATES: Mapping[str, Sequence[tuple[float, float]]] = {
    SHARED: ((1e-4, 1e-2), (3e-4, 1e-2), (1e-3, 1e-2), (3e-3, 1e-2), (1e-2, 1e-2)),
    PRIVATE: ((3e-3, 3e-3), (3e-3, 3e-2)),
}
"""Of method `tasks`, its statistics of the batch: of what all share, and of what each task owns."""
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


def list_joint_cells(quick: bool, seeds: int) -> list[Cell]:
    """Two tasks that train all weights of each base together."""
    plans = [(EMBEDDED, EMBEDDED_SETS), (BACKBONE, BACKBONE_SETS)]
    rates = [(row, pair) for row, pairs in JOINT_RATES.items() for pair in pairs]
    if quick:
        plans, rates = [({**EMBEDDED, "images": 96, "epochs": 1}, EMBEDDED_SETS)], rates[:1]
    return [
        Cell(
            f"{common['network']}: {row} at {shared if row == SHARED else private:g}",
            " + ".join(datasets),
            seed,
            {
                **{key: common[key] for key in ("network", "images", "px", "epochs", "batch")},
                "datasets": list(datasets),
                "shared": shared,
                "private": private,
            },
        )
        for common, datasets in plans
        for row, (shared, private) in rates
        for seed in range(seeds)
    ]


def measure_joint(settings: Mapping[str, Any], seed: int) -> Record:
    """Settings: network, datasets, images (of each), px, epochs, batch, shared, private (rates)."""
    base = open_network(settings["network"], seed, settings["px"])
    tasks = [
        TaskImages(
            draw(load_packaged(name)[0], settings["images"], seed),
            name=name,
            resolution=settings["px"],
        )
        for name in settings["datasets"]
    ]
    config = TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        learning_rate=settings["private"],
        shared_learning_rate=settings["shared"],
        seed=seed,
    )
    try:
        top1 = train_tasks(base, tasks, config, quiet=True).validation_top1
    except NonFiniteLossError as error:  # a rate far too large: as good as a guess
        chance = float(np.mean([1 / len(one.images.classes) for one in tasks]))
        return {"validation_top1": chance, "failed": str(error)}
    return {"validation_top1": float(np.mean(list(top1.values())))}


def read_sweep(seeds: int) -> dict[str, Record]:
    """The backbone's cells of fig9 of those seeds, under this table's row names."""
    path = results_path("fig9", quick=False)
    found: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    return {
        key: {**one, "row": f"imagenet: {one['row']}"}
        for key, one in found.items()
        if one["seed"] < seeds and one["row"].rpartition(" at ")[0] in (PATCH, HEAD, EVERY)
    }


SCOPES: Mapping[tuple[str, str], Scope] = {
    ("embedded", PATCH): "patch",
    ("embedded", HEAD): "head",
    ("embedded", EVERY): "all",
    ("imagenet", PATCH): "large_patch",
    ("imagenet", HEAD): "large_head",
    ("imagenet", EVERY): "large_all",
    ("embedded", SHARED): "shared",
    ("imagenet", SHARED): "shared",
    ("embedded", PRIVATE): "private",
    ("imagenet", PRIVATE): "private",
}
"""Whose default rate a base's rows say something of."""


def kept_rates(network: str, row: str, seeds: int = SEEDS) -> dict[float, dict[Place, float]]:
    """rate -> (data set, seed) -> validation top-1, of what is kept in both files."""
    path = results_path("default_rates", quick=False)
    own: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
    found: dict[float, dict[Place, float]] = {}
    for one in [*read_sweep(seeds).values(), *own.values()]:
        name, _, rate = one["row"].rpartition(" at ")
        # What each task owns at 0.01 is the shared weights' row at the rate of the others here.
        twin = row == PRIVATE and one["row"] == f"{network}: {SHARED} at 0.003"
        if (name == f"{network}: {row}" or twin) and one["seed"] < seeds:
            place = (one["column"], one["seed"])
            found.setdefault(1e-2 if twin else float(rate), {})[place] = one["validation_top1"]
    return found


def table_rows() -> list[str]:
    """For docs/training.md: mean validation accuracy in % by rate, over sets and seeds."""
    rows = []
    for row in (PATCH, HEAD, EVERY, SHARED, PRIVATE):
        found = {network: kept_rates(network, row) for network in ("embedded", "imagenet")}
        for rate in sorted({rate for one in found.values() for rate in one}):
            texts = []
            for network, own in found.items():
                mean = 100 * float(np.mean(list(own[rate].values()))) if rate in own else None
                default = TrainConfig().rate(SCOPES[network, row]) == rate
                text = "-" if mean is None else f"{mean:.1f}"
                texts.append(f"**{text}**" if default else text)
            rows.append(f"| {row}, {rate:g} | {' | '.join(texts)} |")
    return rows


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
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    cells = list_cells(arguments.quick, seeds)
    how: dict[str, Any] = {"jobs": arguments.jobs, "quick": arguments.quick}
    records = run_cells("default_rates", cells, measure_transfer, **how)
    joint = list_joint_cells(arguments.quick, seeds)
    records |= run_cells("default_rates", joint, measure_joint, **how)
    show(records if arguments.quick else records | read_sweep(seeds), Console(width=110))


if __name__ == "__main__":
    main()
