"""The demo: five real image tasks over the embedded base, from training to the report.

In: an output folder. Out: patches, a bundle, and ``report.html`` in it. Every step is the public
API that a user calls. Test images are only measured on: neither training, choosing an epoch,
nor calibration sees one.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from patchdeploy.base import Base
from patchdeploy.bundle import Bundle, size_report
from patchdeploy.bundle.manifest import MANIFEST
from patchdeploy.data import ImageDataset, load_packaged, split
from patchdeploy.demo_cascades import fit_cascades
from patchdeploy.evaluate import bench_bundle, evaluate_task, leftover, sample
from patchdeploy.export import CodingConfig, Signing, export_bundle
from patchdeploy.measure import describe_device
from patchdeploy.patch import Patch, PatchConfig, count_parameters
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.report import (
    Accuracy,
    CascadeResult,
    Latency,
    ReportData,
    Sample,
    Swap,
    TrainedBytes,
    check_packages,
    write_report,
)
from patchdeploy.runtime import Engine
from patchdeploy.training import TrainConfig, evaluate, train_baseline, train_patch
from patchdeploy.verify import VerifyReport, verify_bundle

Log = Callable[[str], None]

TASKS = ("digits", "fashion", "surfaces", "optical_digits", "faces")
RESOLUTIONS = (32, 48, 64)
RUNTIMES = ("litert", "onnxruntime")
HELD = 0.15
"""Share of the training images that no weight learns from."""
LEAST_HELD = 40
"""Of them at least; choosing steps needs 32, and each class is split on its own."""
BASELINES: tuple[Literal["head", "all"], ...] = ("head", "all")


@dataclass(frozen=True)
class DemoConfig:
    """What the demo trains; the budget is the same for the patch and both baselines.

    Attributes:
        tasks: names for `load_packaged`.
        resolutions: sides in pixels; the baselines train at the largest.
        train_images: at most so many training images a task.
        epochs: passes over them, for each resolution.
        batch_size: images a step.
        bench_rounds: rounds of the latency and swap measurement.
        seed: of the first head's values, the order of images and their augmentation; the images
            of each split are the same for every seed.
    """

    tasks: tuple[str, ...] = TASKS
    resolutions: tuple[int, ...] = RESOLUTIONS
    train_images: int = 1500
    epochs: int = 6
    batch_size: int = 32
    bench_rounds: int = 40
    seed: int = 0


QUICK = DemoConfig(
    tasks=("faces", "surfaces"), resolutions=(32, 48), train_images=120, epochs=1, bench_rounds=5
)


@dataclass(frozen=True)
class DemoResult:
    """Where things are and what they measured.

    Attributes:
        document: the numbers as plain JSON values.
        summary: (what, value) rows to print.
        verified: every check of `verify_bundle` held.
    """

    document: dict[str, Any]
    summary: list[tuple[str, str]]
    verified: bool


@dataclass
class _Clock:
    """Seconds by step, logged as they pass."""

    log: Log
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.log(f"[bold]{name}[/bold]")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@dataclass(frozen=True)
class _Trained:
    """One task: its patch, and what each method trained and reached on the test images."""

    patch: Patch
    accuracies: list[Accuracy]
    trained: list[TrainedBytes]


def run_demo(out: Path, *, quick: bool = False, seed: int = 0, log: Log) -> DemoResult:
    """Train, export, verify, measure and report into ``out``.

    Args:
        quick: two tasks, a few images, one epoch: shows that it runs, not what it reaches.
        seed: see `DemoConfig`.
        log: takes a line (rich markup) as each step begins.
    """
    check_packages()
    config = replace(QUICK if quick else DemoConfig(), seed=seed)
    clock = _Clock(log)
    base = Base.embedded()
    data = {task: _load(task, config) for task in config.tasks}
    tests = {task: test for task, (_, test) in data.items()}
    with clock.step("train a patch per task, and the two baselines beside it"):
        trained = _train_all(config, log)
    for task, one in trained.items():
        one.patch.save_pretrained(out / "patches" / task)
    signing = _signing(out / "keys")
    patches = {task: one.patch for task, one in trained.items()}
    with clock.step("export one int8 base and a patch per task"):
        bundle = _export(out / "bundle", base, patches, data, signing)
    with clock.step("fit cascades over the resolutions"):
        unused = {
            task: leftover(load_packaged(task)[0], config.train_images) for task in config.tasks
        }
        bundle, cascades = fit_cascades(bundle, unused, tests, signing)
    with clock.step("verify: hashes, overlay = stand-alone, runtimes = reference"):
        report = verify_bundle(bundle.path, tests, limit=100, reference_limit=8)
    with clock.step("measure int8 accuracy on the test images"):
        int8 = _int8_accuracies(bundle, tests)
    with clock.step("measure latency and swaps"):
        bench = bench_bundle(bundle.path, rounds=config.bench_rounds)
    accuracies = [a for one in trained.values() for a in one.accuracies] + int8
    drop = mean_drop(accuracies)
    page = write_report(
        ReportData(
            title=f"patchdeploy: {len(trained)} tasks, {len(config.resolutions)} resolutions",
            device=_flat(describe_device()),
            accuracies=accuracies,
            trained=[row for one in trained.values() for row in one.trained],
            sizes=_sizes(bundle, drop),
            latencies=[Latency(**row) for row in bench["latency"]],
            swaps=[
                Swap(s["runtime"], s["kind"], s["median_ms"], s["rounds"]) for s in bench["swaps"]
            ],
            agreement=_verification(report),
            samples=_samples(bundle, tests),
            seconds=clock.seconds,
            cascades=cascades,
        ),
        out,
    )
    found = (accuracies, cascades, drop, report, clock.seconds, seed)
    return _result(out, page, bundle, *found)


def _train_all(config: DemoConfig, log: Log) -> dict[str, _Trained]:
    """Every task, a process a core with one thread each: small layers do not fill two threads."""
    workers = min(len(config.tasks), os.cpu_count() or 1)
    trained = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), _use_one_thread) as pool:
        jobs = {pool.submit(_train_task, task, config): task for task in config.tasks}
        for job in as_completed(jobs):
            one = trained[jobs[job]] = job.result()
            largest = max(config.resolutions)
            found = {a.method: 100 * a.top1 for a in one.accuracies if a.resolution == largest}
            log(
                f"  {jobs[job]}, test top-1 at {largest} px: last layer {found['head']:.1f} %, "
                f"patch {found['patch']:.1f} %, all weights {found['all']:.1f} %"
            )
    return {task: trained[task] for task in config.tasks}


def _use_one_thread() -> None:
    torch.set_num_threads(1)


def _train_task(task: str, config: DemoConfig) -> _Trained:
    """The patch at every resolution, the baselines at the largest; then the test images once."""
    base = Base.embedded()
    train, test = _load(task, config)
    settings = TrainConfig(epochs=config.epochs, batch_size=config.batch_size, seed=config.seed)
    largest = max(config.resolutions)
    kept, held = _hold_out(train)
    patch = train_patch(
        base,
        kept,
        settings,
        PatchConfig(),
        resolutions=config.resolutions,
        validation=held,
        quiet=True,
    )
    model = PatchedModel(base)
    model.load_patch(patch)
    accuracies = []
    for px in config.resolutions:
        model.set_active_task(patch.task, px)
        top1, _ = evaluate(model, test, px, base)
        accuracies.append(Accuracy(patch.task, "patch", "float", px, top1, len(test)))
    counts = count_parameters(base, patch.config, len(patch.classes))
    parameters = counts["trained"] + counts["statistics"]
    rows = [TrainedBytes(patch.task, "patch", counts["trained"], 4 * parameters)]
    for which in BASELINES:
        result = train_baseline(
            base, kept, which, settings, resolution=largest, validation=held, quiet=True
        )
        top1, _ = evaluate(result.module, test, largest, base)
        accuracies.append(Accuracy(patch.task, which, "float", largest, top1, len(test)))
        rows.append(TrainedBytes(patch.task, which, result.parameters, 4 * result.parameters))
    return _Trained(patch, accuracies, rows)


def _hold_out(train: ImageDataset) -> tuple[ImageDataset, ImageDataset]:
    """What training learns from, and what chooses its best epoch and the patch's steps."""
    share = max(HELD, min(LEAST_HELD / len(train), 0.5))
    return split(train, (1.0 - share, share), seed=0)


