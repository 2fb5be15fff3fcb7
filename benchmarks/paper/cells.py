"""Cells of a table: each is one training run, kept as soon as it is done.

In: a list of `Cell` and the function that measures one. Out: ``results/<experiment>.json``, where a
cell that is there is not run again, so a table goes on where it was stopped. Cells run in processes
of one thread each: networks this small lose more to waiting for a second thread than they gain.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

RESULTS = Path(__file__).resolve().parent / "results"
SEEDS = 3
"""Of every table; some have more (see `seeds_kept`)."""
Record = dict[str, Any]
_console = Console(stderr=True)


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        row, column: where it stands in the table.
        seed: of the images chosen, the head, the order.
        settings: what the measuring function needs; plain JSON values.
    """

    row: str
    column: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the results file; other settings make another cell."""
        wanted = json.dumps(dict(self.settings), sort_keys=True)
        return f"{self.row} | {self.column} | {self.seed} | {wanted}"


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over seeds, and how many there are."""

    mean: float
    deviation: float
    count: int

    def percent(self) -> str:
        """As a table shows it."""
        if self.count == 0:
            return "not run"
        if self.count == 1:
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} ± {100 * self.deviation:.1f}"


def results_path(experiment: str, quick: bool) -> Path:
    """Where an experiment's cells are kept; quick ones are no results and stay out of the way."""
    if quick:
        return Path("out/paper") / f"{experiment}.quick.json"
    return RESULTS / f"{experiment}.json"


def run_cells(
    experiment: str,
    cells: Sequence[Cell],
    measure: Callable[[Mapping[str, Any], int], Record],
    *,
    jobs: int,
    quick: bool,
    alike: Sequence[str] = (),
) -> dict[str, Record]:
    """Measure the cells that are missing; returns the records of ``cells`` by key.

    A cell that one of the experiments ``alike``, which have the same ``measure``, has run with the
    same settings in the same column is copied from there.
    ``measure(settings, seed)`` runs in a process of its own and must be importable. An error in one
    cell, Ctrl-C or a kill loses only the cells that were running.
    """
    path = results_path(experiment, quick)
    for cell in missing_cells(experiment, cells, quick):
        if found := _copy(cell, alike, quick):
            _keep(path, experiment, cell.key, found)
    records: dict[str, Record] = dict(_read(path, experiment)["cells"])
    missing = missing_cells(experiment, cells, quick)
    # By seed, so that a run that is stopped has whole tables of fewer seeds.
    missing.sort(key=lambda cell: cell.seed)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with (
        Progress(*columns, console=_console, disable=not _console.is_terminal) as progress,
        _open_pool(jobs) as pool,
    ):
        bar = progress.add_task(experiment, total=len(missing))
        waiting = {pool.submit(_timed, measure, cell): cell for cell in missing}
        for done in as_completed(waiting):
            cell = waiting[done]
            records[cell.key] = _place(cell) | _result(done, experiment, cell)
            _keep(path, experiment, cell.key, records[cell.key])
            progress.update(bar, advance=1, description=f"{experiment}: {cell.row}, {cell.column}")
            if not _console.is_terminal:
                top1 = records[cell.key].get("test_top1")
                shown = "" if top1 is None else f" {100 * top1:.1f} %"
                print(f"{experiment}: {cell.row} | {cell.column} | {cell.seed}{shown}", flush=True)
    return {cell.key: records[cell.key] for cell in cells}


def missing_cells(experiment: str, cells: Sequence[Cell], quick: bool) -> list[Cell]:
    """Those of ``cells`` that no run has kept yet."""
    kept = _read(results_path(experiment, quick), experiment)["cells"]
    return [cell for cell in cells if cell.key not in kept]


def seeds_kept(experiment: str, list_cells: Callable[[int], Sequence[Cell]]) -> int:
    """With how many seeds every cell was run; ``list_cells(seeds)`` are the cells of so many."""
    count = 0
    while not missing_cells(experiment, list_cells(count + 1), quick=False):
        count += 1
    return count


