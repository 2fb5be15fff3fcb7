"""The optimiser of a run, and its learning rates over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.training.config import LARGE_BASE, Scope, TrainConfig

Trained = Literal["patch", "head", "all"]

LARGE: Mapping[Trained, Scope] = {"patch": "large_patch", "head": "large_head", "all": "large_all"}


def choose_scope(base: Base, trained: Trained) -> Scope:
    """Whose learning rate suits a patch over ``base``, a last layer alone, or all its weights."""
    weights = sum(
        value.numel()
        for key, value in base.module.named_parameters()
        if not key.startswith(f"{base.head_name}.")
    )
    return LARGE[trained] if weights >= LARGE_BASE else trained


def make_optimizer(
    groups: Mapping[Scope, Mapping[str, Tensor]], config: TrainConfig
) -> torch.optim.Optimizer:
    """AdamW, or the paper's RMSProp, with a rate for each scope; kernels alone decay.

    Fused, for all tensors at once: a patch has many small ones.
    """
    parameters: list[dict[str, Any]] = []
    for scope, tensors in groups.items():
        kernels = [value for value in tensors.values() if value.ndim > 1]
        vectors = [value for value in tensors.values() if value.ndim <= 1]
        for chosen, decay in ((kernels, config.weight_decay), (vectors, 0.0)):
            if chosen:
                rate = config.rate(scope)
                parameters.append(
                    {"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay}
                )
    if config.recipe == "paper":
        return torch.optim.RMSprop(parameters, alpha=0.9, eps=1.0, momentum=0.9)
    return torch.optim.AdamW(parameters, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, progress: float) -> None:
    """Every group's rate, ``progress`` in [0, 1) through the run."""
    factor = schedule(config, progress)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def schedule(config: TrainConfig, progress: float) -> float:
    """Factor on the learning rate, ``progress`` in [0, 1) through the run.

    One clock for all tasks: their rates are equal at every moment, which is what the paper's ratio
    of data set size and epochs per decay step is there for (section 5.3).
    """
    if config.recipe == "paper":
        return float(0.98 ** (progress * config.epochs / 2.5))
    if progress < 0.1:
        return 0.1 + 0.9 * progress / 0.1
    return 0.5 * (1.0 + math.cos(math.pi * (progress - 0.1) / 0.9))
