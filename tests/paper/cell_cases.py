"""Cells that measure nothing, for tests of how cells are run; processes must be able to import it.

python cell_cases.py LOG: runs three cells, of which the last waits for the file LOG.go.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "paper"))
from cells import Cell, Record, results_path, run_cells

NAME = "trial"


def trial_cells(log: Path, count: int = 3, **settings) -> list[Cell]:
    """A cell for each of ``count`` seeds."""
    return [Cell("row", "column", seed, {"log": str(log), **settings}) for seed in range(count)]


def read_log(log: Path) -> list[int]:
    """The seeds that were run, in order."""
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def measure_seed(settings, seed) -> Record:
    """Says in the log that it ran."""
    with Path(settings["log"]).open("a") as file:
        file.write(f"{seed}\n")
    return {"test_top1": seed / 10}


def measure_waiting(settings, seed) -> Record:
    """Seed 2 says who it is and waits for a file."""
    log = Path(settings["log"])
    record = measure_seed(settings, seed)
    if seed == 2:
        log.with_suffix(".pid").write_text(str(os.getpid()))
        while not log.with_suffix(".go").exists():
            time.sleep(0.02)
    return record


def measure_failing(settings, seed) -> Record:
    """Seed 1 fails; later ones would take a minute."""
    record = measure_seed(settings, seed)
    if seed == 1:
        raise ValueError("this seed cannot be measured")
    if seed > 1:
        time.sleep(60)
    return record


def measure_beside_another_run(settings, seed) -> Record:
    """While it runs, another run keeps a cell of its own in the same file."""
    path = results_path(NAME, quick=True)
    document = {"experiment": NAME, "cells": {}}
    if path.exists():
        document = json.loads(path.read_text())
    document["cells"][f"another run's {seed}"] = {"test_top1": 0.5}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return measure_seed(settings, seed)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    import cell_cases  # not __main__: what measures must have a name that processes can import

    run_cells(NAME, trial_cells(Path(sys.argv[1])), cell_cases.measure_waiting, jobs=1, quick=True)
