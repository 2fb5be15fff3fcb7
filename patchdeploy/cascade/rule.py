"""A cascade: which resolutions run in which order, and how sure each must be to answer.

In: the confidence of each stage on an image. Out: the stage that answers. A value of a patch;
`patchdeploy.patchfile` writes and reads it, an Engine runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.cascade.certify import Certificate
from patchdeploy.cascade.scores import MAX_CONFIDENCE, MAX_RATIO, SCORE_KINDS, ScoreKind
from patchdeploy.errors import ConfigError

MAX_THRESHOLD = 2**31 - 1
"""Above every confidence: a stage with it never answers."""


@dataclass(frozen=True)
class Stage:
    """One resolution of a cascade.

    Attributes:
        resolution: side in pixels.
        threshold: the stage answers where its confidence is at least this; 0 for the last stage,
            which always answers.
        ratio: of its exponentials, see `patchdeploy.cascade.scores`; 0 where the score is the
            margin, and for the last stage.
    """

    resolution: int
    threshold: int
    ratio: int


@dataclass(frozen=True)
class CascadeRule:
    """Stages in the order in which they run.

    Attributes:
        score: what a confidence is.
        stages: one or more, each resolution once; the last one always answers.

    Raises:
        ConfigError: a field is outside its range.
    """

    score: ScoreKind
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        sides = [stage.resolution for stage in self.stages]
        if self.score not in SCORE_KINDS:
            raise ConfigError(
                f"score {self.score!r}; a cascade's score is one of {', '.join(SCORE_KINDS)}"
            )
        if not sides or len(set(sides)) != len(sides):
            raise ConfigError(
                f"stages at {', '.join(map(str, sides)) or 'no'} px; a cascade has one stage or "
                "more, each at a resolution that no other has; remove the repeated ones"
            )
        for stage in self.stages[:-1]:
            self._check_stage(stage)
        if (self.stages[-1].threshold, self.stages[-1].ratio) != (0, 0):
            raise ConfigError(
                f"the last stage has threshold {self.stages[-1].threshold} and ratio "
                f"{self.stages[-1].ratio}; it always answers, so both must be 0"
            )

    def _check_stage(self, stage: Stage) -> None:
        most = 0 if self.score == "margin" else MAX_RATIO
        if not 0 <= stage.threshold <= MAX_THRESHOLD or not min(1, most) <= stage.ratio <= most:
            raise ConfigError(
                f"stage at {stage.resolution} px has threshold {stage.threshold} and ratio "
                f"{stage.ratio}; with score {self.score} they are 0 to {MAX_THRESHOLD} and "
                f"{min(1, most)} to {most}; fit the cascade again"
            )

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Sides in pixels, in the order in which they run."""
        return tuple(stage.resolution for stage in self.stages)

    @property
    def idle_resolutions(self) -> tuple[int, ...]:
        """Stages that answer no image at all: their threshold is above every confidence, or a
        stage before them answers every image."""
        idle, is_over = [], False
        for stage in self.stages:
            if is_over or stage.threshold > MAX_CONFIDENCE[self.score]:
                idle.append(stage.resolution)
            is_over = is_over or stage.threshold == 0
        return tuple(idle)


@dataclass(frozen=True)
class Cascade:
    """What a patch carries: the rule, and what was shown about it."""

    rule: CascadeRule
    certificate: Certificate


def route(rule: CascadeRule, confidences: Mapping[int, NDArray[np.int64]]) -> NDArray[np.int64]:
    """int64 [N]: position in ``rule.stages`` of the stage that answers each image.

    Args:
        confidences: by resolution, int64 [N], of every stage but the last.
    """
    last = len(rule.stages) - 1
    if last == 0:
        raise ValueError("a cascade of one stage routes nothing: its only stage answers")
    sure = [confidences[stage.resolution] >= stage.threshold for stage in rule.stages[:-1]]
    return first_sure(sure)


def first_sure(sure: Sequence[NDArray[np.bool_]]) -> NDArray[np.int64]:
    """int64 [N]: the first position that is sure of an image; their number where none is."""
    everywhere = np.ones_like(sure[0], dtype=bool)
    found: NDArray[np.int64] = np.argmax([*sure, everywhere], axis=0).astype(np.int64)
    return found
