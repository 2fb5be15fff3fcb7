"""The cascades that an Engine runs: what each version's patch says, and which stages answered.

In: versions of tasks, float scores of a stage. Out: which images that stage is sure of. A version's
cascade is read once; what runs with it keeps it, whatever the store brings meanwhile.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.cascade import Cascade, CascadeRule, Stage, confidence
from patchdeploy.data import Pixels, Preprocessing, resize_image
from patchdeploy.errors import ConfigError
from patchdeploy.runtime.prediction import Prediction
from patchdeploy.runtime.self_test import output_codes, output_scale
from patchdeploy.runtime.versions import TaskVersion

LOGGER = logging.getLogger("patchdeploy.engine")
KEPT = 64
"""Versions whose cascade is kept in memory."""


@dataclass(frozen=True, eq=False)
class LoadedCascade:
    """A version's cascade with what turns its stages' scores into codes.

    Attributes:
        sha256: of the patch file.
        cascade: as the patch has it.
        outputs: of each stage but the last, by resolution: scale and zero point of its scores.
    """

    sha256: str
    cascade: Cascade
    outputs: Mapping[int, tuple[float, int]]

    @property
    def rule(self) -> CascadeRule:
        """Stages in the order in which they run."""
        return self.cascade.rule

    def is_sure(self, stage: Stage, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """bool [N]: the images that ``stage`` answers.

        Args:
            scores: float32 [N, classes] of the stage's resolution.
        """
        if stage is self.rule.stages[-1]:
            return np.ones(len(scores), bool)
        codes = output_codes(scores, *self.outputs[stage.resolution])
        sure: NDArray[np.bool_] = confidence(self.rule.score, codes, stage.ratio) >= stage.threshold
        return sure


class Cascades:
    """Thread-safe; see the module."""

    def __init__(self, bundle: Bundle) -> None:
        """``bundle``: its coding table says where the scores stand."""
        self._bundle = bundle
        self._lock = Lock()
        self._loaded: OrderedDict[str, LoadedCascade | None] = OrderedDict()
        self._used: set[str] = set()
        self._counts: dict[str, dict[int, int]] = {}

    def of(self, version: TaskVersion) -> LoadedCascade | None:
        """The cascade of ``version``, read now unless it was; None where its patch has none."""
        with self._lock:
            if version.sha256 in self._loaded:
                self._loaded.move_to_end(version.sha256)
                return self._loaded[version.sha256]
        found = version.read_cascade()
        loaded = None
        if found is not None:
            sides, table = found.rule.resolutions[:-1], self._bundle.coding_table
            outputs = {px: output_scale(version.read(px), table) for px in sides}
            loaded = LoadedCascade(version.sha256, found, outputs)
        with self._lock:
            self._loaded[version.sha256] = loaded
            while len(self._loaded) > KEPT:
                self._loaded.popitem(last=False)
        return loaded

    def require(self, version: TaskVersion) -> LoadedCascade:
        """`of`, where there must be one.

        Raises:
            ConfigError: the patch has no cascade.
        """
        loaded = self.of(version)
        if loaded is None:
            raise ConfigError(
                f"the patch of task {version.task!r} has no cascade; fit one with patchdeploy "
                "cascade, or classify at one resolution"
            )
        return loaded

    def say_missing(self, version: TaskVersion, resolution: int) -> None:
        """Log, once a version, that ``resolution`` answers in the place of a cascade."""
        if self.is_first_use(version):
            LOGGER.warning(
                "task %s: its patch has no cascade; %d px answer every image",
                version.task,
                resolution,
            )

    def is_first_use(self, version: TaskVersion) -> bool:
        """Whether nothing asked this of ``version`` before: its stages are to be loaded."""
        with self._lock:
            seen = version.sha256 in self._used
            self._used.add(version.sha256)
        return not seen

    def predict(
        self,
        loaded: LoadedCascade,
        images: Sequence[Pixels],
        preprocessing: Preprocessing,
        predict: Callable[[list[Pixels], int], list[Prediction]],
    ) -> list[Prediction]:
        """Every image by the first stage that is sure of it; the others go on together.

        Args:
            images: uint8 [H, W, 3] RGB each, of any size.
            predict: predictions of images uint8 [px, px, 3] at a resolution.
        """
        found: dict[int, Prediction] = {}
        waiting = np.arange(len(images))
        for stage in loaded.rule.stages:
            if not waiting.size:
                break
            px = stage.resolution
            answers = predict(
                [resize_image(images[k], px, preprocessing) for k in waiting.tolist()], px
            )
            sure = loaded.is_sure(stage, np.stack([one.scores for one in answers]))
            found |= {int(k): answers[n] for n, k in enumerate(waiting) if sure[n]}
            self._count(loaded.sha256, px, int(sure.sum()))
            waiting = waiting[~sure]
        return [found[k] for k in range(len(images))]

    def _count(self, sha256: str, resolution: int, images: int) -> None:
        with self._lock:
            counts = self._counts.setdefault(sha256, {})
            counts[resolution] = counts.get(resolution, 0) + images

    def counts(self, version: TaskVersion) -> dict[int, int]:
        """By resolution, the images that it answered for ``version`` so far."""
        with self._lock:
            return dict(self._counts.get(version.sha256, {}))
