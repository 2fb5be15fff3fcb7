"""What a task's cascade does on given images: accuracy, cost, and whether its promise holds there.

In: a bundle whose patch carries a cascade, images. Out: rows for the cascade and for every
resolution alone; for images without labels, how often it disagrees with its reference; and
milliseconds from decoded images, measured image by image in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.bundle.reader import REFERENCE
from patchdeploy.cascade import Answers, Cascade, smallest_tolerance
from patchdeploy.cascade.certify import betting_p_value, check_level, contradicts
from patchdeploy.cascade.describe import CascadeRow, describe_stages
from patchdeploy.data import ImageDataset
from patchdeploy.data.overlap import without_copies
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.evaluate import check_candidates, head_labels, open_engine, sample
from patchdeploy.measure import (
    RESAMPLES,
    describe_device,
    measure_interleaved,
    read_load_average,
)
from patchdeploy.runtime import Engine
from patchdeploy.runtime.task_scores import (
    Progress,
    TaskScores,
    count_costs,
    in_any_order,
    score_images,
)
from patchdeploy.store import Store

MAX_TIMED_BYTES = 1 << 30
LEAST_TIMED = 20
"""Images: below, the shares of the stages say nothing about a mean time."""


@dataclass(frozen=True)
class CascadeEvaluation:
    """A cascade on labelled images.

    Attributes:
        task, runtime, images: what ran, and on how many images.
        cascade: as the patch carries it.
        cost_unit: of the savings: "macs", or "pixels" where this copy of the bundle holds no
            reference network to count in.
        rows: the cascade, then every resolution alone.
        shown: these images alone would certify what the patch promises.
        contradicted: they show that it loses more than its tolerance, at its confidence.
        smallest_tolerance: the least that these images show, as a share.
    """

    task: str
    runtime: str
    images: int
    cascade: Cascade
    cost_unit: str
    rows: tuple[CascadeRow, ...]
    shown: bool
    contradicted: bool
    smallest_tolerance: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """A cascade against its reference on images without labels.

    Attributes:
        task, runtime, images: what ran, and on how many images.
        cascade: as the patch carries it.
        tolerance, confidence: greatest share of images that may be answered otherwise, and how
            sure that is to be.
        disagreeing: share of the images that the cascade answers otherwise than the reference.
        p_value: of "more than ``tolerance`` are answered otherwise".
        shown: ``p_value`` is at most 1 - ``confidence``.
        smallest_tolerance: the least that these images show, as a share.
        answered: share of the images that each stage answers.
    """

    task: str
    runtime: str
    images: int
    cascade: Cascade
    tolerance: float
    confidence: float
    disagreeing: float
    p_value: float
    shown: bool
    smallest_tolerance: float
    answered: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def require_cascade(engine: Engine, task: str) -> Cascade:
    """The cascade of ``task``'s patch.

    Raises:
        ConfigError: it has none.
        UnknownTaskError: no such task.
    """
    found = engine.cascade(task)
    if found is None:
        raise ConfigError(
            f"the patch of task {task!r} has no cascade; fit one with patchdeploy cascade"
        )
    return found


def evaluate_cascade(
    bundle: Path | str | Bundle,
    dataset: ImageDataset,
    task: str,
    *,
    runtime: str = "litert",
    threads: int = 1,
    limit: int | None = None,
    store: Store | None = None,
    progress: Progress | None = None,
) -> CascadeEvaluation:
    """The cascade of ``task`` on the first ``limit`` shuffled images.

    Args:
        dataset: images of the task's classes that neither trained nor fitted anything; equal
            pixels count once.
        store: its active patches run in the place of the bundle's older ones.

    Raises:
        ConfigError: the patch has no cascade.
        DataError: no images, or the data set's classes are not the task's.
        UnknownTaskError: the bundle has no such task.
    """
    with open_engine(bundle, runtime, threads, store) as engine:
        cascade = require_cascade(engine, task)
        chosen = without_copies(sample(dataset, limit))
        labels = head_labels(engine.classes(task), task, chosen)
        scores = score_images(engine, chosen, labels, task, progress)
        unit, costs = _costs(engine, task)
    return judge_cascade(scores, cascade, costs, unit, task, runtime)


def judge_cascade(
    scores: TaskScores,
    cascade: Cascade,
    costs: Mapping[int, float],
    unit: str,
    task: str,
    runtime: str,
) -> CascadeEvaluation:
    """The evaluation from scores alone."""
    rule, certificate = cascade.rule, cascade.certificate
    answers = Answers(scores.correct, {}, costs, certificate.reference)
    stage = scores.stages(rule)
    rows = [describe_stages("cascade", answers, rule.resolutions, stage)]
    nowhere = np.zeros_like(stage)
    rows += [describe_stages(f"{px} px", answers, (px,), nowhere) for px in answers.by_cost]
    losses = in_any_order(answers.losses(rule.resolutions, stage))
    level = 1 - certificate.confidence
    return CascadeEvaluation(
        task=task,
        runtime=runtime,
        images=len(losses),
        cascade=cascade,
        cost_unit=unit,
        rows=tuple(rows),
        shown=betting_p_value(losses, certificate.tolerance, level) <= level,
        contradicted=contradicts(losses, certificate.tolerance, certificate.confidence),
        smallest_tolerance=smallest_tolerance(losses, certificate.confidence),
    )


def _costs(engine: Engine, task: str) -> tuple[str, Mapping[int, float]]:
    if (engine.bundle.path / REFERENCE).exists():
        return "macs", count_costs(engine, task)
    return "pixels", {px: float(px * px) for px in engine.resolutions(task)}


def recertify_cascade(
    bundle: Path | str | Bundle,
    dataset: ImageDataset,
    task: str,
    *,
    tolerance: float | None = None,
    confidence: float | None = None,
    runtime: str = "litert",
    threads: int = 1,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Agreement:
    """Test the cascade of ``task`` on a user's own images, which need no labels.

    The loss of an image is 1 where the cascade gives another class than its reference, else 0: an
    upper bound of what accuracy it loses. Nothing is chosen here and nothing is written.

    Args:
        dataset: images; its labels are not looked at, and equal pixels count once.
        tolerance, confidence: as shares; by default those of the patch.

    Raises:
        ConfigError: the patch has no cascade; a tolerance or confidence outside its range.
        DataError: no images.
        UnknownTaskError: the bundle has no such task.
    """
    with open_engine(bundle, runtime, threads, store) as engine:
        cascade = require_cascade(engine, task)
        certificate = cascade.certificate
        tolerance = certificate.tolerance if tolerance is None else tolerance
        confidence = certificate.confidence if confidence is None else confidence
        check_level(tolerance, confidence)
        if not len(dataset):
            raise DataError(f"{dataset.name}: no images; a test needs some; give a folder of them")
        dataset = without_copies(dataset)
        nothing = np.zeros(len(dataset), np.int64)
        scores = score_images(engine, dataset, nothing, task, progress)
    stage = scores.stages(cascade.rule)
    said = np.stack([scores.codes[px].argmax(axis=1) for px in cascade.rule.resolutions])
    reference = scores.codes[certificate.reference].argmax(axis=1)
    losses = in_any_order((said[stage, np.arange(len(stage))] != reference).astype(np.int64))
    p_value = betting_p_value(losses, tolerance, 1 - confidence)
    return Agreement(
        task=task,
        runtime=runtime,
        images=len(losses),
        cascade=cascade,
        tolerance=tolerance,
        confidence=confidence,
        disagreeing=float(losses.mean()),
        p_value=p_value,
        shown=p_value <= 1 - confidence,
        smallest_tolerance=smallest_tolerance(losses, confidence),
        answered=tuple(float(np.mean(stage == k)) for k in range(len(cascade.rule.stages))),
    )


# -- milliseconds ----------------------------------------------------------------------------------


def bench_cascade(
    bundle: Path | str | Bundle,
    dataset: ImageDataset,
    task: str,
    *,
    runtimes: Sequence[str] = ("litert", "onnxruntime"),
    threads: Sequence[int] = (1, 2),
    images: int = 200,
    repeats: int = 5,
    warmup: int = 5,
    stores: Mapping[str, Store | None] | None = None,
) -> dict[str, Any]:
    """Milliseconds of the cascade and of every resolution alone, as plain JSON values.

    ``answered``: by runtime and resolution, the share of the images.

    One image at a time, from its decoded pixels to its class, resizing and decisions included. In
    a round every candidate of one runtime and thread count classifies the same image, so that a
    saving compares the same images under the same noise. Every image comes ``repeats`` times, and
    its median counts: a scheduler that interrupts a call of a fraction of a millisecond adds
    several.

    Args:
        dataset: images of the kind that the app will see: how many the first stages answer is up
            to them.
        images: the first so many shuffled ones.
        repeats: rounds of each.

    Raises:
        ConfigError: the patch has no cascade; a count out of range.
        DataError: too few images.
    """
    check_candidates(runtimes, threads)
    if repeats < 1:
        raise ConfigError(f"repeats {repeats}; each image is timed once or more; choose 5")
    chosen = sample(dataset, images)
    if len(chosen) < LEAST_TIMED:
        raise DataError(
            f"{dataset.name}: {len(chosen)} images to time; which stage answers differs from image "
            f"to image, so at least {LEAST_TIMED} are needed; give more"
        )
    pixels = _decode_all(chosen)
    load_average = read_load_average()
    rows: list[dict[str, Any]] = []
    shares: dict[str, dict[str, float]] = {}
    for runtime in runtimes:
        for count in threads:
            # One engine at a time: waiting threads of another one would hold the cores.
            with open_engine(bundle, runtime, count, (stores or {}).get(runtime)) as engine:
                cascade = require_cascade(engine, task)
                engine.prewarm_cascade(task)
                answered: list[int] = []
                calls = {
                    str(px): _turns(engine, pixels, task, px, []) for px in engine.resolutions(task)
                }
                calls["cascade"] = _turns(engine, pixels, task, None, answered)
                measured = measure_interleaved(calls, warmup=warmup, rounds=repeats * len(pixels))
            samples = {
                name: np.median(one.reshape(repeats, -1), axis=0)
                for name, one in measured.samples_ms.items()
            }
            whole = samples[str(cascade.certificate.reference)]
            shares[runtime] = {  # whatever the number of threads
                str(px): answered[warmup:].count(px) / (repeats * len(pixels))
                for px in cascade.rule.resolutions
            }
            for name, own in samples.items():
                named = {"runtime": runtime, "threads": count, "name": name}
                rows.append(named | _timing(own, whole))
    return {
        "device": describe_device(),
        "task": task,
        "reference": cascade.certificate.reference,
        "images": len(pixels),
        "repeats": repeats,
        "load_average": load_average,
        "answered": shares,
        "rows": rows,
    }


def _decode_all(chosen: ImageDataset) -> list[NDArray[np.uint8]]:
    """Images at their full size, so that timing starts from pixels.

    Raises:
        DataError: they do not fit in the memory that is meant for them.
    """
    pixels: list[NDArray[np.uint8]] = []
    held = 0
    for index in range(len(chosen)):
        pixels.append(np.asarray(chosen.images[index]))
        held += pixels[-1].nbytes
        if held > MAX_TIMED_BYTES:
            raise DataError(
                f"{chosen.name}: {index + 1} of {len(chosen)} images take {held >> 20} MB decoded; "
                "they are held in memory while they are timed, and at most "
                f"{MAX_TIMED_BYTES >> 20} MB are; time fewer, or smaller ones"
            )
    return pixels


def _turns(
    engine: Engine,
    pixels: Sequence[NDArray[np.uint8]],
    task: str,
    resolution: int | None,
    answered: list[int],
) -> Callable[[], object]:
    """Each call classifies the next image, by the cascade where no resolution is given.

    Args:
        answered: gets the resolution that answers.
    """
    turn = cycle(pixels)

    def call() -> None:
        found = engine.classify(next(turn), task, resolution, cascade=resolution is None)
        answered.append(found.resolution)

    return call


def _timing(own: NDArray[np.float64], whole: NDArray[np.float64]) -> dict[str, Any]:
    """Means, since an app pays the mean; saving with its 95 % bootstrap interval over images.

    Args:
        own, whole: float64 [images], ms of a candidate and of the reference.
    """
    chosen = np.random.default_rng(0).integers(0, len(own), (RESAMPLES, len(own)))
    savings = 1 - own[chosen].mean(axis=1) / whole[chosen].mean(axis=1)
    low, high = np.percentile(savings, (2.5, 97.5))
    return {
        "mean_ms": float(own.mean()),
        "median_ms": float(np.median(own)),
        "p90_ms": float(np.percentile(own, 90)),
        "saving": float(1 - own.mean() / whole.mean()),
        "saving_interval": [float(low), float(high)],
    }
