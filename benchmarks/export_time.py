"""What one task more costs to export, and what calibration costs against a forward pass.

After calibration a new task is folded, quantised, compared with its module and with float, and
added to a bundle whose base files stay as they are: every stage of `export_patch` is timed, at the
subject's resolution and with its number of classes. Calibration is timed on the same images,
batches and threads as the plain torch module, interleaved.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import (
    OTHER,
    OURS,
    PEER,
    STANDALONE,
    Goal,
    new_figure,
    parse_arguments,
    print_table,
    save_figure,
    save_results,
)
from subjects import Subject, fold_task, load_subject, normalise, random_patch

from patchdeploy.base import Base
from patchdeploy.bundle import add_task, create_bundle, open_bundle
from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.convert import load_converter
from patchdeploy.data import ImageDataset
from patchdeploy.export import COMPARED_IMAGES, Exporter
from patchdeploy.export_record import measure_task
from patchdeploy.lower import lower_base
from patchdeploy.measure import measure_interleaved
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.model import flatten_variant, neutral_variant
from patchdeploy.quantize.variant import quantize_variant
from patchdeploy.slots import overlay

METHODS = ("minmax", "percentile", "mse")
BATCH = 8
STAGES = ("fold", "quantize", "compare graph", "compare int8", "add to bundle")
PROCESSOR = "processor"


def time_task(exporter: Exporter, subject: Subject, folder: Path, seed: int) -> dict[str, float]:
    """Milliseconds of each stage for one task more, calibration not counted."""
    classes = tuple(f"class {k}" for k in range(subject.network.classes))
    variants = {subject.px: random_patch(subject, seed)}
    base_sha256 = exporter.base.sha256
    patch = Patch(f"task_{seed}", base_sha256, PatchConfig(), classes, variants, {})
    ranges = calibrate(exporter.fold(patch, subject.px), subject.images[:2])
    images = ImageDataset(patch.task, subject.images, [0] * len(subject.images), ("any",))
    bundle = open_bundle(folder)
    clock = Clock()
    network = exporter.fold(patch, subject.px)
    clock.lap("fold")
    quantized = exporter.quantized
    variant = quantize_variant(quantized, network, ranges, patch.task, subject.px)
    values = {subject.px: flatten_variant(quantized, variant)}
    file = PatchFile(patch.task, classes, exporter.table.sha256, values, {})
    clock.lap("quantize")
    exporter.score_float(patch, subject.px, subject.images[:COMPARED_IMAGES])
    clock.lap("compare graph")
    record = measure_task(bundle, file, images, partial(exporter.score_float, patch))
    clock.lap("compare int8")
    steps = fine_steps(file.values, exporter.table)
    add_task(folder, file, steps=steps, float_scores=record.to_bytes())
    clock.lap("add to bundle")
    return clock.laps_ms


class Clock:
    """Milliseconds by stage, and all stages' processor time, which a busy machine changes less."""

    def __init__(self) -> None:
        self.laps_ms: dict[str, float] = {PROCESSOR: 0.0}
        self._start, self._used = time.perf_counter(), time.process_time()

    def lap(self, stage: str) -> None:
        """End ``stage`` and begin the next."""
        now, used = time.perf_counter(), time.process_time()
        self.laps_ms[stage] = 1e3 * (now - self._start)
        self.laps_ms[PROCESSOR] += 1e3 * (used - self._used)
        self._start, self._used = now, used


def time_calibration(subject: Subject, rounds: int) -> dict[str, Any]:
    """Calibration of every method against the torch module's forward pass, per image."""
    network = fold_task(subject, random_patch(subject, 1))
    images = subject.images[:BATCH]
    pixels = normalise(subject.network, images).transpose(0, 3, 1, 2).copy()
    batch = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)
    module = copy.deepcopy(subject.module).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            module(batch)

    def calibration(method: Any) -> Callable[[], object]:
        return lambda: calibrate(network, images, method=method, batch=BATCH)

    candidates: dict[str, Callable[[], object]] = {"forward pass": forward}
    candidates |= {name: calibration(name) for name in METHODS}
    measured = measure_interleaved(candidates, warmup=1, rounds=rounds)
    return {
        "images": BATCH,
        "torch_threads": torch.get_num_threads(),
        **measured.to_json("forward pass"),
    }


