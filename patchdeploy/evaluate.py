"""Accuracy and speed of an exported bundle, through the Engine that an app would use.

In: a bundle and labelled images. Out: top-1 per resolution, latency per resolution and thread
count, swap times; all candidates interleaved in one run. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data import ImageDataset
from patchdeploy.errors import DataError
from patchdeploy.measure import describe_device, measure_interleaved
from patchdeploy.runtime import Engine


@dataclass(frozen=True)
class TaskAccuracy:
    """Top-1 of one task: ``top1`` in [0, 1] over ``images`` images at ``resolution`` pixels."""

    task: str
    runtime: str
    resolution: int
    top1: float
    images: int


def evaluate_task(
    bundle: Path | str,
    dataset: ImageDataset,
    task: str,
    *,
    runtime: str = "litert",
    threads: int = 1,
    limit: int | None = None,
) -> list[TaskAccuracy]:
    """Top-1 of ``task`` at each of its resolutions, on the first ``limit`` shuffled images.

    Raises:
        DataError: no images, or the data set's classes are not the task's.
    """
    with Engine.open(bundle, runtime=runtime, threads=threads) as engine:
        classes = engine.classes(task)
        if len(dataset) == 0 or tuple(dataset.classes) != tuple(classes):
            raise DataError(
                f"{dataset.name}: {len(dataset)} images of classes {', '.join(dataset.classes)}; "
                f"task {task!r} has classes {', '.join(classes)}; give images of these classes, "
                "one folder for each, by the same names"
            )
        chosen = sample(dataset, limit)
        return [
            TaskAccuracy(task, runtime, px, top1(engine, chosen, task, px), len(chosen))
            for px in engine.resolutions(task)
        ]


def sample(dataset: ImageDataset, limit: int | None, seed: int = 0) -> ImageDataset:
    """At most ``limit`` images, shuffled so that a set sorted by class keeps its mixture."""
    if limit is None or len(dataset) <= limit:
        return dataset
    return dataset.subset(np.random.default_rng(seed).permutation(len(dataset))[:limit])


def top1(engine: Engine, dataset: ImageDataset, task: str, resolution: int) -> float:
    """Share of images whose highest score is the label's (the first class wins a tie)."""
    pixels = dataset.at(resolution, engine.preprocessing)
    logits = engine.logits(pixels, task=task, resolution=resolution)
    return float((logits.argmax(axis=1) == dataset.labels).mean())


def bench_bundle(
    bundle: Path | str,
    *,
    runtimes: Sequence[str] = ("litert", "onnxruntime"),
    threads: Sequence[int] = (1, 2),
    rounds: int = 50,
    warmup: int = 5,
) -> dict[str, Any]:
    """Latency of every resolution and swap times, as plain JSON values.

    Latency: one image of noise, batch 1, resized already; every runtime, thread count and
    resolution in turn. Swaps: ``cold`` opens a task that is not resident (overlay and
    preparation included), ``resident`` switches to one that is; one thread, the largest
    resolution. With a single task a cold swap finds it loaded: give a bundle with two.
    """
    engines = {
        (runtime, count): Engine.open(bundle, runtime=runtime, threads=count)
        for runtime in runtimes
        for count in threads
    }
    try:
        first = next(iter(engines.values()))
        task, resolutions = first.tasks[0], first.resolutions(first.tasks[0])
        latency = _latency(engines, task, resolutions, rounds, warmup)
    finally:
        for engine in engines.values():
            engine.close()
    return {
        "device": describe_device(),
        "task": task,
        "warmup": warmup,
        "rounds": rounds,
        "latency": latency,
        "swaps": _swaps(bundle, runtimes, max(resolutions), rounds, warmup),
    }


def _latency(
    engines: dict[tuple[str, int], Engine],
    task: str,
    resolutions: Sequence[int],
    rounds: int,
    warmup: int,
) -> list[dict[str, Any]]:
    calls: dict[str, Callable[[], object]] = {}
    keys: dict[str, tuple[str, int, int]] = {}
    for (runtime, count), engine in engines.items():
        for px in resolutions:
            name = f"{runtime} {count} {px}"
            keys[name] = (runtime, count, px)
            calls[name] = _logits_call(engine, _noise(px), task, px)
    measurement = measure_interleaved(calls, warmup=warmup, rounds=rounds)
    rows = []
    for name, (runtime, count, px) in keys.items():
        p10, median, p90 = np.percentile(measurement.samples_ms[name], (10, 50, 90))
        row = {"runtime": runtime, "threads": count, "resolution": px, "rounds": rounds}
        rows.append(row | {"median_ms": float(median), "p10_ms": float(p10), "p90_ms": float(p90)})
    return rows


def _swaps(
    bundle: Path | str, runtimes: Sequence[str], px: int, rounds: int, warmup: int
) -> list[dict[str, Any]]:
    """Cold: no memory for a second resident, so every swap loads. Resident: all are loaded."""
    rows = []
    for runtime in runtimes:
        with (
            Engine.open(bundle, runtime=runtime, budget_bytes=0) as small,
            Engine.open(bundle, runtime=runtime) as large,
        ):
            calls = {"cold": _swap_call(small, px), "resident": _swap_call(large, px)}
            measurement = measure_interleaved(calls, max(warmup, 2 * len(small.tasks)), rounds)
        rows += [
            {
                "runtime": runtime,
                "kind": kind,
                "resolution": px,
                "median_ms": measurement.median_ms(kind),
                "rounds": rounds,
            }
            for kind in calls
        ]
    return rows


def _swap_call(engine: Engine, px: int) -> Callable[[], object]:
    """Each call makes the next task the current one."""
    tasks = cycle(engine.tasks)
    return lambda: engine.swap_to(next(tasks), px)


def _noise(px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(px).integers(0, 256, (1, px, px, 3)).astype(np.uint8)


def _logits_call(
    engine: Engine, pixels: NDArray[np.uint8], task: str, px: int
) -> Callable[[], object]:
    return lambda: engine.logits(pixels, task=task, resolution=px)
