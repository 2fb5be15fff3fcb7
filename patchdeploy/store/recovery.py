"""The state of a store whose STATE is missing or damaged, from its signed patch files.

In: the folder and a function that runs every check of one patch. Out: the state that follows from
the patches that pass, and a `Recovery` that says so. The highest sequence number of a task becomes
active, the next lower one previous, and the active one's number the floor. Nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from patchdeploy.errors import (
    ConfigError,
    IntegrityError,
    MissingExtraError,
    PatchdeployError,
    RuntimeBackendError,
    StorageError,
)
from patchdeploy.patchfile import CheckedPatch
from patchdeploy.store.folder import MISSING, StoreFolder, patch_name
from patchdeploy.store.records import Recovery
from patchdeploy.store.state import StoreState

LOGGER = logging.getLogger("patchdeploy.store")

Prove = Callable[[bytes], CheckedPatch]
"""Every check of a patch file but sequence and expiry, or a `PatchRefusedError`."""

OF_THIS_MACHINE = (
    StorageError,
    RuntimeBackendError,
    MissingExtraError,
    ConfigError,
    IntegrityError,
)
"""Errors of `Prove` that say nothing about the patch: the disk, the runtime and how it was asked
for, the bundle's own files. A state that was rebuilt after one of them would lack good patches."""


@dataclass(frozen=True)
class FoundState:
    """The state that holds now.

    Attributes:
        state: what is active.
        recovery: set where it does not come from STATE.
        is_fresh: neither a STATE nor a patch is there.
    """

    state: StoreState
    recovery: Recovery | None = None
    is_fresh: bool = False


def find_state(folder: StoreFolder, prove: Prove) -> FoundState:
    """What STATE says or, without it, what the patches say, with a logged warning.

    Raises:
        OSError: the disk failed, which says nothing about STATE or a patch.
        PatchdeployError: one of `OF_THIS_MACHINE`, while a patch was proved.
    """
    while True:
        seen = folder.look()
        if isinstance(seen, StoreState):
            return FoundState(seen)
        found = _rebuild(folder, prove, seen)
        if folder.look() == seen:  # else a writer was at it meanwhile
            if found.recovery is not None:
                LOGGER.warning("STATE of store %s was rebuilt: %s", folder.path, found.recovery)
            return found


def _rebuild(folder: StoreFolder, prove: Prove, reason: str) -> FoundState:
    passed: dict[str, list[tuple[int, str]]] = {}
    refused: dict[str, str] = {}
    patches = folder.patches()
    for sha256 in sorted(patches):
        try:
            data = folder.read_patch(sha256)
        except FileNotFoundError:
            continue  # a clean-up took it
        except IntegrityError as error:
            refused[patch_name(sha256)] = str(error)
            continue
        try:
            header = prove(data).header
        except OF_THIS_MACHINE:
            raise
        except PatchdeployError as error:
            refused[patch_name(sha256)] = str(error)
        else:
            passed.setdefault(header.task, []).append((header.sequence, sha256))
    if reason == MISSING and not patches:
        return FoundState(StoreState(), is_fresh=True)
    state = choose_patches(passed)
    return FoundState(state, Recovery(reason, state.active, refused))


def choose_patches(passed: Mapping[str, Sequence[tuple[int, str]]]) -> StoreState:
    """The state in which each task runs the highest of its (sequence, SHA-256) pairs."""
    active, previous, floors = {}, {}, {}
    for task, patches in passed.items():
        floors[task], active[task] = max(patches)
        lower = [one for one in patches if one[0] < floors[task]]
        if lower:
            previous[task] = max(lower)[1]
    return StoreState(active, previous, floors)
