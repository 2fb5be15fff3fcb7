"""From the float patch to the exported file: what int8 costs, and what training through it gives.

In: packaged images, a base. Out: accuracy on validation and test images of the same
patch in float, exported as it is (plain), re-tuned through int8 and then exported (retuned), and
of a patch of as many epochs whose later half went through int8 (through); and what a step costs.
As the re-tune is also two more epochs, "continued" is the same two epochs in float, exported.
Every int8 accuracy is of the integer executor on the exported values. The goal is a gap of at
most 0.1 point (methods.md, section 3). Nothing here is chosen by test images.

    python benchmarks/paper/int8_gap.py [--network embedded|imagenet] [--seeds 3] [--jobs 2]
        [--quick]

Leaves results/int8_gap.json (int8_gap_imagenet.json). Run again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from cells import Cell, Record, Spread, run_cells, spread
from networks import open_network
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transfer_cell import draw

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, load_packaged, split
from patchdeploy.export import Exporter
from patchdeploy.measure import measure_interleaved
from patchdeploy.patch import Patch
from patchdeploy.patched_model import PatchedModel
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import unflatten_variant
from patchdeploy.training import TrainConfig, evaluate, train_patch
from patchdeploy.training.int8_aware import Int8Plan, open_int8
from patchdeploy.training.int8_retune import RETUNE, retune_patch_int8
from patchdeploy.training.preparation import make_pair
from patchdeploy.training.session import open_session
from patchdeploy.training.transfer import TransferRun

TASKS = (("optical_digits", 32), ("digits", 32), ("surfaces", 48))
IMAGENET_TASKS = (("digits", 64), ("fashion", 64), ("surfaces", 64))
WAYS = ("float", "plain", "continued", "retuned", "through")
VALIDATION_SHARE = 0.2
STEP_BATCH = 32


def list_cells(arguments: argparse.Namespace) -> list[Cell]:
    """One cell for each task and seed: all ways start from the same images and settings."""
    quick = arguments.quick
    tasks = TASKS if arguments.network == "embedded" else IMAGENET_TASKS
    settings: dict[str, Any] = {
        "images": 120 if quick else 1200,
        "tests": 60 if quick else 1500,
        "epochs": 2 if quick else 6,
        "batch": 32,
        "retune": {"epochs": RETUNE.epochs, "learning_rate": RETUNE.learning_rate},
    }
    if arguments.network != "embedded":
        settings |= {"network": arguments.network}
    return [
        Cell(name, f"{px} px", seed, settings | {"dataset": name, "px": px})
        for seed in range(1 if quick else arguments.seeds)
        for name, px in (tasks[:1] if quick else tasks)
    ]


def measure_gap(settings: Mapping[str, Any], seed: int) -> Record:
    """Train, export and re-tune one task's patch."""
    px = settings["px"]
    base = open_network(settings.get("network", "embedded"), seed, px)
    images, test = load_packaged(settings["dataset"])
    images, test = draw(images, settings["images"], seed), draw(test, settings["tests"], 0)
    train, held = split(images, (1 - VALIDATION_SHARE, VALIDATION_SHARE), seed=seed)
    config = TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        seed=seed,
    )
    tuned = replace(RETUNE, batch_size=settings["batch"], seed=seed, **settings["retune"])
    given: dict[str, Any] = {"validation": held, "quiet": True}
    patch = train_patch(base, train, config, resolutions=[px], **given)
    through = replace(config, through_int8=True)
    patches = {
        "plain": patch,
        "continued": _continue_in_float(base, patch, (train, held), tuned, px),
        "retuned": retune_patch_int8(base, patch, train, tuned, **given),
        "through": train_patch(base, train, through, resolutions=[px], **given),
    }
    model = PatchedModel(base)
    model.load_patch(patch)
    record: Record = {"validation_images": len(held), "test_images": len(test)}
    for part, dataset in (("validation", held), ("test", test)):
        expected = evaluate(model, dataset, px, base)[1]
        record[f"float {part}"] = _compare(expected, expected, dataset)
        for way, one in patches.items():
            scores = _exported_scores(base, one, train, dataset, px)
            record[f"{way} {part}"] = _compare(scores, expected, dataset)
    record["test_top1"] = record["plain test"]["top1"]
    return record | {"step": _step_cost(base, patch, train, px)}


