#!/usr/bin/env python
"""Whether a learned last layer beside S/B is worth more where there are more classes.

The paper's gap between the two is larger than ours (Table 2, Table 3 right), and its tasks have a
hundred or a thousand classes, ours ten. In: the cells of both tables. Out:
results/classes_probe.json, and a line for each row and column; notes of docs/paper.md use it. All
three data sets together are one task of 30 classes, as many images of each class as in the table.
Each set alone, ten classes, is trained for three times the epochs of the table, so that both take
the same number of steps and differ in the classes.

    python benchmarks/paper/classes_probe.py [--seeds 3] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from cells import SEEDS, Cell, Record, run_cells
from notes import BOTH, CLASSES_PROBE, MANY_CLASSES, PATCH
from probes import show
from transfer_cell import draw_parts, train_and_test
from transfer_tables import DATASETS, table2_cells, table3_random_cells

from patchdeploy.data import ImageDataset


def list_cells(seeds: int) -> list[Cell]:
    """Both rows of both tables, over each set alone and over all together."""
    found = []
    for cell in (*table2_cells(False, seeds), *table3_random_cells(False, seeds)):
        if cell.row not in (BOTH, PATCH):
            continue
        own, row = cell.settings, f"{cell.settings['network']}: {cell.row}"
        longer = {**own, "dataset": [cell.column], "epochs": len(DATASETS) * own["epochs"]}
        found.append(Cell(row, cell.column, cell.seed, longer))
        if cell.column == DATASETS[0]:
            together = {**own, "dataset": list(DATASETS)}
            found.append(Cell(row, MANY_CLASSES, cell.seed, together))
    return found


def measure_classes(settings: Mapping[str, Any], seed: int) -> Record:
    """Settings: as `measure_transfer`; ``dataset`` is a list, images and tests are of each."""
    parts = [draw_parts(name, settings, seed) for name in settings["dataset"]]
    train, test = (join(each) for each in zip(*parts, strict=True))
    return train_and_test(settings, seed, train, test)


def join(parts: Sequence[ImageDataset]) -> ImageDataset:
    """One task of all classes of all sets."""
    classes = tuple(f"{part.name}/{name}" for part in parts for name in part.classes)
    starts = np.cumsum([0, *(len(part.classes) for part in parts)])
    labels = [part.labels + start for part, start in zip(parts, starts, strict=False)]
    images = [image for part in parts for image in part.images]
    return ImageDataset(
        "-".join(part.name for part in parts), images, np.concatenate(labels), classes
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    cells = list_cells(arguments.seeds)
    show(run_cells(CLASSES_PROBE, cells, measure_classes, jobs=arguments.jobs, quick=False))


if __name__ == "__main__":
    main()
