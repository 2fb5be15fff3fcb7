"""Transfer learning in small: Table 2 with Fig. 3, Table 3, Table 6, Fig. 9."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cell, by_place
from experiment import Claim, Experiment, Records, draw_bars, save_picture
from gaps import COMPARABLE, gap_of_pairs, paired_gap
from notes import note_table2, note_table3_detector, note_table3_random, note_table6
from transfer_cell import ALL, measure_transfer

LAST, SB, DW = "head", "scale_bias", "depthwise"
ROWS: Mapping[str, Any] = {
    "last layer": [LAST],
    "S/B, random last layer": [SB],
    "S/B + last layer": [SB, LAST],
    "DW + last layer": [DW, LAST],
    "S/B + DW + last layer": [SB, DW, LAST],
    "all weights": ALL,
}
RATES: Mapping[str, float] = {
    "last layer": 0.003,
    "S/B, random last layer": 0.01,
    "S/B + last layer": 0.01,
    "DW + last layer": 0.01,
    "S/B + DW + last layer": 0.01,
    "all weights": 3e-4,
}
"""Learning rates of the ImageNet backbone: the best mean validation accuracy over both data sets in
``fig9`` (a test compares). Rows with DW were not swept; they have the rate of S/B."""
DATASETS = ("digits", "fashion", "surfaces")
FULL = {"network": "imagenet", "images": 1000, "tests": 1000, "px": 64, "epochs": 4, "batch": 32}
QUICK = {"network": "embedded", "images": 96, "tests": 100, "px": 32, "epochs": 1, "batch": 32}


def _grid(
    common: Mapping[str, Any], rows: Mapping[str, Any], datasets: Sequence[str], seeds: int
) -> list[Cell]:
    """A cell for each data set, row and seed; ``rows`` are (kinds, statistics, rate)."""
    return [
        Cell(
            row,
            dataset,
            seed,
            {**common, "dataset": dataset, "kinds": kinds, "statistics": how, "rate": rate},
        )
        for dataset in datasets
        for row, (kinds, how, rate) in rows.items()
        for seed in range(seeds)
    ]


def table2_cells(quick: bool, seeds: int) -> list[Cell]:
    """Every row of ROWS on every data set."""
    common = QUICK if quick else FULL
    rows = {row: (kinds, "frozen", RATES[row]) for row, kinds in ROWS.items()}
    return _grid(common, rows, DATASETS[:1] if quick else DATASETS, seeds)


def table2_claims(records: Records) -> list[Claim]:
    """Section 5.2."""
    pairs = (
        ("S/B + last layer beats the last layer alone", "S/B + last layer", "last layer"),
        ("S/B + last layer beats S/B alone", "S/B + last layer", "S/B, random last layer"),
        ("DW + last layer beats the last layer alone", "DW + last layer", "last layer"),
        ("All weights beat S/B + last layer", "all weights", "S/B + last layer"),
    )
    comparable = "S/B with a random last layer is comparable to the last layer alone or better"
    random_last = paired_gap(records, "S/B, random last layer", "last layer")
    return [
        *(Claim(text, paired_gap(records, high, low)) for text, high, low in pairs),
        Claim(comparable, random_last, COMPARABLE),
    ]


def draw_figure3(records: Records, path: Path) -> None:
    """Accuracy against the number of values trained, a line for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = by_place(records, "test_top1")
    sizes = {record["row"]: record["parameters"] for record in records.values()}
    columns = list(dict.fromkeys(record["column"] for record in records.values()))
    drawing, panels = plt.subplots(
        1, len(columns), figsize=(3.6 * len(columns), 3.4), dpi=110, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = plt.get_cmap("viridis")
    for column, axes in zip(columns, panels[0], strict=True):
        for k, row in enumerate(ROWS):
            if (row, column) in found:
                one = found[(row, column)]
                axes.errorbar(
                    sizes[row], 100 * one.mean, 100 * one.deviation, fmt="o", capsize=2, ms=6,
                    color=colours(0.08 + 0.84 * k / (len(ROWS) - 1)), label=row,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_title(column, loc="left", fontsize=10)
        axes.set_xlabel("values trained")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("test top-1, %")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_picture(drawing, path)


TABLE2 = Experiment(
    name="table2",
    title="Table 2 and Fig. 3: accuracy against the number of parameters trained",
    setup=(
        "MobileNetV2 1.0 with an ImageNet backbone at 64 px, 1,000 training images a task, four "
        "epochs, frozen statistics. The paper used Inception V3 for Table 2 (no public ImageNet "
        "weights of it are within this project's reach) and MobileNetV2 for Fig. 3."
    ),
    paper="""| Inception V3 | Flowers | Cars | Aircraft | parameters |
|---|---|---|---|---|
| last layer | 84.5 | 55 | 45.9 | 208K / 402K / 205K |
| S/B + last layer | 90.4 | 81 | 70.7 | 244K / 437K / 241K |
| S/B only (random last) | 79.5 | 33 | 52.3 | 36K |
| all | 93.3 | 92.3 | 87.3 | 25M |

Fig. 3, MobileNetV2: the paper gives this as a plot without numbers; its text says: "The \
effectiveness of small model patches over fine-tuning only the last layer is again clear. \
Combining model patches and fine-tuning results in a synergistic effect." (section 5.2). Its only \
numbers of MobileNetV2 on the transfer sets are in its Table 6, below.""",
    cells=table2_cells,
    measure=measure_transfer,
    claims=table2_claims,
    draw=draw_figure3,
    note=note_table2,
)


def table3_random_cells(quick: bool, seeds: int) -> list[Cell]:
    """Frozen random convolutions. Their statistics are measured on the training images: with
    mu = 0 and var = 1 the signal of a random network dies out.
    """
    common = {**(QUICK if quick else FULL), "network": "random", "px": 32}
    if not quick:
        common |= {"images": 1500, "epochs": 10}
    rows: Mapping[str, Any] = {
        "last layer": (["statistics", LAST], "reestimated", 0.1),
        "S/B + last layer": ([SB, LAST], "reestimated", 0.02),
        "S/B, random last layer": ([SB], "reestimated", 0.02),
        "all weights": (ALL, "batch", 3e-3),
    }
    return _grid(common, rows, DATASETS[:1] if quick else DATASETS, seeds)


def table3_claims(records: Records) -> list[Claim]:
    """Sections 5.1 and 5.2."""
    pairs = (
        ("S/B + last layer beats the last layer alone", "S/B + last layer", "last layer"),
        ("S/B + last layer beats S/B alone", "S/B + last layer", "S/B, random last layer"),
        ("All weights beat S/B + last layer", "all weights", "S/B + last layer"),
    )
    return [Claim(text, paired_gap(records, high, low)) for text, high, low in pairs]


def _bars(records: Records, path: Path) -> None:
    cells = [Cell(one["row"], one["column"], one["seed"]) for one in records.values()]
    draw_bars(records, cells, path)


TABLE3_RANDOM = Experiment(
    name="table3_random",
    title="Table 3, right: scales and biases over frozen random convolutions",
    setup=(
        "MobileNetV2 0.5 with random weights at 32 px, 1,500 training images, ten epochs. "
        "Statistics are measured on the training images: with mu = 0 and var = 1 the signal of "
        "torchvision's random network dies out (its logits differ by 1e-9 between images). All "
        "weights train with batch statistics."
    ),
    paper="""| random -> ImageNet | top-1 | parameters |
|---|---|---|
| last layer | 0 | 1.31M |
| S/B + last layer | 20 | 1.35M |
| S/B only | 2.3 | 34K |
| all | 71.8 | 3.5M |""",
    cells=table3_random_cells,
    measure=measure_transfer,
    claims=table3_claims,
    draw=_bars,
    note=note_table3_random,
)


def table3_detector_cells(quick: bool, seeds: int) -> list[Cell]:
    """A detector's feature extractor, re-purposed. The rates of "all weights" and "S/B + last
    layer" are those with the best validation accuracy in probes.py; the others were not swept.
    """
    common = {**QUICK, "network": "quick detector", "px": 96}
    if not quick:
        common = {**FULL, "network": "detector", "images": 1000, "epochs": 6}
    rows: Mapping[str, Any] = {
        "last layer": ([LAST], "frozen", 0.1),
        "S/B + last layer": ([SB, LAST], "frozen", 0.01),
        "S/B, random last layer": ([SB], "frozen", 0.01),
        "all weights": (ALL, "frozen", 2e-3),
    }
    return _grid(common, rows, ("surfaces",) if quick else ("digits", "surfaces"), seeds)


TABLE3_DETECTOR = Experiment(
    name="table3_detector",
    title="Table 3, left: a detector's feature extractor turned into a classifier",
    setup=(
        "The backbone (MobileNetV2 0.35) of an SSDLite that `train_detector.py` trained on scenes "
        "of garments at 96 px, re-purposed at 64 px for classes that it never saw: digits are the "
        "near task, surfaces the far one."
    ),
    paper="""| COCO -> ImageNet | top-1 | parameters |
|---|---|---|
| last layer | 29.2 | 1.31M |
| S/B + last layer | 47.8 | 1.35M |
| S/B only | 6.4 | 34K |
| all | 71.8 | 3.5M |""",
    cells=table3_detector_cells,
    measure=measure_transfer,
    claims=table3_claims,
    draw=_bars,
    note=note_table3_detector,
)


def table6_cells(quick: bool, seeds: int) -> list[Cell]:
    """What statistics do to the last layer, and with scales and biases beside it."""
    common = QUICK if quick else FULL
    head, both = RATES["last layer"], RATES["S/B + last layer"]
    rows: Mapping[str, Any] = {
        "last layer": ([LAST], "frozen", head),
        "+ statistics of the new images": (["statistics", LAST], "reestimated", head),
        "+ learned scales and biases": ([SB, LAST], "reestimated", both),
        "learned scales and biases, frozen statistics": ([SB, LAST], "frozen", both),
        "learned scales and biases, batch statistics": ([SB, LAST], "batch", both),
    }
    return _grid(common, rows, DATASETS[:1] if quick else DATASETS, seeds)


def table6_claims(records: Records) -> list[Claim]:
    """Appendix B.1."""
    rows = [
        "last layer",
        "+ statistics of the new images",
        "+ learned scales and biases",
        "learned scales and biases, frozen statistics",
        "learned scales and biases, batch statistics",
    ]
    pairs = (
        ("New statistics with the last layer alone worsen it", rows[0], rows[1]),
        ("Learned scales and biases beat the last layer", rows[2], rows[0]),
        ("(ours) On little data frozen statistics beat the batch's", rows[3], rows[4]),
    )
    return [Claim(text, paired_gap(records, high, low)) for text, high, low in pairs]


TABLE6 = Experiment(
    name="table6",
    title="Table 6: statistics of the normalisations",
    setup="As Table 2. Statistics are re-estimated on the training images before training.",
    paper="""| MobileNetV2 | Flowers | Aircraft | Cars | CIFAR-100 |
|---|---|---|---|---|
| last layer | 80.2 | 43.3 | 51.4 | 45.0 |
| + batch-norm statistics | 79.8 | 38.3 | 43.6 | 57.2 |
| + scales and biases | 86.9 | 65.6 | 75.9 | 74.9 |""",
    cells=table6_cells,
    measure=measure_transfer,
    claims=table6_claims,
    draw=_bars,
    note=note_table6,
)

SWEEP = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SWEEP_ROWS = ("last layer", "S/B, random last layer", "S/B + last layer", "all weights")


def fig9_cells(quick: bool, seeds: int) -> list[Cell]:
    """Every rate for every method."""
    common = {**(QUICK if quick else FULL), "statistics": "frozen"}
    if not quick:
        common |= {"images": 600, "tests": 500}
    return [
        Cell(
            f"{row} at {rate:g}",
            dataset,
            seed,
            {**common, "dataset": dataset, "kinds": ROWS[row], "rate": rate},
        )
        for dataset in (DATASETS[:1] if quick else DATASETS[:2])
        for row in SWEEP_ROWS
        for rate in (SWEEP[1::3] if quick else SWEEP)
        for seed in range(seeds)
    ]


def fig9_claims(records: Records) -> list[Claim]:
    """The best rate of patches is larger than that of all weights (in factors of ten)."""
    patch, every = (best_rates(records, row) for row in ("S/B + last layer", "all weights"))
    gaps = {place: math.log10(patch[place] / every[place]) for place in patch.keys() & every.keys()}
    text = "Patches like a larger rate than all weights (factors of ten)"
    return [Claim(text, gap_of_pairs(gaps), unit=1.0)]


def best_rates(records: Records, row: str) -> dict[tuple[str, int], float]:
    """(column, seed) -> the rate with the best validation accuracy; the smallest of equal ones.

    A sweep that lacks a rate which another one has is left out.
    """
    swept: dict[tuple[str, int], dict[float, float]] = {}
    rates = set()
    for record in records.values():
        name, _, rate = record["row"].rpartition(" at ")
        rates.add(float(rate))
        if name == row:
            own = swept.setdefault((record["column"], record["seed"]), {})
            own[float(rate)] = record["validation_top1"]
    return {
        place: max(sorted(own), key=own.__getitem__)
        for place, own in swept.items()
        if own.keys() == rates
    }


def draw_figure9(records: Records, path: Path) -> None:
    """Accuracy against the learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = by_place(records, "test_top1")
    columns = list(dict.fromkeys(column for _, column in found))
    drawing, panels = plt.subplots(
        1, len(columns), figsize=(4.2 * len(columns) + 1.8, 3.4), dpi=110, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, axes in zip(columns, panels[0], strict=True):
        for k, row in enumerate(SWEEP_ROWS):
            points = sorted(
                (float(name.rpartition(" at ")[2]), one)
                for (name, where), one in found.items()
                if where == column and name.startswith(f"{row} at ")
            )
            axes.errorbar(
                [rate for rate, _ in points],
                [100 * one.mean for _, one in points],
                [100 * one.deviation for _, one in points],
                marker="o", ms=4, capsize=2, label=row,
                color=plt.get_cmap("viridis")(0.08 + 0.84 * k / (len(SWEEP_ROWS) - 1)),
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("learning rate (Adam)")
        axes.set_title(column, loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("test top-1, %")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_picture(drawing, path)


FIG9_PAPER = (
    'The paper gives this as a plot without numbers; its text says: "Note how full fine-tuning '
    "requires learning rate to be small, while bias/scale tuning requires learning rate to be "
    'large enough" (Fig. 9), "the accuracy grows as learning rate increases" for small patches, '
    'and "fine-tuning a patch that includes the last layer is more stable w.r.t. the learning rate '
    'than full fine-tuning or fine-tuning only the scale-and-bias patch" (section 5.2). The rates '
    'of Fig. 9 are not in its text; those of Fig. 3 are "from 0.0045 to 0.45 with factor 3".'
)
"""Quoted from the captions and section 5.2, which is all that the paper's text has."""

FIG9 = Experiment(
    name="fig9",
    title="Fig. 9: accuracy against the learning rate",
    setup=(
        "As Table 2 with 600 training images. Adam here, RMSProp in the paper: the orders of the "
        "rates compare, not their values. Tables 2 and 6 run at the rates with the best mean "
        "validation accuracy in this sweep; their rows with DW, which was not swept, have that of "
        "S/B. Tables 3, 4 and 5 start from other networks: two rows of Table 3, left, run at the "
        "best of a few rates on validation images, all other rates there were not swept."
    ),
    paper=FIG9_PAPER,
    cells=fig9_cells,
    measure=measure_transfer,
    claims=fig9_claims,
    draw=draw_figure9,
)
EXPERIMENTS = (TABLE2, TABLE3_RANDOM, TABLE3_DETECTOR, TABLE6, FIG9)