def _continue_in_float(
    base: Base,
    patch: Patch,
    parts: tuple[ImageDataset, ImageDataset],
    config: TrainConfig,
    px: int,
) -> Patch:
    """What `retune_patch_int8` does, through the float network instead; dropped if it harms."""
    config = replace(config, through_int8=False)
    models = [PatchedModel(base) for _ in range(2)]
    for model in models:
        model.load_patch(patch)
    model, before = models
    samples = make_pair(parts, px, base, model.device)
    with open_session(config.epochs, quiet=True) as session:
        run = TransferRun(model, patch.task, config, before, session)
        after = run.train(px, samples, None)
    start = evaluate(before, parts[1], px, base)[0]
    return model.to_patch() if after >= start else patch


def _exported_scores(
    base: Base, patch: Patch, train: ImageDataset, images: ImageDataset, px: int
) -> NDArray[np.float32]:
    exporter = Exporter.prepare(base, head_capacity=len(patch.classes))
    values = exporter.quantize(patch, train, [px]).values[px]
    variant = unflatten_variant(exporter.quantized, values, patch.task, px)
    return run_integer(exporter.quantized, variant, images.at(px, base.preprocessing)).logits


def _compare(
    scores: NDArray[np.float32], expected: NDArray[np.float32], images: ImageDataset
) -> dict[str, float]:
    """top1, mean cross entropy, and the share of answers equal to the float patch's."""
    loss = functional.cross_entropy(torch.tensor(scores), torch.tensor(images.labels))
    return {
        "top1": float((scores.argmax(1) == images.labels).mean()),
        "cross_entropy": float(loss),
        "same_answer": float((scores.argmax(1) == expected.argmax(1)).mean()),
    }


def _step_cost(base: Base, patch: Patch, train: ImageDataset, px: int) -> dict[str, float]:
    """Milliseconds of forward and backward on a batch, float and int8 in turn; one calibration."""
    config = TrainConfig(epochs=1, through_int8=True)
    model = PatchedModel(base)
    model.load_patch(patch)
    forward = open_int8(model, patch.task, px, Int8Plan(train, 0.0), config, model)
    start = time.perf_counter()
    forward.prepare(0)
    calibration_ms = 1000 * (time.perf_counter() - start)
    inputs, labels = torch.randn(STEP_BATCH, 3, px, px), torch.arange(STEP_BATCH) % 2

    def step(run: Any) -> None:
        functional.cross_entropy(run(inputs), labels).backward()

    calls = {"float": lambda: step(model), "int8": lambda: step(forward)}
    measured = measure_interleaved(calls, warmup=3, rounds=15)
    return {
        "batch": STEP_BATCH,
        "float_ms": measured.median_ms("float"),
        "int8_ms": measured.median_ms("int8"),
        "calibration_ms": calibration_ms,
    }


def show(records: Sequence[Record], console: Console) -> None:
    """A row for each task, resolution and way."""
    table = Table("task", "px", "seeds", "way", "validation", "test", "gap (test)", "same answer")
    for place in dict.fromkeys((one["row"], one["column"]) for one in records):
        rows = [one for one in records if (one["row"], one["column"]) == place]
        for way in WAYS:
            parts = {part: [r[f"{way} {part}"] for r in rows] for part in ("validation", "test")}
            top1 = {part: spread([one["top1"] for one in found]) for part, found in parts.items()}
            gaps = [r["float test"]["top1"] - r[f"{way} test"]["top1"] for r in rows]
            gap, same = spread(gaps), spread([one["same_answer"] for one in parts["test"]])
            shown = [_percent(v) for v in (top1["validation"], top1["test"], gap, same)]
            table.add_row(place[0], place[1], str(len(rows)), way, *shown)
    console.print(table)
    ratios = [r["step"]["int8_ms"] / r["step"]["float_ms"] for r in records]
    calibration_ms = np.median([r["step"]["calibration_ms"] for r in records])
    console.print(
        f"a step through int8 takes {np.median(ratios):.2f} times a float one (median of "
        f"{len(ratios)}); a calibration {calibration_ms:.0f} ms"
    )


def _percent(one: Spread) -> str:
    return f"{100 * one.mean:.2f} ± {100 * one.deviation:.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", default="embedded", choices=("embedded", "imagenet"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    cells = list_cells(arguments)
    name = "int8_gap" if arguments.network == "embedded" else f"int8_gap_{arguments.network}"
    records = run_cells(name, cells, measure_gap, jobs=arguments.jobs, quick=arguments.quick)
    show(list(records.values()), Console(width=110))


if __name__ == "__main__":
    main()
