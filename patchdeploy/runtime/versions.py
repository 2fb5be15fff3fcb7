"""Which version of each task an Engine runs: the bundle's patch, or a newer one from a store.

In: a bundle and, where there is one, a store. Out: a `TaskVersion` for every task, decoded and
checked. Looking again gives a new mapping; whoever holds the old one goes on with it unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from patchdeploy.bundle import Bundle
from patchdeploy.errors import PatchdeployError
from patchdeploy.slots import PatchValues
from patchdeploy.store import Store

LOGGER = logging.getLogger("patchdeploy.engine")


@dataclass(frozen=True)
class TaskVersion:
    """One task as one patch file makes it.

    Attributes:
        task: its name.
        sha256: of the patch file.
        sequence: of the patch file; 0 for one of the bundle where no store is used.
        classes: labels in the order of the scores.
        resolutions: sides in pixels, ascending.
        read: the slot values at one of them.
    """

    task: str
    sha256: str
    sequence: int
    classes: tuple[str, ...]
    resolutions: tuple[int, ...]
    read: Callable[[int], PatchValues]


Versions = Mapping[str, TaskVersion]


def bundle_versions(bundle: Bundle, with_sequence: bool) -> Versions:
    """The tasks of ``bundle``; values are read from its files when they are asked for.

    Raises:
        PatchRefusedError: ``with_sequence`` is set and a patch may not be used.
    """
    return {task: _bundle_version(bundle, task, with_sequence) for task in bundle.tasks}


def _bundle_version(bundle: Bundle, task: str, with_sequence: bool) -> TaskVersion:
    entry = bundle.task(task)
    return TaskVersion(
        task=task,
        sha256=bundle.manifest.files[entry.file].sha256,
        sequence=bundle.header(task).sequence if with_sequence else 0,
        classes=entry.classes,
        resolutions=entry.resolutions,
        read=lambda px: bundle.patch(task, px).values[px],
    )


def newest_versions(shipped: Versions, store: Store, current: Versions) -> Versions:
    """``shipped`` with what ``store`` has active in its place, where that is no older.

    A patch that cannot be used is logged, and its task stays as ``current`` has it.

    Raises:
        StorageError: the store's folder cannot be read.
    """
    chosen = dict(shipped)
    for task, sha256 in store.active().items():
        held = current.get(task)
        if held is not None and held.sha256 == sha256:
            chosen[task] = held
            continue
        try:
            found = _store_version(store, task)
        except PatchdeployError as error:
            LOGGER.warning("task %s stays as it is: %s", task, error)
            if held is not None:
                chosen[task] = held
            continue
        if task not in shipped or found.sequence >= shipped[task].sequence:
            chosen[task] = found
    return chosen


def _store_version(store: Store, task: str) -> TaskVersion:
    _, checked, patch = store.read(task)
    return TaskVersion(
        task=task,
        sha256=checked.sha256,
        sequence=checked.header.sequence,
        classes=patch.classes,
        resolutions=tuple(sorted(patch.values)),
        read=lambda px: patch.values[px],
    )
