"""int8 scores of a task's resolutions on a data set, and what an image costs at each.

In: an Engine and images. Out: a `TaskScores`, from which cascades are fitted, evaluated and
verified, and costs in multiply-accumulates or in milliseconds of this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.cascade import Answers, Cascade, CascadeRule, confidence, route
from patchdeploy.cascade.scores import ScoreKind, exponential_ratio
from patchdeploy.data import ImageDataset
from patchdeploy.graph import count_macs
from patchdeploy.measure import measure_interleaved
from patchdeploy.runtime.engine import Engine
from patchdeploy.runtime.self_test import score_codes

Progress = Callable[[str], None]
Costs = Mapping[int, float]
BATCH = 256
"""Images that are resized and run at once: what is in memory of a large validation set."""
WARMUP, ROUNDS, TIMED_IMAGES = 3, 30, 8


@dataclass(frozen=True, eq=False)
class TaskScores:
    """int8 scores of one task on the same images.

    Attributes:
        codes: by resolution, int8 [N, classes].
        labels: int64 [N], rows of the head.
        output_scales: by resolution, the real value of one code.
    """

    codes: Mapping[int, NDArray[np.int8]]
    labels: NDArray[np.int64]
    output_scales: Mapping[int, float]

    @property
    def ratios(self) -> dict[int, int]:
        """By resolution, see `patchdeploy.cascade.scores.exponential_ratio`."""
        return {px: exponential_ratio(scale) for px, scale in self.output_scales.items()}

    @property
    def correct(self) -> dict[int, NDArray[np.bool_]]:
        """By resolution, bool [N]: the highest score is the label's (the first of equal ones)."""
        return {px: found.argmax(axis=1) == self.labels for px, found in self.codes.items()}

    def subset(self, images: NDArray[np.int64]) -> TaskScores:
        """The same of some images, by their positions."""
        codes = {px: found[images] for px, found in self.codes.items()}
        return TaskScores(codes, self.labels[images], self.output_scales)

    def answers(self, kind: ScoreKind, costs: Costs, reference: int) -> Answers:
        """What each resolution says, and how sure it is by its own ratio."""
        ratios = self.ratios
        sure = {px: confidence(kind, found, ratios[px]) for px, found in self.codes.items()}
        return Answers(self.correct, sure, costs, reference)

    def stages(self, rule: CascadeRule) -> NDArray[np.int64]:
        """int64 [N]: position in ``rule.stages`` of the stage that answers, by the rule's ratios.

        Raises:
            KeyError: a stage at a resolution without scores.
        """
        if len(rule.stages) == 1:
            return np.zeros(len(self.labels), np.int64)
        return route(
            rule,
            {
                one.resolution: confidence(rule.score, self.codes[one.resolution], one.ratio)
                for one in rule.stages[:-1]
            },
        )

    def losses(self, cascade: Cascade) -> NDArray[np.int64]:
        """int64 [N] in -1, 0, 1, `in_any_order`: what ``cascade`` loses against its reference."""
        rule = cascade.rule
        answers = Answers(self.correct, {}, {}, cascade.certificate.reference)
        return in_any_order(answers.losses(rule.resolutions, self.stages(rule)))


def in_any_order(losses: NDArray[np.int64]) -> NDArray[np.int64]:
    """``losses`` shuffled by a fixed seed: a test bets on one after the other, and a folder of
    images comes sorted by class."""
    return losses[np.random.default_rng(0).permutation(len(losses))]


def score_images(
    engine: Engine,
    dataset: ImageDataset,
    labels: NDArray[np.int64],
    task: str,
    progress: Progress | None = None,
) -> TaskScores:
    """int8 scores of every resolution of ``task`` on all images, by the patch that the engine runs.

    Args:
        labels: int64 [N], rows of the head.
    """
    codes: dict[int, NDArray[np.int8]] = {}
    scales: dict[int, float] = {}
    for px in engine.resolutions(task):
        values, table = engine.patch_values(task, px)
        parts = []
        for start in range(0, len(dataset), BATCH):
            chosen = np.arange(start, min(start + BATCH, len(dataset)))
            pixels = dataset.subset(chosen).at(px, engine.preprocessing)
            parts.append(score_codes(engine.logits(pixels, task, px), values, table))
            if progress is not None:
                progress(f"{px} px: {chosen[-1] + 1} of {len(dataset)} images")
        codes[px] = np.concatenate(parts)
        scales[px] = float(values.activation_scale[table.output_index])
    return TaskScores(codes, labels, scales)


def count_costs(engine: Engine, task: str) -> dict[int, float]:
    """Multiply-accumulates of the convolutions for one image, by resolution.

    Raises:
        IntegrityError: this copy of the bundle has no reference to count in.
    """
    graph = engine.bundle.reference().graph
    return {px: float(count_macs(graph, px, px)) for px in engine.resolutions(task)}


def measure_costs(engine: Engine, dataset: ImageDataset, task: str) -> dict[int, float]:
    """Milliseconds for one image from its pixels, resizing included, by resolution."""
    images = [np.asarray(dataset.images[k]) for k in range(min(TIMED_IMAGES, len(dataset)))]

    def call(px: int) -> Callable[[], object]:
        return lambda: [engine.classify(one, task, px) for one in images]

    calls = {str(px): call(px) for px in engine.resolutions(task)}
    measured = measure_interleaved(calls, WARMUP, ROUNDS)
    return {px: measured.median_ms(str(px)) / len(images) for px in engine.resolutions(task)}
