"""What a step minimises: cross entropy, a teacher's answers, and the precision that it runs in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from patchdeploy.errors import ConfigError
from patchdeploy.training.config import TrainConfig

Forward = Callable[[Tensor], Tensor]

COMPILED_FORMS = 64
"""Of one function, in one process: 16 resolutions, the most that a patch file holds."""


def classification_loss(
    scores: Tensor, targets: Tensor, config: TrainConfig, taught: Tensor | None = None
) -> Tensor:
    """Mean cross entropy of ``scores`` [n, classes], float32; mixed with a teacher's if given.

    Args:
        targets: int64 [n], or float32 [n, classes] (mixup).
        taught: a teacher's scores [n, classes]; the loss is then (1 - w) * cross entropy +
            w * T^2 * KL(teacher || student), both softmaxes at temperature T (Hinton et al. 2015,
            arXiv 1503.02531, section 2).

    Raises:
        ConfigError: a teacher of another number of classes.
    """
    scores = scores.float()
    if taught is not None and taught.shape != scores.shape:
        raise ConfigError(
            f"the teacher's scores are {list(taught.shape)} for {len(scores)} images of "
            f"{scores.shape[1]} classes; they must be {list(scores.shape)}, in the order of the "
            "classes; give a teacher that was trained on this task"
        )
    loss = functional.cross_entropy(scores, targets, label_smoothing=config.label_smoothing)
    if taught is None or config.distillation_weight == 0:
        return loss
    share = config.distillation_weight
    return (1 - share) * loss + share * distillation_loss(scores, taught, config.temperature)


def distillation_loss(scores: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(taught / T) || softmax(scores / T)), the mean over images; no gradient
    reaches ``taught``.
    """
    student = functional.log_softmax(scores.float() / temperature, dim=1)
    teacher = functional.log_softmax(taught.detach().float() / temperature, dim=1)
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """The forward pass's precision; see `TrainConfig.precision`."""
    half = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


def compile_forward(forward: Any, config: TrainConfig) -> Any:
    """``forward``, compiled where the settings ask for it.

    A run compiles the same function for each resolution, twice for training and twice for
    validation (a last batch is smaller). At torch's own limit of 8 it would run uncompiled.
    """
    if not config.compile:
        return forward
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, COMPILED_FORMS)
    return torch.compile(forward)
