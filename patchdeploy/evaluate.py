"""Accuracy and speed of an exported bundle, through the Engine that an app would use.

In: a bundle and labelled images. Out: top-1 per resolution, latency per resolution and thread
count, swap times; all candidates interleaved in one run. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError, DataError, PatchError, UnknownTaskError
from patchdeploy.measure import describe_device, measure_interleaved
from patchdeploy.runtime import Engine
from patchdeploy.store import Store
from patchdeploy.verify.images import BATCH, task_labels

Progress = Callable[[str], None]


@dataclass(frozen=True)
class TaskAccuracy:
    """Top-1 of one task: ``top1`` in [0, 1] over ``images`` images at ``resolution`` pixels."""

    task: str
    runtime: str
    resolution: int
    top1: float
    images: int


def open_engine(
    bundle: Path | str | Bundle, runtime: str, threads: int = 1, store: Store | None = None
) -> Engine:
    """An engine for figures: what ``store`` has active runs, or an error says why it cannot.

    Raises:
        PatchdeployError: as `Engine.open`; or the store, or a patch that is active in it and would
            run, cannot be used.
    """
    engine = Engine.open(
        bundle, runtime=runtime, threads=threads, store=store, refresh_seconds=None
    )
    try:
        if store is not None:
            _check_runs(engine, store)
    except BaseException:
        engine.close()
        raise
    return engine


def _check_runs(engine: Engine, store: Store) -> None:
    """An engine that cannot use a patch of a store goes on with the bundle's; figures must not."""
    engine.refresh()
    for task, sha256 in store.active().items():
        if engine.versions.get(task) == sha256:
            continue
        sequence = store.read(task).checked.header.sequence  # raises what is wrong with it
        shipped = engine.bundle.header(task).sequence if task in engine.bundle.tasks else 0
        if sequence >= shipped:
            raise PatchError(
                f"store {store.folder} has patch {sha256[:16]} active for task {task!r}; the "
                f"engine over bundle {engine.bundle.path} cannot use it, and the log says why; "
                "install a patch that it can use, or leave the store out"
            )


