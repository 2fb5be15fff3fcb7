"""A run's state on disk: what is needed to go on with the same bits (on CPUs).

In: named tensors, an optimiser, where the run stands. Out: one file that is old or new, never half
written; it fits only a run with the same settings, images and tensors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdeploy.errors import CheckpointError
from patchdeploy.storage import write_atomic


@dataclass
class Position:
    """Where a run stands.

    Attributes:
        epoch, step: done so far; ``step`` within the epoch.
        losses: sum of loss times images in this epoch, by source.
        images: counted in this epoch, by source.
        best_top1: validation accuracy in [0, 1] of the kept tensors, by source; -1 for none yet.
        best_mean: their mean over sources when they were kept together.
    """

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)
    images: list[float] = field(default_factory=list)
    best_top1: list[float] = field(default_factory=list)
    best_mean: float = -1.0


@dataclass(frozen=True)
class RunState:
    """What a checkpoint holds besides its fingerprint.

    Attributes:
        state: what training changes, as it stands.
        optimizer: its state dict.
        best: the tensors of the best epoch.
        average: the moving average's state, or nothing.
    """

    position: Position
    state: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]
    best: Mapping[str, Tensor]
    average: Mapping[str, Any]


def save_checkpoint(path: Path, fingerprint: str, run: RunState) -> None:
    """Write ``run``; the older file stays until the new one is whole.

    Raises:
        StorageError: the disk is full or not writable.
    """
    buffer = io.BytesIO()
    document = {
        "fingerprint": fingerprint,
        "position": vars(run.position),
        "state": dict(run.state),
        "optimizer": dict(run.optimizer),
        "best": dict(run.best),
        "average": dict(run.average),
    }
    torch.save(document, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path, fingerprint: str) -> RunState:
    """The inverse of `save_checkpoint`, on the CPU.

    Raises:
        CheckpointError: damaged, or of other settings.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
        same = document["fingerprint"] == fingerprint
        run = RunState(
            Position(**document["position"]),
            document["state"],
            document["optimizer"],
            document["best"],
            document["average"],
        )
    except Exception as error:  # torch.load has errors of its own; all mean the same here
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}); it must be the whole file "
            "that training wrote; remove it to start again"
        ) from error
    if not same:
        raise CheckpointError(
            f"checkpoint {path} was made with other settings, images or task; resume needs the "
            "same; use them, or another run folder"
        )
    return run


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies."""
    return {key: value.detach().clone() for key, value in tensors.items()}


@torch.no_grad()
def put_back(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write ``values`` into ``tensors`` in place."""
    for key, value in values.items():
        tensors[key].copy_(value)
