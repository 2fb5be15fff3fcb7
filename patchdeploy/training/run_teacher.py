"""A network that teaches a task by its answers (distillation), opened by name.

In: the name of a base whose last layer answers with the task's classes. Out: a function from what
the student's base takes to scores.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import ConfigError
from patchdeploy.named import open_base
from patchdeploy.named_trained import read_facts
from patchdeploy.training.objective import Forward


def open_teacher(
    name: str, task: str, classes: tuple[str, ...], student: Preprocessing, device: torch.device
) -> Forward:
    """The network called ``name``, from normalised images as ``student`` says to scores.

    Raises:
        ConfigError: its last layer has other classes.
    """
    teacher = open_base(name)
    known = _known_classes(name)
    rows = _count_rows(teacher)
    if rows != len(classes) or (known and known != classes):
        raise ConfigError(
            f"[[task]] {task!r}: teacher {name!r} answers with {rows} classes {list(known)[:5]}, "
            f"the task has {len(classes)} {list(classes)[:5]}; both need the same in the same "
            "order; train a teacher on this task (method baseline)"
        )
    module = teacher.module.to(device)
    if student == teacher.preprocessing:
        return module
    translate = _translation(student, teacher.preprocessing, device)

    def forward(inputs: Tensor) -> Tensor:
        scores: Tensor = module(translate(inputs))
        return scores

    return forward


def _translation(old: Preprocessing, new: Preprocessing, device: torch.device) -> Forward:
    """From images normalised as ``old`` says to ``new``: x * std + mean are the pixels."""

    def values(numbers: tuple[float, float, float]) -> Tensor:
        return torch.tensor(numbers, device=device).view(1, 3, 1, 1)

    old_mean, old_std, new_mean, new_std = map(values, (old.mean, old.std, new.mean, new.std))
    swapped = old.channel_order != new.channel_order

    def translate(inputs: Tensor) -> Tensor:
        pixels = inputs * old_std + old_mean
        return ((pixels.flip(1) if swapped else pixels) - new_mean) / new_std

    return translate


def _count_rows(base: Base) -> int:
    head = base.module.get_submodule(base.head_name)
    assert isinstance(head, nn.Linear | nn.Conv2d)
    return int(head.weight.shape[0])


def _known_classes(name: str) -> tuple[str, ...]:
    kind, _, folder = name.partition(":")
    return tuple(read_facts(Path(folder))["classes"]) if kind == "trained" else ()
