"""The part of verifying that looks at cascades: the same decisions everywhere, and the promise.

In: a task on a runtime, with images. Out: rows (name, subject, passed, detail, numbers); none where
the task's patch carries no cascade.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.cascade import Cascade, CascadeRule
from patchdeploy.cascade.certify import contradicts, paired_interval
from patchdeploy.data.overlap import distinct_places
from patchdeploy.errors import PatchdeployError
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import QuantizedBase, unflatten_variant
from patchdeploy.runtime.engine import CASCADE_BATCH
from patchdeploy.runtime.self_test import score_codes
from patchdeploy.runtime.task_scores import TaskScores, score_images
from patchdeploy.verify.task_run import TaskRun

Row = tuple[str, str, bool | None, str, dict[str, Any]]
DECISIONS, PROMISE = "cascade decisions", "cascade promise"


def check_cascade(run: TaskRun, base: QuantizedBase | None, reference_limit: int) -> Iterator[Row]:
    """Which stage answers: the Engine against the rule on its scores, and against the executor's;
    with labels, whether the images contradict what the patch promises.

    Args:
        base: the reference network; None: it is not in this copy.
        reference_limit: images that the executor runs.
    """
    subject = f"{run.task} {run.runtime}"
    try:
        cascade = run.engine.cascade(run.task)
        if cascade is None:
            return
        labels = run.dataset.labels_as(run.classes)
        known = np.zeros(len(run.dataset), np.int64) if labels is None else labels
        scores = score_images(run.engine, run.dataset, known, run.task)
        wrong, detail, numbers = _compare_with_rule(run, cascade.rule, scores)
        if base is not None:
            equal, differing = _compare_with_executor(
                run, cascade.rule, base, reference_limit, scores
            )
            numbers |= {"compared": equal, "differing": differing}
            detail += f"; the executor's on {equal} images with equal scores"
            wrong += differing
        if wrong:
            detail += f"; {wrong} DECISIONS ARE NOT THE RULE'S"
        yield (DECISIONS, subject, wrong == 0, detail, numbers)
        if labels is not None:
            distinct = scores.subset(np.array(distinct_places(run.dataset)))
            yield (PROMISE, subject, *_judge(distinct, cascade))
    except PatchdeployError as error:
        yield (DECISIONS, subject, False, str(error), {})


def _compare_with_rule(
    run: TaskRun, rule: CascadeRule, scores: TaskScores
) -> tuple[int, str, dict[str, Any]]:
    """Images that the Engine answers at another stage than ``rule`` on its own scores."""
    sides = rule.resolutions
    stages = scores.stages(rule)
    images = run.dataset.images
    said: list[int] = []
    for start in range(0, len(images), CASCADE_BATCH):  # at their full size: a few at a time
        chunk = [
            np.asarray(images[k]) for k in range(start, min(start + CASCADE_BATCH, len(images)))
        ]
        found = run.engine.classify(chunk, run.task, cascade=True)
        said += [one.resolution for one in found]
    wrong = int(np.count_nonzero(np.array(sides)[stages] != said))
    answered = [int(np.count_nonzero(stages == k)) for k in range(len(sides))]
    shares = ", ".join(f"{count} at {px} px" for px, count in zip(sides, answered, strict=True))
    detail = f"of {len(images)} images ({run.dataset.name}) {shares}"
    if rule.idle_resolutions:
        detail += f"; {', '.join(map(str, rule.idle_resolutions))} px can never answer"
    return wrong, detail, {"images": len(images), "wrong": wrong, "answered": answered}


def _compare_with_executor(
    run: TaskRun, rule: CascadeRule, base: QuantizedBase, limit: int, scores: TaskScores
) -> tuple[int, int]:
    """Images with equal codes at every stage that ran, and how many of them another stage answers.

    The executor's codes are of its own int8 output; nothing of a runtime is in them.
    """
    some = run.dataset.subset(np.arange(min(limit, len(run.dataset))))
    codes: dict[int, NDArray[np.int8]] = {}
    for px in rule.resolutions:
        values, table = run.engine.patch_values(run.task, px)
        variant = unflatten_variant(base, values, run.task, px)
        pixels = some.at(px, run.engine.preprocessing)
        found = run_integer(base, variant, pixels, run.arithmetic).logits
        codes[px] = score_codes(found[:, : len(run.classes)], values, table)
    own = scores.subset(np.arange(len(some)))
    executor = TaskScores(codes, own.labels, own.output_scales)
    equal = _equal_until_answered(rule, own, executor)
    differing = own.stages(rule)[equal] != executor.stages(rule)[equal]
    return int(equal.sum()), int(differing.sum())


def _equal_until_answered(
    rule: CascadeRule, own: TaskScores, other: TaskScores
) -> NDArray[np.bool_]:
    """bool [N]: all stages that ran for ``own`` have the same codes in ``other``."""
    stages = own.stages(rule)
    equal = np.ones(len(stages), bool)
    for place, px in enumerate(rule.resolutions):
        same = (own.codes[px] == other.codes[px]).all(axis=1)
        equal &= same | (stages < place)
    return equal


def _judge(scores: TaskScores, cascade: Cascade) -> tuple[bool | None, str, dict[str, Any]]:
    """What the patch promises against labelled images."""
    certificate = cascade.certificate
    losses = scores.losses(cascade)
    mean, low, high = paired_interval(losses)
    accused = contradicts(losses, certificate.tolerance, certificate.confidence)
    numbers = {
        "images": len(losses),
        "gap": mean,
        "gap_interval": [low, high],
        "tolerance": certificate.tolerance,
        "confidence": certificate.confidence,
        "certified": certificate.certified,
        "contradicted": accused,
    }
    detail = (
        f"{100 * mean:.2f} points ({100 * low:.2f} to {100 * high:.2f}) below "
        f"{certificate.reference} px on {len(losses)} images; at most "
        f"{100 * certificate.tolerance:g} "
    )
    if not certificate.certified:
        return None, detail + "was asked, and NOT CERTIFIED", numbers
    if accused:
        return False, detail + "is promised, and THESE IMAGES SHOW THAT IT LOSES MORE", numbers
    confidence = f"{100 * certificate.confidence:g} % confidence"
    return True, detail + f"is promised at {confidence}: not contradicted", numbers
