"""Which version of each task an Engine runs: the bundle's patch, or a newer one from a store.

In: a bundle and, where there is one, a store. Out: a `TaskVersion` for every task, decoded and
checked, also that the model which comes of it over this bundle's file is the signed one: an app's
update can bring other base files than the store was filled for. Looking again gives a new mapping;
whoever holds the old one goes on with it unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from patchdeploy.bundle import Bundle
from patchdeploy.cascade import Cascade
from patchdeploy.errors import ConfigError, PatchdeployError, PatchRefusedError
from patchdeploy.patchfile import Policy
from patchdeploy.patchfile.key_lists import still_count
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
        read_cascade: the cascade of the patch file; None where it has none.
        signers: indices of the keys that signed it; none, also where no store is used.
    """

    task: str
    sha256: str
    sequence: int
    classes: tuple[str, ...]
    resolutions: tuple[int, ...]
    read: Callable[[int], PatchValues]
    read_cascade: Callable[[], Cascade | None]
    signers: tuple[int, ...] = ()


Versions = Mapping[str, TaskVersion]


def nearest_resolution(px: int, held: Sequence[int]) -> int:
    """The side of ``held`` that is nearest to ``px``; the larger of two."""
    return min(held, key=lambda one: (abs(one - px), -one))


@dataclass(frozen=True)
class Look:
    """What there is to run.

    Attributes:
        versions: of every task that can run.
        problems: by task, why a patch of it cannot be used.
    """

    versions: Versions
    problems: Mapping[str, PatchdeployError]

    @property
    def is_final(self) -> bool:
        """Looking again at the same names would find the same: no file was damaged or gone."""
        return all(isinstance(one, PatchRefusedError) for one in self.problems.values())


def bundle_versions(bundle: Bundle, format_name: str, policy: Policy | None) -> Look:
    """The tasks of ``bundle``; values are read from its files when they are asked for.

    What is read is laid over the base file of ``format_name`` and compared with the hash that was
    signed: a base that was changed together with its manifest is refused.

    Args:
        policy: what the store demands of every patch. Its keys bind the bundle's own patches too:
            a key that was revoked since the bundle was made signs nothing any more. None: there is
            no store, and a patch is looked at when it is loaded.

    Raises:
        IntegrityError: ``policy`` is given, and a patch file is not the one of the manifest.
    """
    versions: dict[str, TaskVersion] = {}
    problems: dict[str, PatchdeployError] = {}
    for task in bundle.tasks:
        try:
            versions[task] = _bundle_version(bundle, task, format_name, policy)
        except PatchRefusedError as error:
            problems[task] = error
    return Look(versions, problems)


def _bundle_version(
    bundle: Bundle, task: str, format_name: str, policy: Policy | None
) -> TaskVersion:
    entry = bundle.task(task)
    checked = None if policy is None else bundle.check(task, policy.trusted)
    return TaskVersion(
        task=task,
        sha256=bundle.manifest.files[entry.file].sha256,
        sequence=0 if checked is None else checked.header.sequence,
        classes=entry.classes,
        resolutions=entry.resolutions,
        read=lambda px: _read_proved(bundle, task, format_name, px),
        read_cascade=lambda: bundle.patch(task, entry.resolutions[0]).cascade,
        signers=() if checked is None else checked.signed_by,
    )


_PROVED: set[tuple[str, int, str, str]] = set()
"""Patch file, resolution, base file, slot table (SHA-256) whose result was compared already."""


def _read_proved(bundle: Bundle, task: str, format_name: str, px: int) -> PatchValues:
    """Slot values of ``task`` at ``px``, which make of this base file what their maker signed."""
    checked, patch = bundle.checked_patch(task, px)
    entry = bundle.manifest.converters[format_name]
    hashes = [bundle.manifest.files[path].sha256 for path in (entry.file, entry.slots)]
    key = (checked.sha256, px, hashes[0], hashes[1])
    if key not in _PROVED:
        check_results(checked, patch, {format_name: bundle.base(format_name)})
        _PROVED.add(key)
    return patch.values[px]


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


