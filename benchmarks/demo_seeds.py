"""The demo's accuracies over several seeds: means, spreads, and README's table of them.

In: seeds. Out: a demo folder a seed, ``demo_seeds.json`` with every accuracy and its device, and
the table in Markdown on the terminal. A seed that has been run is read from its folder, so that a
stopped run can be resumed. The images of each split are the same for every seed; what differs is
the head's first values, the order of the images and their augmentation.

    .venv/bin/python benchmarks/demo_seeds.py [--seeds 0,1,2] [--out out/demo_seeds]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

RESULTS = Path(__file__).resolve().parent / "results" / "demo_seeds.json"
METHODS = ("head", "patch", "all")
INT8_RUNTIME = "litert"


def main(arguments: Sequence[str]) -> int:
    """Run the seeds that have no result yet, keep all, print the table; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated integers, two or more")
    parser.add_argument("--out", type=Path, default=Path("out/demo_seeds"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="that it runs: no results")
    options = parser.parse_args(arguments)
    seeds = sorted({int(seed) for seed in options.seeds.split(",")})
    if len(seeds) < 2:
        parser.error(f"--seeds {options.seeds} has {len(seeds)} seed; a spread needs two or more")
    runs = {seed: run_seed(options.out / str(seed), seed, options.quick) for seed in seeds}
    document = collect(runs) | {"device": describe_device()}
    write_atomic(options.results, json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")
    print("\n".join(table_lines(document)))
    return 0


def run_seed(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """What ``patchdeploy demo`` prints as JSON; from its folder where it ran before."""
    kept = folder / "demo.json"
    if not kept.exists():
        command = [sys.executable, "-m", "patchdeploy", "demo", "--out", str(folder), "--json"]
        command += ["--seed", str(seed), *(["--quick"] if quick else [])]
        print(f"seed {seed}", file=sys.stderr)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        write_atomic(kept, done.stdout)
    found: dict[str, Any] = json.loads(kept.read_bytes())
    return found


def collect(runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Top-1 in percent of every (task, method, runtime, px), a value a seed, and the int8 drops."""
    cells: dict[str, list[float]] = {}
    images: dict[str, int] = {}
    for run in runs.values():
        for row in run["accuracies"]:
            key = f"{row['task']}/{row['method']}/{row['runtime']}/{row['resolution']}"
            cells.setdefault(key, []).append(round(100 * row["top1"], 2))
            images[row["task"]] = row["images"]
    return {
        "seeds": sorted(runs),
        "images": images,
        "top1_percent": cells,
        "int8_drop_points": [round(100 * run["int8_drop"], 2) for run in runs.values()],
        "seconds": [round(sum(run["seconds"].values())) for run in runs.values()],
    }


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation over the seeds."""
    return f"{fmean(values):.1f} ± {stdev(values):.1f}"


def table_lines(document: dict[str, Any]) -> list[str]:
    """README's rows: a task each, float methods at the largest resolution, int8 at each."""
    cells = document["top1_percent"]
    sides = sorted({int(key.rsplit("/", 1)[1]) for key in cells})
    lines = [
        f"| task | test images | last layer, {sides[-1]} px | patch, {sides[-1]} px | "
        f"all weights, {sides[-1]} px | int8 patch at {' / '.join(map(str, sides))} px |",
        "|---|---|---|---|---|---|",
    ]
    for task, count in document["images"].items():
        floats = [spread(cells[f"{task}/{method}/float/{sides[-1]}"]) for method in METHODS]
        int8 = [spread(cells[f"{task}/patch/{INT8_RUNTIME}/{px}"]) for px in sides]
        lines.append(f"| {task} | {count:,} | {' | '.join(floats)} | {' / '.join(int8)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
