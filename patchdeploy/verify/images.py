"""The part of verifying that runs images: reference, runtimes, float.

In: a bundle and images for each task. Out: rows (name, subject, passed, detail, numbers).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.bundle.reader import REFERENCE
from patchdeploy.data import ImageDataset, load_any_folder
from patchdeploy.errors import MissingExtraError, PatchdeployError
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import QuantizedBase, unflatten_variant
from patchdeploy.runtime import Engine
from patchdeploy.runtime.choose import RUNTIME_FORMATS
from patchdeploy.runtime.ort import load_onnxruntime
from patchdeploy.verify.bare import check_bare
from patchdeploy.verify.cascade import check_cascade
from patchdeploy.verify.float import (
    NAME,
    FloatNetwork,
    compare_with_network,
    compare_with_record,
    read_record,
)
from patchdeploy.verify.task_run import TaskRun

TaskImages = Mapping[str, ImageDataset] | ImageDataset | str | Path | None
Row = tuple[str, str, bool | None, str, dict[str, Any]]
Scores = NDArray[np.float32]

SYNTHETIC = "synthetic"
_SYNTHETIC_COUNT = 8
BATCH = 32


def images_for_tasks(images: TaskImages, task: str | None) -> Callable[[str, int], ImageDataset]:
    """A function from a task's name and the largest resolution to the task's images.

    Args:
        task: the one that ``images`` belongs to; None: every task.

    Raises:
        DataError: a folder without images.
    """
    if isinstance(images, str | Path):
        images = load_any_folder(images)
    given: TaskImages = images

    def pick(wanted: str, px: int) -> ImageDataset:
        found = given.get(wanted) if isinstance(given, Mapping) else given
        if not isinstance(found, ImageDataset) or task not in (None, wanted):
            return synthetic_images(px)
        return found

    return pick


def synthetic_images(px: int) -> ImageDataset:
    """A few smooth and noisy images, where nobody gave real ones; no labels."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (_SYNTHETIC_COUNT, 5, 5, 3), np.uint8)
    where = np.arange(px) * 5 // px
    noise = rng.integers(-20, 21, (_SYNTHETIC_COUNT, px, px, 3))
    images = np.clip(coarse[:, where][:, :, where] + noise, 0, 255).astype(np.uint8)
    return ImageDataset(SYNTHETIC, images, np.zeros(_SYNTHETIC_COUNT, np.int64), ("",))


def check_images(
    bundle: Bundle,
    formats: Sequence[str],
    datasets: Callable[[str, int], ImageDataset],
    limit: int,
    reference_limit: int,
    tolerance_lsb: int,
    machine: str | None,
    networks: Mapping[str, FloatNetwork],
) -> Iterator[Row]:
    """Every task and resolution on every runtime, against the reference, float and the labels."""
    has_reference = (bundle.path / REFERENCE).exists()
    base = bundle.reference() if has_reference else None
    if base is None:
        yield ("runtime = reference", "reference", None, "no reference in this copy", {})
    for runtime in (name for name, needed in RUNTIME_FORMATS.items() if needed in formats):
        try:
            engine = Engine.open(bundle, runtime, budget_bytes=0)
        except MissingExtraError as error:
            yield ("runtime = reference", runtime, None, str(error), {})
            continue
        except PatchdeployError as error:
            yield ("runtime = reference", runtime, False, str(error), {})
            continue
        with engine:
            for task in bundle.tasks:
                dataset = datasets(task, bundle.manifest.resolutions[-1])
                shown = dataset.subset(_spread(len(dataset), limit))
                run = TaskRun(engine, runtime, task, shown, machine)
                for px in bundle.task(task).resolutions:
                    yield from _check_resolution(run, px, base, reference_limit, tolerance_lsb)
                yield from _check_float(run, networks.get(task))
                yield from check_cascade(run, base, reference_limit)


def _check_float(run: TaskRun, network: FloatNetwork | None) -> Iterator[Row]:
    """int8 against float: the scores kept at export, and the network itself where it is given."""
    task, suffix = run.task, f" {run.runtime}"
    try:
        record = read_record(run.bundle, task)
        if record is None and network is None:
            detail = "no float scores in this copy; give the base and the patch to compare with"
            yield (NAME, task + suffix, None, detail, {})
        for px in run.bundle.task(task).resolutions:
            if record is not None:
                row = compare_with_record(run.engine, task, px, record)
                yield (row[0], row[1] + suffix, *row[2:])
            if network is not None:
                pixels = run.dataset.at(px, run.engine.preprocessing)
                name = run.dataset.name
                row = compare_with_network(run.engine, task, px, network, pixels, name)
                yield (row[0], row[1] + suffix, *row[2:])
    except PatchdeployError as error:
        yield (NAME, task + suffix, False, str(error), {})