def evaluate_task(
    bundle: Path | str | Bundle,
    dataset: ImageDataset,
    task: str,
    *,
    runtime: str = "litert",
    threads: int = 1,
    limit: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> list[TaskAccuracy]:
    """Top-1 of ``task`` at each of its resolutions, on the first ``limit`` shuffled images.

    Args:
        dataset: images of the task's classes, which may come in another order.
        store: its active patches run in the place of the bundle's older ones.
        progress: told the resolution and the images done, now and then.

    Raises:
        DataError: no images, or the data set's classes are not the task's.
        UnknownTaskError: the bundle has no such task.
    """
    with open_engine(bundle, runtime, threads, store) as engine:
        chosen = sample(dataset, limit)
        labels = head_labels(engine.classes(task), task, chosen)
        rows = []
        for px in engine.resolutions(task):
            share = top1(engine, chosen, labels, task, px, progress)
            rows.append(TaskAccuracy(task, runtime, px, share, len(chosen)))
        return rows


def head_labels(classes: Sequence[str], task: str, dataset: ImageDataset) -> NDArray[np.int64]:
    """The data set's labels as rows of the task's head, int64 [N].

    Raises:
        DataError: no images, or the data set's classes are not the task's.
    """
    labels = task_labels(dataset, classes)
    if labels is None or len(labels) == 0:
        raise DataError(
            f"{dataset.name}: {len(dataset)} images of classes {', '.join(dataset.classes)}; "
            f"task {task!r} has classes {', '.join(classes)}; give images of these classes, one "
            "folder for each, by the same names"
        )
    return labels


def sample(dataset: ImageDataset, limit: int | None, seed: int = 0) -> ImageDataset:
    """At most ``limit`` images, shuffled so that a set sorted by class keeps its mixture."""
    if limit is None or len(dataset) <= limit:
        return dataset
    return dataset.subset(np.random.default_rng(seed).permutation(len(dataset))[:limit])


def leftover(dataset: ImageDataset, limit: int | None, seed: int = 0) -> ImageDataset:
    """The images that `sample` with the same arguments leaves out."""
    kept = len(dataset) if limit is None else limit
    order = np.random.default_rng(seed).permutation(len(dataset))
    return dataset.subset(np.sort(order[kept:]))


def top1(
    engine: Engine,
    dataset: ImageDataset,
    labels: NDArray[np.int64],
    task: str,
    resolution: int,
    progress: Progress | None = None,
) -> float:
    """Share of images whose highest score is the label's row (the first class wins a tie)."""
    pixels = dataset.at(resolution, engine.preprocessing)
    right = 0
    for start in range(0, len(pixels), BATCH):
        part = slice(start, start + BATCH)
        logits = engine.logits(pixels[part], task=task, resolution=resolution)
        right += int(np.count_nonzero(logits.argmax(axis=1) == labels[part]))
        if progress is not None:
            progress(f"{resolution} px: {min(part.stop, len(pixels))} of {len(pixels)} images")
    return right / len(pixels)


def bench_bundle(
    bundle: Path | str | Bundle,
    *,
    runtimes: Sequence[str] = ("litert", "onnxruntime"),
    threads: Sequence[int] = (1, 2),
    rounds: int = 50,
    warmup: int = 5,
    stores: Mapping[str, Store | None] | None = None,
) -> dict[str, Any]:
    """Latency of every resolution and swap times, as plain JSON values.

    Latency: one image of noise, batch 1, resized already; every runtime, thread count and
    resolution in turn. Swaps, between the tasks in turn, at one thread and the largest
    resolution: ``cold`` reads a patch that is not loaded, overlays it and prepares the model;
    ``resident`` switches to one that is loaded.

    Args:
        stores: by runtime, whose active patches run in the place of the bundle's older ones.

    Raises:
        UnknownTaskError: the bundle has no task.
        ConfigError: no runtime, an unknown one, or a count out of range.
    """
    check_candidates(runtimes, threads)
    with ExitStack() as stack:
        engines = {
            (runtime, count): stack.enter_context(
                open_engine(bundle, runtime, count, (stores or {}).get(runtime))
            )
            for runtime in runtimes
            for count in threads
        }
        task = _first_task(next(iter(engines.values())))
        resolutions = next(iter(engines.values())).resolutions(task)
        latency = _latency(engines, task, resolutions, rounds, warmup)
    return {
        "device": describe_device(),
        "task": task,
        "resolutions": list(resolutions),
        "runtimes": list(runtimes),
        "threads": list(threads),
        "batch": 1,
        "warmup": warmup,
        "rounds": rounds,
        "latency": latency,
        "swaps": _swaps(bundle, runtimes, max(resolutions), rounds, warmup, stores or {}),
    }


def check_candidates(runtimes: Sequence[str], threads: Sequence[int]) -> None:
    """Whether there is something to time.

    Raises:
        ConfigError: no runtime, no thread count, or one below 1.
    """
    if not runtimes or not threads or min(threads) < 1:
        raise ConfigError(
            f"runtimes {list(runtimes)}, threads {list(threads)}; there must be at least one of "
            "each, and threads are 1 or more; name for instance litert and 1"
        )


def _first_task(engine: Engine) -> str:
    if not engine.tasks:
        raise UnknownTaskError(
            f"bundle {engine.bundle.path} holds 0 tasks; measuring needs at least 1; add one"
        )
    return engine.tasks[0]


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
    bundle: Path | str | Bundle,
    runtimes: Sequence[str],
    px: int,
    rounds: int,
    warmup: int,
    stores: Mapping[str, Store | None],
) -> list[dict[str, Any]]:
    """Both kinds in turn, each on an engine of its own."""
    rows = []
    for runtime in runtimes:
        with (
            open_engine(bundle, runtime, 1, stores.get(runtime)) as one,
            open_engine(bundle, runtime, 1, stores.get(runtime)) as all_loaded,
        ):
            tasks = [task for task in one.tasks if px in one.resolutions(task)]
            calls = {
                "cold": _cold_swap(one, tasks, px),
                "resident": _resident_swap(all_loaded, tasks, px),
            }
            measurement = measure_interleaved(calls, max(warmup, len(tasks)), rounds)
        rows += [
            {
                "runtime": runtime,
                "kind": kind,
                "resolution": px,
                "threads": 1,
                "tasks": len(tasks),
                "median_ms": measurement.median_ms(kind),
                "rounds": rounds,
            }
            for kind in calls
        ]
    return rows


def _cold_swap(engine: Engine, tasks: Sequence[str], px: int) -> Callable[[], object]:
    """Each call unloads what the last one loaded and makes the next task the current one."""
    turn = cycle(tasks)

    def call() -> None:
        for loaded in engine.residents:
            engine.evict(*loaded)
        engine.swap_to(next(turn), px)

    return call


def _resident_swap(engine: Engine, tasks: Sequence[str], px: int) -> Callable[[], object]:
    """Each call makes the next task the current one; after one turn all are loaded."""
    turn = cycle(tasks)
    return lambda: engine.swap_to(next(turn), px)


def _noise(px: int) -> NDArray[np.uint8]:
    return np.random.default_rng(px).integers(0, 256, (1, px, px, 3)).astype(np.uint8)


def _logits_call(
    engine: Engine, pixels: NDArray[np.uint8], task: str, px: int
) -> Callable[[], object]:
    return lambda: engine.logits(pixels, task=task, resolution=px)
