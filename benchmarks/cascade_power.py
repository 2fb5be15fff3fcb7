"""How often the test certifies a cascade that costs nothing, and how often it errs.

In: trials. Out: two tables in Markdown, ``cascade_power.json``: for numbers of images, shares of
images on which cascade and reference disagree, and tolerances, the share of trials in which a
cascade of equal accuracy is certified, and in which one that loses exactly the tolerance is. The
second must not be above 5 % at 95 % confidence, but for the spread of so many trials.

    .venv/bin/python benchmarks/cascade_power.py [--trials 2000]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from patchdeploy.cascade.certify import betting_p_value
from patchdeploy.storage import write_atomic

RESULTS = Path(__file__).resolve().parent / "results" / "cascade_power.json"
IMAGES = (500, 1000, 2000, 5000, 10_000)
CELLS = ((0.01, 0.01), (0.03, 0.01), (0.05, 0.01), (0.01, 0.005), (0.03, 0.005), (0.05, 0.005))
"""(share that disagrees, tolerance)."""
LEVEL = 0.05


def main() -> None:
    """Simulate every cell, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = [
        {
            "disagreeing": share,
            "tolerance": tolerance,
            "images": count,
            "certified_at_equal_accuracy": run(count, share, 0.0, tolerance, options.trials),
            "certified_at_the_tolerance": run(count, share, tolerance, tolerance, options.trials),
        }
        for share, tolerance in CELLS
        for count in IMAGES
    ]
    document = {"trials": options.trials, "confidence": 1 - LEVEL, "rows": rows}
    write_atomic(options.results, json.dumps(document, indent=1).encode() + b"\n")
    for key in ("certified_at_equal_accuracy", "certified_at_the_tolerance"):
        print_table(rows, key)


def run(count: int, share: float, gap: float, tolerance: float, trials: int) -> float:
    """Share of trials that certify, for losses of mean ``gap`` of which ``share`` are not 0."""
    generator = np.random.default_rng([count, round(1e4 * share), round(1e4 * gap)])
    chances = [(share + gap) / 2, (share - gap) / 2, 1 - share]
    passed = 0
    for _ in range(trials):
        losses = generator.choice(np.array([1, -1, 0]), size=count, p=chances)
        passed += betting_p_value(losses, tolerance, LEVEL) <= LEVEL
    return passed / trials


def print_table(rows: list[dict[str, float]], key: str) -> None:
    """In Markdown, percent."""
    print(f"\n{key.replace('_', ' ')}, % of trials\n")
    print("| tolerance, points | disagreeing | " + " | ".join(f"{n:,}" for n in IMAGES) + " |")
    print("|---" * (2 + len(IMAGES)) + "|")
    for share, tolerance in CELLS:
        cells = [
            f"{100 * row[key]:.1f}"
            for row in rows
            if (row["disagreeing"], row["tolerance"]) == (share, tolerance)
        ]
        print(f"| {100 * tolerance:g} | {100 * share:g} % | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
