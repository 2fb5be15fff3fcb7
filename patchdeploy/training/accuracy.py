"""How many answers of a network are right.

In: a network, labelled images in memory. Out: its scores, their loss, and top-1 accuracy, which
chooses the best epoch. The batch size never changes, so on CPUs the same tensors give the same
bits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from patchdeploy.errors import NonFiniteLossError
from patchdeploy.training.objective import Forward
from patchdeploy.training.samples import Samples

EVALUATION_BATCH = 256
LOSS_LIMIT = 2.0**24
"""Mean cross entropy from which on a network answers nothing: float32 has no odd number beyond, so
two scores of which one makes its class e times as likely are the same number. Far above what is bad
and may yet be made good: a rate of 1 over the embedded base gives 1e2, one of 1000 gives 1e6."""


def predict(forward: Forward, samples: Samples, device: torch.device) -> Tensor:
    """Scores float32 [N, classes] on the CPU.

    Raises:
        NonFiniteLossError: the largest score of an image is not finite, which is no answer.
            (Scores beyond a task's classes are minus infinity in a batch of several tasks.)
    """
    scores = _score(forward, samples, device)
    broken = (~torch.isfinite(scores.max(1).values)).nonzero().flatten().tolist()
    if broken:
        raise NonFiniteLossError(
            f"scores of {len(broken)} of {len(scores)} images are not finite (the first: "
            f"{samples.name(broken[0])}); they must be, to choose an answer by; train again, with "
            "a tenth of the learning rate"
        )
    return scores


def accuracy(forward: Forward, samples: Samples, device: torch.device) -> float:
    """Top-1 in [0, 1].

    Raises:
        NonFiniteLossError: see `predict`.
    """
    answers = predict(forward, samples, device).argmax(1)
    return float((answers == samples.labels.cpu()).double().mean())


def measure(forward: Forward, samples: Samples, device: torch.device) -> tuple[float, float]:
    """Top-1 in [0, 1], and the mean cross entropy, which is not finite where scores are not."""
    scores, labels = _score(forward, samples, device), samples.labels.cpu()
    loss = functional.cross_entropy(scores.double(), labels)
    return float((scores.argmax(1) == labels).double().mean()), float(loss)


@torch.no_grad()
def _score(forward: Forward, samples: Samples, device: torch.device) -> Tensor:
    parts = []
    for index in torch.split(torch.arange(len(samples)), EVALUATION_BATCH):
        inputs, _ = samples.batch(index, device)
        parts.append(forward(inputs).float().cpu())
    return torch.cat(parts)