def _load(task: str, config: DemoConfig) -> tuple[ImageDataset, ImageDataset]:
    train, test = load_packaged(task)
    return sample(train, config.train_images), test


def _export(
    folder: Path,
    base: Base,
    patches: Mapping[str, Patch],
    data: Mapping[str, tuple[ImageDataset, ImageDataset]],
    signing: Signing,
) -> Bundle:
    if (folder / MANIFEST).exists():  # of an earlier run; everything in it can be made again
        shutil.rmtree(folder)
    return export_bundle(
        folder,
        base,
        list(patches.values()),
        {task: _hold_out(train)[0] for task, (train, _) in data.items()},
        float_files=True,
        coding=CodingConfig(),
        validation={task: _hold_out(train)[1] for task, (train, _) in data.items()},
        signing=signing,
    )


def _signing(folder: Path) -> Signing:
    """A key of the demo's own, kept beside the bundle and never in it."""
    path = folder / "demo.pem"
    if path.exists():
        key = SigningKey.load(path)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        key = SigningKey.new()
        key.save(path)
    return Signing(TrustedKeys((key.public,), threshold=1), (key,))


def _int8_accuracies(bundle: Bundle, tests: Mapping[str, ImageDataset]) -> list[Accuracy]:
    return [
        Accuracy(task, "patch", runtime, one.resolution, one.top1, one.images)
        for runtime in RUNTIMES
        for task, test in tests.items()
        for one in evaluate_task(bundle.path, test, task, runtime=runtime)
    ]


