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
        ("a base length of", policy.base_bytes, bundle.coding_table.length_bytes),
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
        problems: by task, why what the store has active cannot be used.
    """

    versions: Versions
    problems: Mapping[str, PatchdeployError]

    @property
    def is_final(self) -> bool:
        """Looking again at the same names would find the same: no file was damaged or gone."""
        return all(isinstance(one, PatchRefusedError) for one in self.problems.values())


def newest_versions(
    shipped: Versions, store: Store, current: Versions, bundle: Bundle, format_name: str
) -> Look:
    """``shipped`` with what ``store`` has active in its place, where that is no older.

    The task of a patch that cannot be used stays as ``current`` has it.

    Args:
        format_name: of the bundle's base file that runs.

    Raises:
        StorageError: the store's folder cannot be read.
        PatchdeployError: STATE is damaged and the patches cannot be proved on this machine.
    """
    chosen = dict(shipped)
    problems: dict[str, PatchdeployError] = {}
    for task, sha256 in store.active().items():
        held = current.get(task)
        if held is not None and held.sha256 == sha256:
            chosen[task] = held
            continue
        try:
            found = _store_version(store, task, bundle, format_name)
        except PatchdeployError as error:
            problems[task] = error
            if held is not None:
                chosen[task] = held
            continue
        if task not in shipped or found.sequence >= shipped[task].sequence:
            chosen[task] = found
    return Look(chosen, problems)


def _store_version(store: Store, task: str, bundle: Bundle, format_name: str) -> TaskVersion:
    _, checked, patch = store.read(task)
    base = bundle.base(format_name)
    check_results(checked, patch, {format_name: base})
    return TaskVersion(
        task=task,
        sha256=checked.sha256,
        sequence=checked.header.sequence,
        classes=patch.classes,
        resolutions=tuple(sorted(patch.values)),
        read=lambda px: patch.values[px],
    )


class StoreWatch:
    """The looks of one Engine at its store: each reads only what is new, and says so once."""

    def __init__(self, store: Store, bundle: Bundle, format_name: str, shipped: Versions) -> None:
        """
        Args:
            format_name: of the bundle's base file that runs.
            shipped: `bundle_versions`, with sequence numbers.

        Raises:
            ConfigError: see `check_store`.
        """
        check_store(store, bundle, format_name)
        self._store, self._bundle, self._format_name = store, bundle, format_name
        self._shipped = shipped
        self._glance: object = None
        self._told: Mapping[str, str] = {}
        self.problem: str | None = None
        """Why the store could not be read at the last look; None where it could."""

    def look(self, current: Versions) -> Versions:
        """What each task is to run now: ``current`` where the store's files are those seen before.

        Raises:
            StorageError: the store's folder cannot be read.
            PatchdeployError: STATE is damaged and the patches cannot be proved on this machine.
        """
        try:
            glance = self._store.glance()
            if self._glance is not None and glance == self._glance:
                return current
            look = newest_versions(
                self._shipped, self._store, current, self._bundle, self._format_name
            )
        except PatchdeployError as error:
            if str(error) != self.problem:
                LOGGER.warning("the store is not read, tasks stay as they are: %s", error)
            self.problem = str(error)
            raise
        self.problem = None
        self._glance = glance if look.is_final else None
        self._tell({task: str(error) for task, error in look.problems.items()})
        return look.versions

    def forget(self) -> None:
        """Have the next look read everything again."""
        self._glance = None

    def _tell(self, problems: Mapping[str, str]) -> None:
        """Log what is new: a damaged file is read again and again, since it can be put right."""
        for task, problem in problems.items():
            if self._told.get(task) != problem:
                LOGGER.warning("task %s stays as it is: %s", task, problem)
        self._told = problems