@contextmanager
def _open_pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, and at once where the block ends by an error or Ctrl-C.

    The executor alone would go on through all waiting cells and drop their results; after a kill
    its processes would stay. Each process here holds the reading end of a pipe that nobody writes
    to, and ends when the other end is closed.
    """
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_end_with_parent, initargs=(reader,)
    ) as pool:
        try:
            yield pool
        except BaseException:
            writer.close()
            raise


def _end_with_parent(reader: Connection) -> None:
    """In a process of the pool: leave Ctrl-C to the parent, end when its pipe does."""

    def watch() -> None:
        reader.poll(None)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


def _copy(cell: Cell, alike: Sequence[str], quick: bool) -> Record | None:
    """The record of the same run in another table; it took no time here."""
    place = _place(cell)
    for name in alike:
        for record in _read(results_path(name, quick), name)["cells"].values():
            if all(record[key] == place[key] for key in ("column", "seed", "settings")):
                return {**record, **place, "seconds": 0.0, "copied_from": name}
    return None


def _place(cell: Cell) -> Record:
    return {
        "row": cell.row,
        "column": cell.column,
        "seed": cell.seed,
        "settings": dict(cell.settings),
    }


def _result(done: Future[Record], experiment: str, cell: Cell) -> Record:
    """What a cell measured; its error says which cell it was."""
    try:
        return done.result()
    except Exception as error:
        error.add_note(f"in {experiment}, cell {cell.key}; the cells before it are kept")
        raise


def _keep(path: Path, experiment: str, key: str, record: Record) -> None:
    """Add one record to what the file holds now: another run may have added its own."""
    device = describe_device()
    document = _read(path, experiment)
    document["cells"][key] = record
    document["device"] = device
    write_atomic(path, (json.dumps(document, indent=1, sort_keys=True) + "\n").encode())


def _timed(measure: Callable[[Mapping[str, Any], int], Record], cell: Cell) -> Record:
    if torch := sys.modules.get("torch"):  # imported with what measures, where it needs it
        torch.set_num_threads(1)
    start = time.perf_counter()
    record = measure(cell.settings, cell.seed)
    return {**record, "seconds": round(time.perf_counter() - start, 1)}


def _read(path: Path, experiment: str) -> dict[str, Any]:
    if not path.exists():
        return {"experiment": experiment, "cells": {}}
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def spread(values: Sequence[float]) -> Spread:
    """Over seeds."""
    if not values:
        return Spread(0.0, 0.0, 0)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return Spread(statistics.fmean(values), deviation, len(values))


def by_place(records: Mapping[str, Record], figure: str) -> dict[tuple[str, str], Spread]:
    """(row, column) -> spread of ``figure`` over seeds."""
    found: dict[tuple[str, str], list[float]] = {}
    for record in records.values():
        found.setdefault((record["row"], record["column"]), []).append(record[figure])
    return {place: spread(values) for place, values in found.items()}


OWN_STATISTICS = ", own statistics"
"""What the name of a row ends in that shows ``top1_own_statistics`` of the row before it."""


def by_column(records: Mapping[str, Record]) -> dict[str, Record]:
    """A record for each column of a run that measured several (``top1``: column -> accuracy).

    A run whose statistics were measured again when it was trained gives two rows.
    """
    single = {}
    for key, record in records.items():
        for figure, ending in (("top1", ""), ("top1_own_statistics", OWN_STATISTICS)):
            for column, top1 in record.get(figure, {}).items():
                row = record["row"] + ending
                own = {**record, "row": row, "column": column, "test_top1": top1}
                single[f"{key} | {column}{ending}"] = own
    return single


def import_beside(name: str) -> Any:
    """A module of this folder, also from a process that was started elsewhere."""
    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return __import__(name)