def _samples(bundle: Bundle, tests: Mapping[str, ImageDataset], count: int = 8) -> list[Sample]:
    rows = []
    with Engine.open(bundle, runtime=RUNTIMES[0]) as engine:
        for task, test in tests.items():
            shown = sample(test, count, seed=1)
            for image, label in zip(shown.images, shown.labels, strict=True):
                found = engine.classify(np.asarray(image), task=task)
                truth = test.classes[int(label)]
                rows.append(Sample(task, image, truth, found.label, found.probability))
    return rows


def _sizes(bundle: Bundle, drop: float) -> dict[str, Any]:
    """The size report in the form that the page shows."""
    sizes = size_report(bundle)
    base_bytes = sizes["formats"]["tflite"]["file_bytes"]
    whole_bytes = sizes["totals"]["tflite"]["whole_models_bytes"]
    tasks = sizes["tasks"]
    patch_bytes = sum(task["file_bytes"] for task in tasks.values()) / len(tasks)
    one_model = whole_bytes / sizes["totals"]["tflite"]["whole_models"]
    counts = [1, 2, 5, 10, 20]
    resolutions = len(sizes["resolutions"])
    return {
        "cards": [
            {"value": f"{base_bytes / 1e6:.2f} MB", "label": f"base, {resolutions} resolutions"},
            {"value": f"{patch_bytes / 1e3:.0f} kB", "label": "a task, all resolutions"},
            {"value": f"{len(tasks)} x {resolutions}", "label": "tasks x resolutions"},
            {"value": f"{100 * drop:.2f}", "label": "points lost to int8, mean"},
        ],
        "files": [
            {"path": path, "bytes": count, "what": _describe_file(path)}
            for path, count in sizes["files"].items()
        ],
        "growth": [
            {
                "label": f"base + patches, {resolutions} resolutions",
                "tasks": counts,
                "bytes": [base_bytes + k * patch_bytes for k in counts],
            },
            {
                "label": f"whole int8 models, {resolutions} resolutions",
                "tasks": counts,
                "bytes": [k * resolutions * one_model for k in counts],
            },
        ],
        "parts": _parts(tasks),
        "report": sizes,
    }