def time_once(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def open_base(subject: Subject) -> Base:
    """The subject's module as a base."""
    preprocessing = subject.graph.preprocessing
    return Base.from_module(
        subject.module, preprocessing, name=subject.name, head_name="classifier.1"
    )


def time_base(subject: Subject) -> dict[str, float]:
    """Milliseconds of what is done once per base, and of laying a patch over its files."""
    base = open_base(subject)
    found = {
        "lower": time_once(lambda: lower_base(base)),
        "quantize base": time_once(lambda: quantize_base(subject.graph, subject.network.classes)),
    }
    neutral = neutral_variant(subject.quantized, subject.px)
    values = flatten_variant(subject.quantized, neutral)
    for name in ("tflite", "onnx"):
        converter = load_converter(name)
        converter.write(subject.quantized, {subject.px: neutral})
        start = time.perf_counter()
        written = converter.write(subject.quantized, {subject.px: neutral})
        found[f"write .{name}"] = 1e3 * (time.perf_counter() - start)
        start = time.perf_counter()
        overlay(written.data, written.table, {subject.px: values})
        found[f"overlay .{name}"] = 1e3 * (time.perf_counter() - start)
    return found


def measure_subject(subject: Subject, rounds: int) -> dict[str, Any]:
    """Every time of one subject."""
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / "bundle"
        base = open_base(subject)
        exporter = Exporter(base, subject.graph, subject.quantized, subject.table)
        create_bundle(bundle, subject.quantized, resolutions=[subject.px], table=subject.table)
        tasks = [time_task(exporter, subject, bundle, seed) for seed in range(max(3, rounds // 8))]
    return {
        "one_task_ms": tasks,
        "calibration": time_calibration(subject, max(3, rounds // 8)),
        "once_ms": time_base(subject),
    }


def total_seconds(found: dict[str, Any]) -> float:
    """Median seconds of one task more."""
    totals = [sum(one[stage] for stage in STAGES) for one in found["one_task_ms"]]
    return float(np.median(totals)) / 1e3


def print_subject(name: str, found: dict[str, Any]) -> None:
    """Stages, once-per-base steps, and calibration."""
    rows = [
        [f"one task more: {stage}", f"{np.median([t[stage] for t in found['one_task_ms']]):.1f}"]
        for stage in (*STAGES, PROCESSOR)
    ]
    rows += [["one task more: all", f"{1e3 * total_seconds(found):.1f}"]]
    rows += [[f"once: {what}", f"{ms:.1f}"] for what, ms in found["once_ms"].items()]
    print_table(f"{name}: export", ["stage", "ms"], rows)
    images = found["calibration"]["images"]
    rows = []
    for what, one in found["calibration"]["candidates"].items():
        ratio = one["ratio"]
        interval = f"[{ratio['low']:.2f}, {ratio['high']:.2f}]"
        rows.append([what, f"{one['median_ms'] / images:.2f}", f"{ratio['median']:.2f} {interval}"])
    print_table(f"{name}: calibration", ["", "ms an image", "/ forward pass [95%]"], rows)


def plot(document: dict[str, Any], out: Path) -> None:
    """Left: stages of one task more. Right: calibration per image against a forward pass."""
    figure, axes = new_figure(2, 1, 10, 1.2 + 1.1 * len(document))
    names = list(document)[::-1]
    left = np.zeros(len(names))
    colours = [OURS, STANDALONE, PEER, "#e0a98c", OTHER]
    for stage, colour in zip(STAGES, colours, strict=True):
        values = [np.median([t[stage] for t in document[n]["one_task_ms"]]) for n in names]
        axes[0, 0].barh(names, values, 0.5, left=left, color=colour, label=stage)
        left += values
    axes[0, 0].axvline(1000, color="black", lw=0.8, ls="--")
    place = axes[0, 0].get_xaxis_transform()
    axes[0, 0].text(985, 0.93, "goal: 1 s", ha="right", fontsize=8, transform=place)
    axes[0, 0].set_title("one task more, after calibration")
    axes[0, 0].set_xlabel("ms")
    axes[0, 0].legend(fontsize=7, frameon=False, loc="center", bbox_to_anchor=(0.55, 0.5))
    labels, values, colours = [], [], []
    for name in document:
        for what, one in document[name]["calibration"]["candidates"].items():
            labels.append(f"{name}: {what}")
            values.append(one["ratio"]["median"])
            colours.append(OTHER if what == "forward pass" else OURS)
    axes[0, 1].barh(labels[::-1], values[::-1], 0.6, color=colours[::-1])
    for k, value in enumerate(values[::-1]):
        axes[0, 1].text(value, k, f" {value:.2f}", va="center", fontsize=8)
    axes[0, 1].set_title("calibration per image / torch forward pass")
    save_figure(figure, out, "export_time")


def main() -> None:
    """Measure, print, plot."""
    arguments = parse_arguments(__doc__ or "", default_rounds=40)
    document: dict[str, Any] = {}
    goals = []
    for name in arguments.subject:
        subject = load_subject(name, arguments.wheel)
        print(f"{name}: {subject.weights}, {subject.px} px")
        document[name] = measure_subject(subject, arguments.rounds)
        print_subject(name, document[name])
        what = f"one task more after calibration, {name}, seconds"
        goals.append(Goal(what, total_seconds(document[name]), 1.0))
    plot(document, arguments.out)
    save_results(arguments.out, "export_time", {"subjects": document}, goals, arguments.quick)


if __name__ == "__main__":
    main()