def _check_resolution(
    run: TaskRun, px: int, base: QuantizedBase | None, reference_limit: int, tolerance_lsb: int
) -> Iterator[Row]:
    subject = f"{run.task} {px} px {run.runtime}"
    pixels = run.dataset.at(px, run.engine.preprocessing)
    labels = task_labels(run.dataset, run.classes)
    try:
        scores = run.engine.logits(pixels, run.task, px)
        if base is not None:
            some = pixels[:reference_limit]
            yield _compare(run, base, px, subject, some, scores[: len(some)], tolerance_lsb)
        if run.runtime == "onnxruntime":
            yield _check_per_run(run, px, subject, pixels[:2], scores[:2])
            some, own = pixels[:reference_limit], scores[:reference_limit]
            yield check_bare(run.bundle, run.task, px, subject, some, own)
    except PatchdeployError as error:
        yield ("runtime = reference", subject, False, str(error), {})
        return
    if labels is not None:
        yield _accuracy(run, px, subject, pixels, labels, scores)


def _compare(
    run: TaskRun,
    base: QuantizedBase,
    px: int,
    subject: str,
    pixels: NDArray[np.uint8],
    scores: Scores,
    tolerance_lsb: int,
) -> Row:
    """The head's output in steps of its scale (LSB), and the best class."""
    values = run.bundle.patch(run.task, px).values[px]
    variant = unflatten_variant(base, values, run.task, px)
    found = run_integer(base, variant, pixels, run.arithmetic)
    reference = found.logits[:, : len(run.classes)]
    scale = float(values.activation_scale[run.bundle.manifest.layout.head_output])
    largest = int(np.rint(np.abs(scores - reference) / scale).max(initial=0))
    equal = float(np.mean(scores.argmax(1) == reference.argmax(1)))
    numbers = {
        "images": len(pixels),
        "largest_lsb": largest,
        "equal_top1": equal,
        "arithmetic": run.arithmetic.name,
    }
    detail = (
        f"{run.engine.runtime}: largest difference {largest} LSB, equal top-1 {100 * equal:.1f} % "
        f"of {len(pixels)} images ({run.dataset.name})"
    )
    if largest > tolerance_lsb:
        detail += f" in {run.arithmetic.name} arithmetic; at most {tolerance_lsb} LSB is allowed"
    return ("runtime = reference", subject, largest <= tolerance_lsb, detail, numbers)


def _check_per_run(
    run: TaskRun, px: int, subject: str, pixels: NDArray[np.uint8], scores: Scores
) -> Row:
    with Engine.open(run.bundle, "onnxruntime", mode="per_run") as engine:
        same = np.array_equal(engine.logits(pixels, run.task, px), scores)
    return ("per-run = resident", subject, same, "equal" if same else "different scores", {})


def task_labels(dataset: ImageDataset, classes: Sequence[str]) -> NDArray[np.int64] | None:
    """The dataset's labels as indices of ``classes``; None where its classes are others."""
    return dataset.labels_as(classes)


def _accuracy(
    run: TaskRun,
    px: int,
    subject: str,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    scores: Scores,
) -> Row:
    """Top-1 of int8 and, where a float file is there, of float: a fact, never a failure."""
    top1 = float(np.mean(scores.argmax(1) == labels))
    float_top1, note = _float_top1(run, px, pixels, labels)
    numbers: dict[str, Any] = {"images": len(labels), "int8_top1": top1}
    detail = f"int8 {100 * top1:.2f} %"
    if float_top1 is not None:
        drop = 100 * (float_top1 - top1)
        numbers |= {"float_top1": float_top1, "drop_points": drop}
        detail += f", float {100 * float_top1:.2f} %, drop {drop:.2f} points"
    detail += f", {len(labels)} images" + (f" ({note})" if note else "")
    return ("accuracy", subject, True, detail, numbers)


def _float_top1(
    run: TaskRun, px: int, pixels: NDArray[np.uint8], labels: NDArray[np.int64]
) -> tuple[float | None, str]:
    """Top-1 of the task's float32 file in ONNX Runtime, or why there is none."""
    path = run.bundle.task(run.task).float_files.get(str(px))
    if path is None or not (run.bundle.path / path).exists():
        return None, "no float file"
    try:
        session = load_onnxruntime().InferenceSession(
            run.bundle.read(path), providers=["CPUExecutionProvider"]
        )
    except MissingExtraError as error:
        return None, str(error)
    name = session.get_inputs()[0].name
    found = [
        session.run(None, {name: np.ascontiguousarray(pixels[k : k + BATCH])})[0].argmax(1)
        for k in range(0, len(pixels), BATCH)
    ]
    return float(np.mean(np.concatenate(found) == labels)), ""


def _spread(total: int, limit: int) -> list[int]:
    """At most ``limit`` indices, evenly through ``total`` images (which may be sorted)."""
    if total <= limit:
        return list(range(total))
    return [k * total // limit for k in range(limit)]
