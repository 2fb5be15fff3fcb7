"""An exponential moving average of what is trained, which is what is validated and kept.

In: the tensors that training changes, after every step. Out: their average, swapped in for a
while, and its state for a checkpoint. The arithmetic is torch's (torch.optim.swa_utils).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARM_UP = 10
"""The decay at step t is at most (1 + t) / (WARM_UP + t), as in TensorFlow's
ExponentialMovingAverage, so that a short run is not an average with its random start."""


class Ema:
    """The average of tensors that change in place.

    average := d * average + (1 - d) * tensor, with d = min(decay, (1 + t) / (WARM_UP + t)) at step
    t = 0, 1, ... A scale that stays on its side of a bound does so in the average too: torch's
    lerp is monotone in both ends.

    Attributes:
        decay: in (0, 1).
        tensors: by name; the very tensors that training changes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors = dict(tensors)
        self.decay = decay
        self._steps = 0
        self._average = {k: v.detach().clone() for k, v in self.tensors.items()}

    def update(self) -> None:
        """Take in the tensors as they are after a step."""
        decay = min(self.decay, (1 + self._steps) / (WARM_UP + self._steps))
        current = [value.detach() for value in self.tensors.values()]
        if current:
            move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            move(list(self._average.values()), current, None)
        self._steps += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The tensors hold the average inside, and their own bits again outside.

        What is written to them inside is lost; `average` does not change.
        """
        own = {key: value.detach().clone() for key, value in self.tensors.items()}
        try:
            _write(self.tensors, self._average)
            yield
        finally:
            _write(self.tensors, own)

    def average(self) -> dict[str, Tensor]:
        """Copies of the averages, by name."""
        return {key: value.clone() for key, value in self._average.items()}

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        """What a checkpoint needs for a run that goes on to the same bits."""
        return {"steps": self._steps, "average": self.average()}

    def load_state_dict(self, state: Mapping[str, int | dict[str, Tensor]]) -> None:
        """The inverse of `state_dict`.

        Raises:
            KeyError, TypeError: not such a state, or of other tensors (the loop compares settings
                and names before).
        """
        steps, average = state["steps"], state["average"]
        if not isinstance(steps, int) or not isinstance(average, dict):
            raise TypeError("an average's state holds a number of steps and tensors by name")
        _write(self._average, {key: average[key] for key in self._average})
        self._steps = steps


@torch.no_grad()
def _write(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for key, value in tensors.items():
        value.copy_(values[key])
