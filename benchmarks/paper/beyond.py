"""What the page shows that the paper has not: the cost of int8.

In: results of int8_gap.py. Out: one section of docs/paper.md, which says what was
not run. The goal of int8 is decided as every other claim is: at most 0.1 point below the float
patch, by a bound over seeds.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence

import int8_gap
from cells import SEEDS, Cell, Record, results_path, seeds_kept, spread
from experiment import Claim
from gaps import Gap, gap_of_pairs

GOAL = 0.001
"""Test accuracy that the exported file may be below the float patch (issue 4): 0.1 point."""
WAYS = {"plain": "exported as it is", "retuned": "re-tuned through int8", "through": "through int8"}


def describe_beyond() -> str:
    """The section."""
    lines = [
        "## Beyond the paper: int8",
        "",
        "What it is and when to use it is in [training](training.md); how small a patch gets is in "
        "[bytes of a patch](patch-bytes.md). The goal: the exported file is at most 0.1 point "
        "below the float patch. Below 0 is worse than the float patch. "
        "Patches learn at their default rates.",
        "",
    ]
    for network in ("embedded", "imagenet"):
        lines += describe_int8(network)
    return "\n".join(lines)


def describe_int8(network: str) -> list[str]:
    """A table of gaps to the float patch in points, and the goal's verdict for each way."""
    cells, records = read_int8(network)
    lines = [f"`int8_gap.py --network {network}`, {len(records)} of {len(cells)} runs:", ""]
    if not records:
        return [*lines, "Not run yet.", ""]
    columns = list(dict.fromkeys(f"{one['row']}, {one['column']}" for one in records))
    lines += ["| test, points | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    gaps = {way: int8_pairs(records, way) for way in WAYS}
    for way, shown in WAYS.items():
        texts = []
        for column in columns:
            own = spread([gap for (place, _), gap in gaps[way].items() if place == column])
            texts.append(f"{100 * own.mean:+.2f} ± {100 * own.deviation:.2f}")
        lines.append(f"| {shown} | " + " | ".join(texts) + " |")
    lines += ["", "| claim | gap | |", "|---|---|---|"]
    for way, shown in WAYS.items():
        gap: Gap = gap_of_pairs(gaps[way])
        lines.append(Claim(f"{shown}: as good as the float patch", gap, GOAL).markdown())
    return [*lines, ""]


def read_int8(network: str) -> tuple[list[Cell], list[Record]]:
    """The cells of as many seeds as were run for each, and the records there are."""
    name = "int8_gap" if network == "embedded" else f"int8_gap_{network}"

    def list_cells(seeds: int) -> list[Cell]:
        return int8_gap.list_cells(Namespace(network=network, quick=False, seeds=seeds))

    cells = list_cells(max(SEEDS, seeds_kept(name, list_cells)))
    return cells, kept_records(name, cells)


def int8_rows(network: str) -> list[str]:
    """For docs/training.md: float accuracy and each way's points above it, by task."""
    _, records = read_int8(network)
    rows = []
    for row, column in dict.fromkeys((one["row"], one["column"]) for one in records):
        mine = [one for one in records if (one["row"], one["column"]) == (row, column)]
        whole = spread([one["float test"]["top1"] for one in mine])
        gaps = [spread(list(int8_pairs(mine, way).values())) for way in int8_gap.WAYS[1:]]
        texts = [f"{100 * one.mean:+.2f} ± {100 * one.deviation:.2f}" for one in gaps]
        rows.append(f"| {row}, {column} | {100 * whole.mean:.2f} | {' | '.join(texts)} |")
    return rows


def int8_pairs(records: Sequence[Record], way: str) -> dict[tuple[str, int], float]:
    """(task, seed) -> test accuracy of the exported file minus the float patch's."""
    return {
        (f"{one['row']}, {one['column']}", one["seed"]): one[f"{way} test"]["top1"]
        - one["float test"]["top1"]
        for one in records
    }


def kept_records(name: str, cells: Sequence[Cell]) -> list[Record]:
    """The records of ``cells`` that were run, in their order."""
    path = results_path(name, quick=False)
    kept = json.loads(path.read_text())["cells"] if path.exists() else {}
    return [kept[cell.key] for cell in cells if cell.key in kept]