def newest_versions(
    shipped: Look,
    store: Store,
    current: Versions,
    bundle: Bundle,
    format_name: str,
    policy: Policy,
) -> Look:
    """``shipped`` with what ``store`` has active in its place, where that is no older.

    The task of a patch that cannot be used stays as ``current`` has it, unless a key that signed
    that was revoked.

    Args:
        format_name: of the bundle's base file that runs.
        policy: what the store demands now.

    Raises:
        StorageError: the store's folder cannot be read.
    """
    chosen = dict(shipped.versions)
    problems = dict(shipped.problems)
    for task, sha256 in store.active().items():
        held = current.get(task)
        if held is not None and held.signers and not still_count(held.signers, policy):
            held = None
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
        if task not in chosen or found.sequence >= chosen[task].sequence:
            chosen[task] = found
            problems.pop(task, None)
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
        read_cascade=lambda: patch.cascade,
        signers=checked.signed_by,
    )


class StoreWatch:
    """The looks of one Engine at its store: each reads only what is new, and says so once."""

    def __init__(self, store: Store, bundle: Bundle, format_name: str) -> None:
        """
        Args:
            format_name: of the bundle's base file that runs.

        Raises:
            ConfigError: see `check_store`.
            IntegrityError: see `bundle_versions`.
        """
        check_store(store, bundle, format_name)
        self._store, self._bundle, self._format_name = store, bundle, format_name
        self._shipped = bundle_versions(bundle, format_name, store.policy)
        self._keys = store.policy.trusted
        self._glance: object = None
        self._told: Mapping[str, str] = {}
        self._problems: Mapping[str, PatchdeployError] = self._shipped.problems
        self.problem: str | None = None
        """Why the store could not be read at the last look; None where it could."""

    @property
    def shipped(self) -> Versions:
        """The bundle's own patches, as far as they may run."""
        return self._shipped.versions

    def problem_of(self, task: str) -> PatchdeployError | None:
        """Why a patch of ``task`` could not be used at the last look, as a new error."""
        return copy(self._problems.get(task))

    def look(self, current: Versions) -> Versions:
        """What each task is to run now: ``current`` where the store's files are those seen before.

        A task of which no patch may run is not in it; `problem_of` says why.

        Raises:
            StorageError: the store's folder cannot be read.
            PatchdeployError: the store's list of keys does not go with the app's.
        """
        try:
            glance = self._store.glance()
            if self._glance is not None and glance == self._glance:
                return current
            look = self._look(current)
        except PatchdeployError as error:
            if str(error) != self.problem:
                LOGGER.warning("the store is not read, tasks stay as they are: %s", error)
            self.problem = str(error)
            raise
        self.problem = None
        self._glance = glance if look.is_final else None
        self._problems = look.problems
        self._tell(look, current)
        return look.versions

    def _look(self, current: Versions) -> Look:
        policy = self._store.effective_policy()
        if policy.trusted != self._keys:
            self._shipped = bundle_versions(self._bundle, self._format_name, policy)
            self._keys = policy.trusted
        return newest_versions(
            self._shipped, self._store, current, self._bundle, self._format_name, policy
        )

    def forget(self) -> None:
        """Have the next look read everything again."""
        self._glance = None

    def _tell(self, look: Look, current: Versions) -> None:
        """Log what is new: a damaged file is read again and again, since it can be put right."""
        problems = {task: str(error) for task, error in look.problems.items()}
        for task, problem in problems.items():
            if self._told.get(task) != problem:
                LOGGER.warning("task %s %s: %s", task, _fate(task, look, current), problem)
        self._told = problems


def _fate(task: str, look: Look, current: Versions) -> str:
    if task not in look.versions:
        return "CANNOT RUN, none of its patches may be used"
    if look.versions[task] == current.get(task):
        return "stays as it is"
    return "goes back to the patch that ships with the app"
