"""How many answers of a network are right.

In: a network, labelled images in memory. Out: its scores, and top-1 accuracy, which chooses the
best epoch. The batch size never changes, so on CPUs the same tensors give the same bits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from patchdeploy.training.objective import Forward
from patchdeploy.training.samples import Samples

EVALUATION_BATCH = 256


@torch.no_grad()
def predict(forward: Forward, samples: Samples, device: torch.device) -> Tensor:
    """Scores float32 [N, classes] on the CPU."""
    parts = []
    for index in torch.split(torch.arange(len(samples)), EVALUATION_BATCH):
        inputs, _ = samples.batch(index, device)
        parts.append(forward(inputs).float().cpu())
    return torch.cat(parts)


def accuracy(forward: Forward, samples: Samples, device: torch.device) -> float:
    """Top-1 in [0, 1]; NaN where the largest score of an image is not finite, which is no answer.

    (Scores beyond a task's classes are minus infinity in a batch of several tasks.)
    """
    best, answers = predict(forward, samples, device).max(1)
    if not torch.isfinite(best).all():
        return math.nan
    return float((answers == samples.labels.cpu()).double().mean())
