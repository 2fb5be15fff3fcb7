"""What an engine says about an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Prediction:
    """One image's answer.

    Attributes:
        task, resolution: what answered; resolution in pixels.
        classes: labels.
        scores: float32 [classes], the dequantised outputs of the head.
        probabilities: float32 [classes], their softmax.
    """

    task: str
    resolution: int
    classes: tuple[str, ...]
    scores: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def index(self) -> int:
        """Position of the best class; of equal scores the first."""
        return int(np.argmax(self.scores))

    @property
    def label(self) -> str:
        """The best class."""
        return self.classes[self.index]

    @property
    def probability(self) -> float:
        """Probability of the best class."""
        return float(self.probabilities[self.index])

    def top(self, count: int = 5) -> tuple[tuple[str, float], ...]:
        """The ``count`` best (label, probability), best first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return tuple((self.classes[k], float(self.probabilities[k])) for k in order)


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """exp(s - max s) / sum, over the last axis, computed in float64."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: NDArray[np.float32] = (exponentials / exponentials.sum(axis=-1, keepdims=True)).astype(
        np.float32
    )
    return result
