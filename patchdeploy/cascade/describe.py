"""What a cascade does on labelled images, as one row of a table.

In: answers of every resolution on the same images, a cascade. Out: a `CascadeRow`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.cascade.certify import paired_interval
from patchdeploy.cascade.search import Answers, Thresholds, run_thresholds


@dataclass(frozen=True)
class CascadeRow:
    """One way to answer, on the report split.

    Attributes:
        name: "cascade", "greedy", "64 px" ...
        resolutions: in the order in which they run, px.
        answered: share of the images that each of them answers.
        saving: share of the reference's cost that is not spent.
        accuracy: top-1, as a share.
        gap: accuracy of the reference minus ``accuracy``, with its 95 % interval.
        early: images that an earlier stage than the last answers.
        early_accuracy, early_reference: top-1 of the cascade and of the reference on those images;
            None where there is none.
    """

    name: str
    resolutions: tuple[int, ...]
    answered: tuple[float, ...]
    saving: float
    accuracy: float
    gap: tuple[float, float, float]
    early: int
    early_accuracy: float | None
    early_reference: float | None


def describe(name: str, answers: Answers, cascade: Thresholds) -> CascadeRow:
    """What ``cascade`` does on the images of ``answers``."""
    stage = run_thresholds(answers, cascade).stage
    return describe_stages(name, answers, cascade.resolutions, stage)


def describe_stages(
    name: str, answers: Answers, sides: tuple[int, ...], stage: NDArray[np.int64]
) -> CascadeRow:
    """The same where the stage that answers each image is known.

    Args:
        sides: resolutions in the order in which they run.
        stage: int64 [N], positions in ``sides``.
    """
    correct = np.stack([answers.correct[px] for px in sides])
    own = correct[stage, np.arange(answers.count)]
    reference = answers.correct[answers.reference]
    spent = np.cumsum([answers.costs[px] for px in sides])[stage]
    early = stage < len(sides) - 1
    return CascadeRow(
        name=name,
        resolutions=sides,
        answered=tuple(float(np.mean(stage == k)) for k in range(len(sides))),
        saving=1 - float(spent.mean()) / answers.costs[answers.reference],
        accuracy=float(own.mean()),
        gap=paired_interval(answers.losses(sides, stage)),
        early=int(early.sum()),
        early_accuracy=float(own[early].mean()) if early.any() else None,
        early_reference=float(reference[early].mean()) if early.any() else None,
    )