def _parts(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of each task's file by part, the whole file last."""
    columns = list(dict.fromkeys(part for one in tasks.values() for part in one["part_bytes"]))
    rows = []
    for name, one in tasks.items():
        parts = [one["part_bytes"].get(part, 0) for part in columns]  # 0: an optional part
        rows.append({"task": name, "bytes": [*parts, one["file_bytes"]]})
    return {"columns": [*columns, "file"], "rows": rows}


def _describe_file(path: str) -> str:
    if path.startswith("patches/"):
        return "one task, all its resolutions; ships"
    if path.startswith("float/"):
        return "float32, stand-alone, shares nothing; for verify, does not ship"
    if path.startswith("reference/"):
        return "the quantised base in neutral form; for verify and add, does not ship"
    if path.endswith(".coding"):
        return "what patches are coded against; ships"
    return "slot table; ships" if path.endswith(".slots.json") else "the shared int8 base; ships"


def _verification(report: VerifyReport) -> list[dict[str, Any]]:
    """One row a kind of check: how many held, and the first that did not."""
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(check.name for check in report.checks):
        of_kind = [check for check in report.checks if check.name == name]
        failed = [check for check in of_kind if check.passed is False]
        held = sum(check.passed is True for check in of_kind)
        detail = f"{held} of {len(of_kind)} held; for instance {of_kind[0].detail[:90]}"
        if failed:
            detail = f"{failed[0].subject}: {failed[0].detail}"
        passed = False if failed else True if held else None  # None: every one was skipped
        rows.append({"check": name, "passed": passed, "detail": detail})
    return rows


def mean_drop(accuracies: Sequence[Accuracy]) -> float:
    """Mean over tasks and resolutions of float minus int8 top-1, the runtimes averaged."""
    floats = {
        (a.task, a.resolution): a.top1
        for a in accuracies
        if a.runtime == "float" and a.method == "patch"
    }
    drops = [floats[(a.task, a.resolution)] - a.top1 for a in accuracies if a.runtime != "float"]
    return float(np.mean(drops))


def _flat(device: Mapping[str, Any]) -> dict[str, Any]:
    """The device description with its versions as one line."""
    versions = ", ".join(f"{name} {found}" for name, found in device["versions"].items())
    return {**device, "flags": ", ".join(device["flags"]), "versions": versions}


def _result(
    out: Path,
    page: Path,
    bundle: Bundle,
    accuracies: Sequence[Accuracy],
    cascades: Sequence[CascadeResult],
    drop: float,
    report: VerifyReport,
    seconds: Mapping[str, float],
    seed: int,
) -> DemoResult:
    sizes = size_report(bundle)
    images = sum({(a.task): a.images for a in accuracies}.values())
    tflite = sizes["formats"]["tflite"]
    patches = [task["file_bytes"] for task in sizes["tasks"].values()]
    summary = [
        ("tasks x resolutions", f"{len(sizes['tasks'])} x {len(sizes['resolutions'])}"),
        ("base.tflite, all resolutions", f"{tflite['file_bytes'] / 1e3:,.0f} kB"),
        ("base.onnx, any resolution", f"{sizes['formats']['onnx']['file_bytes'] / 1e3:,.0f} kB"),
        ("a task, all resolutions", f"{np.mean(patches) / 1e3:,.1f} kB"),
        (f"int8 drop, mean on {images:,} test images", f"{100 * drop:.2f} points"),
        *_cascade_summary(cascades),
        ("verified", "yes" if report.ok else f"NO: {len(report.failures)} checks failed"),
        ("seconds", f"{sum(seconds.values()):.0f}"),
        ("bundle", str(bundle.path)),
        ("report", str(page)),
    ]
    document = {
        "seed": seed,
        "sizes": sizes,
        "accuracies": [vars(a) for a in accuracies],
        "int8_drop": drop,
        "cascades": [asdict(one) for one in cascades],
        "verified": report.ok,
        "seconds": dict(seconds),
        "bundle": str(bundle.path),
        "report": str(page),
    }
    return DemoResult(document, summary, report.ok)


def _cascade_summary(cascades: Sequence[CascadeResult]) -> list[tuple[str, str]]:
    """A row for each cascade, on its test images."""
    rows = []
    for one in cascades:
        if one.evaluation is not None:
            row = one.evaluation.rows[0]
            sides = " > ".join(map(str, row.resolutions))
            saved = f"{100 * row.saving:.0f} % of MACs saved, {100 * row.gap[0]:.1f} points lost"
            rows.append((f"cascade of {one.task}, {sides} px", saved))
    return rows
