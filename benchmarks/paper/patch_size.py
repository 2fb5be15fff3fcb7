"""Accuracy against coded bytes: how small a patch gets, and what helps.

In: a network, packaged images. Out: for patches that are rounded after training, trained through
rounding, trained with a size penalty, with both, and with steps chosen per tensor: bytes of the
coded deltas (the head not counted) and accuracy on the DECODED values; the smallest patch of each
way that validation images accept, and its test accuracy; a plot.
Why: methods.md, section 6: the goal for MobileNetV2 1.0 is 16 kB at 0.1 point.

    python benchmarks/paper/patch_size.py [--network embedded|imagenet] [--dataset fashion]
        [--seeds 3] [--jobs 2] [--out docs/paper] [--quick]

Every choice is made on validation images; test images report it. Leaves
results/patch_size_<network>.json and <out>/patch_size_<network>.png. Run again, it goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from cells import Cell, Record, Spread, run_cells, spread
from networks import open_network
from rich.console import Console
from rich.table import Table
from transfer_cell import draw

from patchdeploy.base import Base
from patchdeploy.data import load_packaged, split
from patchdeploy.patch import Patch
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.compact_code import (
    Steps,
    code_patch,
    count_bytes,
    part_of,
    uniform_steps,
)
from patchdeploy.training.compact_steps import Measure, choose_steps, measure_on

AFTER, THROUGH, PENALTY, BOTH = "rounded after", "through rounding", "penalty", "penalty + rounding"
GREEDY = "chosen steps"
STEPS = tuple(2.0**-k for k in range(5, -1, -1))
DROPS = (0.0, 0.01)
"""Validation accuracy that greedy steps may give up, against the patch before coding."""
GREEDY_WEIGHTS = (0.0, 1.0)
"""Size penalties of the patches that greedy steps are chosen for: it takes minutes each."""
ALLOWED_DROP = 0.001
VALIDATION_SHARE = 0.2
NETWORK_PX = {"embedded": 32, "imagenet": 64}
COLOURS = ("#8a8f98", "#7fb2d9", "#c8693a", "#1b6ca8", "#2a2a2a", "#6a9a4a", "#b08fc8", "#d9b04a")


def list_cells(arguments: argparse.Namespace) -> list[Cell]:
    """One cell for each way to train, and seed."""
    quick = arguments.quick
    shared = {
        "network": arguments.network,
        "dataset": arguments.dataset,
        "images": 150 if quick else arguments.images,
        "tests": 100 if quick else 1000,
        "px": 32 if quick else arguments.px or NETWORK_PX[arguments.network],
        "epochs": 1 if quick else arguments.epochs,
        "batch": 64,
    }
    ways: list[tuple[str, float, float]] = [(AFTER, 0.0, 0.0)]
    ways += [(THROUGH, step, 0.0) for step in ((0.25,) if quick else (0.125, 0.25, 0.5))]
    ways += [(PENALTY, 0.0, weight) for weight in ((1.0,) if quick else (0.3, 1.0, 3.0))]
    both = ((0.25, 1.0),) if quick else ((0.25, 1.0), (0.5, 1.0), (0.25, 3.0), (0.5, 3.0))
    ways += [(BOTH, step, weight) for step, weight in both]
    return [
        Cell(way, f"step {step:g}, weight {weight:g}", seed, shared | settings)
        for seed in range(1 if quick else arguments.seeds)
        for way, step, weight in ways
        for greedy in [arguments.greedy and not quick and step == 0 and weight in GREEDY_WEIGHTS]
        for settings in [{"rounding_step": step, "size_penalty": weight, "greedy": greedy}]
    ]


def measure_sizes(settings: Mapping[str, Any], seed: int) -> Record:
    """Train once; code the patch with every step (one step if it was trained for one)."""
    base = open_network(settings["network"], seed, settings["px"])
    images, test = load_packaged(settings["dataset"])
    images, test = draw(images, settings["images"], seed), draw(test, settings["tests"], 0)
    train, held = split(images, (1 - VALIDATION_SHARE, VALIDATION_SHARE), seed=seed)
    step = settings["rounding_step"]
    config = TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        rounding_step=step,
        size_penalty=settings["size_penalty"],
        seed=seed,
    )
    patch = train_patch(
        base, train, config, validation=held, resolutions=[settings["px"]], quiet=True
    )
    on_held, on_test = measure_on(base, held), measure_on(base, test)
    own = {
        name: torch.tensor(value)
        for name, value in patch.tensors(settings["px"]).items()
        if part_of(base, name) != "head"
    }
    points = []
    for one in (step,) if step else STEPS:
        steps = uniform_steps(base, own, one)
        points.append(_point(base, patch, steps, f"step {one:g}", (on_held, on_test)))
    if settings["greedy"]:
        points += _greedy_points(base, patch, own, (on_held, on_test))
    return {
        "validation_top1": on_held(patch)[0],
        "test_top1": on_test(patch)[0],
        "validation_images": len(held),
        "test_images": len(test),
        "points": points,
    }


def _point(
    base: Base, patch: Patch, steps: Steps, setting: str, measures: tuple[Measure, Measure]
) -> Record:
    coded = code_patch(base, patch, steps)
    counts = count_bytes(base, coded.integers)
    held, test = (measure(coded.patch)[0] for measure in measures)
    return {
        "setting": setting,
        "bytes": counts["total"] - counts["head"],
        "parts": counts,
        "validation_top1": held,
        "test_top1": test,
    }


def _greedy_points(
    base: Base, patch: Patch, own: Mapping[str, torch.Tensor], measures: tuple[Measure, Measure]
) -> list[Record]:
    """Each drop goes on from the steps of the one before it; gamma and beta move together."""
    start = uniform_steps(base, own, STEPS[1])
    before = min(measures[0](patch)[0], measures[0](code_patch(base, patch, start).patch)[0])
    layers: dict[str, list[str]] = {}
    for name in own:
        if part_of(base, name) in ("gamma", "beta"):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    points = []
    for drop in DROPS:
        start = choose_steps(
            base, patch, measures[0], before - drop, start, groups=list(layers.values()), rounds=4
        )
        points.append(_point(base, patch, start, f"{GREEDY}, drop {drop:g}", measures))
    return points


def way_of(record: Record, point: Record) -> str:
    """Which curve a point is on."""
    greedy = str(point["setting"]).startswith(GREEDY)
    return f"{record['row']}, {GREEDY}" if greedy else str(record["row"])


def choose_points(records: Sequence[Record]) -> dict[str, dict[str, Spread]]:
    """By way, over seeds: bytes and test accuracy of the smallest patch whose validation accuracy
    is at most ALLOWED_DROP below the seed's plain patch before coding, and how much test accuracy
    it gives up.
    """
    plain = {record["seed"]: record for record in records if record["row"] == AFTER}
    chosen: dict[str, dict[int, tuple[int, float]]] = {}
    for record in records:
        enough = plain[record["seed"]]["validation_top1"] - ALLOWED_DROP
        for point in record["points"]:
            best = chosen.setdefault(way_of(record, point), {})
            if point["validation_top1"] >= enough:
                found = (point["bytes"], point["test_top1"])
                best[record["seed"]] = min(best.get(record["seed"], found), found)
    return {
        way: {
            "bytes": spread([size for size, _ in best.values()]),
            "test_top1": spread([top1 for _, top1 in best.values()]),
            "drop": spread([plain[seed]["test_top1"] - top1 for seed, (_, top1) in best.items()]),
        }
        for way, best in chosen.items()
    }


def print_choice(records: Sequence[Record], title: str) -> None:
    """The chosen patches as a table."""
    table = Table(title=title, title_justify="left")
    for column in ("way", "seeds", "bytes", "test top-1 %", "points below the float patch"):
        table.add_column(column, justify="left" if column == "way" else "right")
    plain = spread([record["test_top1"] for record in records if record["row"] == AFTER])
    table.add_row("not coded (float32)", str(plain.count), "", plain.percent(), "")
    for way, found in choose_points(records).items():
        size = found["bytes"]
        cells = ("none accepted", "", "")
        if size.count:
            cells = (
                f"{size.mean:,.0f} ± {size.deviation:,.0f}",
                found["test_top1"].percent(),
                f"{100 * found['drop'].mean:+.2f} ± {100 * found['drop'].deviation:.2f}",
            )
        table.add_row(way, str(size.count), *cells)
    Console(width=120).print(table)


def draw_curves(records: Sequence[Record], path: Path, title: str) -> None:
    """Mean test accuracy against mean bytes, one curve a way, one point a setting."""
    curves: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for record in records:
        for point in record["points"]:
            place = (record["column"], point["setting"])
            curves.setdefault(way_of(record, point), {}).setdefault(place, []).append(point)
    figure, axis = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    for colour, (way, places) in zip(COLOURS, curves.items(), strict=False):
        means = sorted(
            (spread([p["bytes"] for p in found]).mean, spread([p["test_top1"] for p in found]).mean)
            for found in places.values()
        )
        sizes, top1s = zip(*means, strict=True)
        joined = "-" if way.startswith(AFTER) else ""
        percents = [100 * one for one in top1s]
        axis.plot([s / 1000 for s in sizes], percents, f"{joined}o", c=colour, label=way, ms=4)
    plain = spread([record["test_top1"] for record in records if record["row"] == AFTER])
    axis.axhline(100 * plain.mean, color="#8a8f98", lw=0.8, ls="--", label="not coded")
    axis.set_xscale("log")
    axis.set_xlabel("kB of coded scales and biases (the head not counted)")
    axis.set_ylabel("test top-1 %")
    axis.set_title(title, loc="left", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="embedded", choices=("embedded", "imagenet"))
    parser.add_argument("--dataset", default="fashion", help="a packaged set of images")
    parser.add_argument("--images", type=int, default=3000, help="to train on, and to validate")
    parser.add_argument("--px", type=int, default=None, help="side; 32, and 64 for imagenet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--no-greedy", dest="greedy", action="store_false", help="uniform only")
    parser.add_argument("--out", type=Path, default=Path("docs/paper"), help="pictures")
    parser.add_argument("--quick", action="store_true", help="minutes; no results")
    arguments = parser.parse_args()
    name = f"patch_size_{arguments.network}"
    cells = list_cells(arguments)
    found = run_cells(name, cells, measure_sizes, jobs=arguments.jobs, quick=arguments.quick)
    records = list(found.values())
    shape = cells[0].settings
    title = (
        f"{arguments.network}, {shape['dataset']}, {shape['images']} images, {shape['px']} px, "
        f"{shape['epochs']} epochs"
    )
    print_choice(records, title)
    out = Path("out/paper") if arguments.quick else arguments.out
    draw_curves(records, out / f"{name}.png", title)


if __name__ == "__main__":
    main()
