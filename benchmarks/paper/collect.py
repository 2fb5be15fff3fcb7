#!/usr/bin/env python
"""Write docs/paper.md: every table and figure in small beside the paper's own.

In: benchmarks/paper/results and the fragments folding_1d.md and toy_2d.md. Out: docs/paper.md. A
cell that was not run says so; a fragment that is not there is an error; no figure is written by
hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from beyond import describe_beyond
from cells import SEEDS, Cell, results_path
from experiment import Experiment, Records
from run import EXPERIMENTS, PICTURES, planned_cells, show

from patchdeploy.storage import write_atomic

OUT = Path("docs/paper.md")
FRAGMENTS = ("folding_1d", "toy_2d")
"""Pages that scripts of these names leave beside their pictures."""
OPENING = """# The paper in small

*K for the Price of 1* (ICLR 2019) trained on ImageNet, Places and five transfer sets on GPU
clusters. Here every table and figure that can be shown in small is regenerated on real images that
come with Python packages, on two CPU cores. What compares is the ordering of the methods and the
gaps between them, not the figures themselves.

Each claim is decided by a paired difference. Each seed gives its mean over the columns, n seeds
give a mean ± a standard deviation, and Student's t gives a one-sided 95 % bound. A claim *holds*
where the bound is above 0 (or above the shortfall that the claim allows), *does not hold* where the
opposite bound is below it, and is *undecided* otherwise. A column that says the opposite is named.
Seeds draw the training images, the heads and the orders; the test images are the same for all, so a
verdict is one about these data sets. "n = 9 might decide": at this mean and this deviation, that
many seeds would. Tables have three seeds; an n above 3 is a second look at what three left
undecided, and its bound a little less sure than 95 %. The rates of Table 3, left, were swept (on
validation images) after a first look at its test accuracies; its section says so.

    make paper                                  # all but the last two; what is there stays
    make paper-quick                            # that everything runs, in minutes: no results
    python benchmarks/paper/run.py all          # tables; what is there is not run again
    python benchmarks/paper/folding_1d.py       # section 4
    python benchmarks/paper/toy_2d.py           # appendix A
    python benchmarks/paper/probes.py           # reasons that the notes give
    python benchmarks/paper/statistics_probe.py # ... of Table 6
    python benchmarks/paper/classes_probe.py    # ... of Tables 2 and 3 (right)
    python benchmarks/paper/collect.py          # this page
    python benchmarks/paper/int8_gap.py --network embedded   # and imagenet: "Beyond the paper"
    python benchmarks/paper/default_rates.py

To run a table again, delete its file in benchmarks/paper/results.

What it takes, by the clock, two cores of an AMD EPYC: section 4 and appendix A 131 s, the detector
that two threads train 311 s, the tables 3,905 s, the reasons of Table 3 (left) 301 s and of Table 6
389 s, in one go from a clone without results and with nothing else of weight running: 84 minutes.
The second detector's share of probes.py (372 s), classes_probe.py (1,782 s) and what toy_2d.py
probes at m = 8 (458 s; 231 s of a processor) came later and ran beside other work; the detector
that one thread trains was not timed in whole (about 400 s by its first epoch). Together that is 134
minutes, or less where nothing else runs. The tables and figures alone are in the 84; the rest asks
why some of them differ from the paper.

Accuracies are in % on test images that chose no rate, epoch or step; the best epoch is chosen on
15 % of the training images. Spread: standard deviation over seeds, each with other training images,
another head and another order.
"""


def main() -> None:
    """See the module."""
    write_atomic(OUT, make_page().encode())
    print(f"wrote {OUT}")


def make_page() -> str:
    """The whole page."""
    parts = [OPENING, *(describe(one) for one in EXPERIMENTS.values())]
    parts += [describe_beyond(), *read_fragments()]
    return "\n".join(part.strip() + "\n" for part in parts)


def read_fragments() -> list[str]:
    """The pages of FRAGMENTS.

    Exits with a message where one is not there, so that no section is lost in silence.
    """
    missing = [name for name in FRAGMENTS if not (PICTURES / f"{name}.md").exists()]
    if missing:
        sys.exit(
            f"error: {PICTURES / missing[0]}.md is not there; the page has a section of it; run: "
            f"python benchmarks/paper/{missing[0]}.py"
        )
    return [(PICTURES / f"{name}.md").read_text() for name in FRAGMENTS]


def describe(experiment: Experiment) -> str:
    """One section of the page."""
    cells = planned_cells(experiment, SEEDS, quick=False)
    records, device = read_results(experiment, cells)
    lines = [f"## {experiment.title}", "", experiment.setup, ""]
    if not records:
        return "\n".join([*lines, "Not run yet.", "", "The paper:", "", experiment.paper])
    missing = len(cells) - len(records)
    if missing:
        lines += [f"**{missing} of {len(cells)} runs are still missing.**", ""]
    lines += [show(experiment, records, cells), "", "The paper:", "", experiment.paper, ""]
    lines += ["| claim | gap | |", "|---|---|---|"]
    lines += [claim.markdown() for claim in experiment.claims(records)]
    if (PICTURES / f"{experiment.name}.png").exists():
        lines += ["", f"![{experiment.title}](paper/{experiment.name}.png)"]
    lines.append("")
    if note := experiment.note(records):
        lines += [note, ""]
    lines.append(f"{describe_runs(records)}; {device}.")
    return "\n".join(lines)


def describe_runs(records: Records) -> str:
    """How many, how long, and which table some are taken from."""
    seconds = sum(record["seconds"] for record in records.values())
    copied = [one["copied_from"] for one in records.values() if "copied_from" in one]
    shown = (
        f"{len(records) - len(copied)} runs of one thread, {seconds / 60:.0f} minutes in sum by "
        "the clock"
    )
    for name in dict.fromkeys(copied):
        shown += f", and {copied.count(name)} that are also cells of `{name}`"
    return shown


def read_results(experiment: Experiment, cells: list[Cell]) -> tuple[Records, str]:
    """The records of ``cells`` that are there, and the device that they came from."""
    path = results_path(experiment.name, quick=False)
    if not path.exists():
        return {}, ""
    document = json.loads(path.read_text())
    kept = document["cells"]
    records = {cell.key: kept[cell.key] for cell in cells if cell.key in kept}
    device = document.get("device", {})
    versions = ", ".join(f"{key} {value}" for key, value in device.get("versions", {}).items())
    return records, ", ".join(one for one in (device.get("cpu", ""), versions) if one)


if __name__ == "__main__":
    main()
