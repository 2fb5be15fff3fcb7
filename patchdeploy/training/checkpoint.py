"""A run's state on disk: what is needed to go on with the same bits (on CPUs).

In: named tensors, an optimiser, where the run is. Out: one file that is old or new, never half
written; it fits only a run with the same settings, images and tensors. It is a zip as torch.save
writes it, and its comment holds the SHA-256 of all that comes before: neither torch nor the zip
format notices a changed bit in a tensor.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdeploy.base.pickled import read_pickled
from patchdeploy.errors import CheckpointError, IntegrityError
from patchdeploy.storage import read_regular, sha256_hex, write_atomic

MOST_BYTES = 64 * 2**30
_SEAL = b"patchdeploy checkpoint, sha256 "
_HEX = 64
_NO_COMMENT = b"\0\0"

_log = logging.getLogger("patchdeploy.training")


@dataclass
class Position:
    """Where a run is.

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
    write_atomic(path, seal_archive(buffer.getvalue()))


def load_checkpoint(path: Path, fingerprint: str) -> RunState:
    """The inverse of `save_checkpoint`, on the CPU. A file of a version that wrote no hash is read,
    and a warning is logged.

    Raises:
        CheckpointError: damaged, or of other settings.
    """
    try:
        data = read_regular(path, MOST_BYTES)
        if not check_seal(data):
            _log.warning(
                "%s is of a version that wrote no hash: whether it is damaged cannot be seen", path
            )
        document = read_pickled(io.BytesIO(data))
        same = document["fingerprint"] == fingerprint
        run = RunState(
            Position(**document["position"]),
            document["state"],
            document["optimizer"],
            document["best"],
            document["average"],
        )
        check_position(run.position)
    except Exception as error:  # torch.load has errors of its own; all mean the same here
        kind = f"{error}" if isinstance(error, IntegrityError) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({kind}); it must be the whole file "
            "that training wrote; remove it to start again"
        ) from error
    if not same:
        raise CheckpointError(
            f"checkpoint {path} was made with other settings, images or task; resume needs the "
            "same; use them, or another run folder"
        )
    return run


def seal_archive(data: bytes) -> bytes:
    """A zip without a comment, as torch.save writes it, with its hash in the comment."""
    assert data.endswith(_NO_COMMENT)
    length = len(_SEAL) + _HEX
    sealed = data[:-2] + length.to_bytes(2, "little") + _SEAL
    return sealed + sha256_hex(sealed).encode()


def check_seal(data: bytes) -> bool:
    """Whether ``data`` has a hash, which it then agrees with; False for a zip without a comment.

    Raises:
        IntegrityError: it has another hash than it says, or ends in neither way.
    """
    if data[-_HEX - len(_SEAL) : -_HEX] == _SEAL:
        if sha256_hex(memoryview(data)[:-_HEX]).encode() == data[-_HEX:]:
            return True
        raise IntegrityError("its SHA-256 is not the one that it carries")
    if data[-22:-18] == b"PK\x05\x06" and data.endswith(_NO_COMMENT):
        return False
    raise IntegrityError("it does not end as a checkpoint does")


def check_position(position: Position) -> None:
    """Raise unless every field has its type.

    Raises:
        ValueError: naming the field.
    """
    for key, value in vars(position).items():
        if key in ("epoch", "step"):
            good = type(value) is int and value >= 0
        elif key == "best_mean":
            good = type(value) is float
        else:
            good = type(value) is list and all(type(one) is float for one in value)
        if not good:
            raise ValueError(f"{key} is {value!r:.80}")


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies."""
    return {key: value.detach().clone() for key, value in tensors.items()}


@torch.no_grad()
def put_back(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write ``values`` into ``tensors`` in place."""
    for key, value in values.items():
        tensors[key].copy_(value)
