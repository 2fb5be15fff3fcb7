"""Which version of each task an Engine runs: the bundle's patch, or a newer one from a store.

In: a bundle and, where there is one, a store. Out: a `TaskVersion` for every task, decoded and
checked, also that the model which comes of it over this bundle's file is the signed one: an app's
update can bring other base files than the store was filled for. Looking again gives a new mapping;
whoever holds the old one goes on with it unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from patchdeploy.bundle import Bundle
from patchdeploy.errors import ConfigError, PatchdeployError, PatchRefusedError
from patchdeploy.patchfile.pack import check_results
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


def check_store(store: Store, bundle: Bundle, format_name: str) -> None:
    """Refuse a store whose patches are not proved for this bundle's base and runtime.

    Raises:
        ConfigError: it was opened over another base, or for another runtime.
    """
    policy = store.policy
    for what, theirs, ours in (
        ("base", policy.base_sha256, bundle.manifest.base_sha256),
        ("runtime's format", policy.runtime, format_name),
    ):
        if theirs != ours:
            raise ConfigError(
                f"store {store.folder} is for {what} {theirs}; the engine over {bundle.path} is "
                f"for {ours}; open the store with open_store over the same bundle and runtime"
            )


@dataclass(frozen=True)
class Look:
    """What a look at a store has found.

    Attributes:
        versions: of every task.
        is_final: looking again at the same files would find the same.
    """

    versions: Versions
    is_final: bool


def newest_versions(
    shipped: Versions, store: Store, current: Versions, bundle: Bundle, format_name: str
) -> Look:
    """``shipped`` with what ``store`` has active in its place, where that is no older.

    A patch that cannot be used is logged, and its task stays as ``current`` has it.

    Args:
        format_name: of the bundle's base file that runs.

    Raises:
        StorageError: the store's folder cannot be read.
    """
    chosen = dict(shipped)
    is_final = True
    for task, sha256 in store.active().items():
        held = current.get(task)
        if held is not None and held.sha256 == sha256:
            chosen[task] = held
            continue
        try:
            found = _store_version(store, task, bundle, format_name)
        except PatchdeployError as error:
            LOGGER.warning("task %s stays as it is: %s", task, error)
            is_final = is_final and isinstance(error, PatchRefusedError)
            if held is not None:
                chosen[task] = held
            continue
        if task not in shipped or found.sequence >= shipped[task].sequence:
            chosen[task] = found
    return Look(chosen, is_final)


def _store_version(store: Store, task: str, bundle: Bundle, format_name: str) -> TaskVersion:
    _, checked, patch = store.read(task)
    base = (bundle.base_file(format_name), bundle.table(format_name))
    check_results(checked, patch, {format_name: base})
    return TaskVersion(
        task=task,
        sha256=checked.sha256,
        sequence=checked.header.sequence,
        classes=patch.classes,
        resolutions=tuple(sorted(patch.values)),
        read=lambda px: patch.values[px],
    )
