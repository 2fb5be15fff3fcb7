"""A folder of signed patches, of which one a task is active: old or new after any fault.

In: the bytes of patch files. Out: the active patch of a task, checked again each time it is read,
and a folder that is what it was, or what it was to become, whenever the process or the power ends.

The rules:
- A patch is activated when its sequence number is above its task's floor, the highest that was
  ever active; or when it is that highest one itself, which a revert has put aside. The floor rises
  with the activation, in the same write of STATE, after the self-test. A patch that is older than
  the one which ships with the app is not activated either.
- A floor counts while the keys that signed its patch do. Revoking a key takes back what it did:
  its patches are not read, not reverted to, and hold no other back.
- A key that any list has revoked which a writer of this store ever had stays revoked: STATE keeps
  the newest list, and every check is made with it.
- Expiry is looked at by `Store.install` alone. An active patch goes on after it expires, and what
  was installed in time can be activated later. The clock is the machine's: while it is set back, a
  patch that has expired meanwhile is taken, and the floor is what still holds.
- A failed write or sync is not tried again. The operation ends with a StorageError (what
  docs/patch-format.md calls check 10, "commit") and the state before it stays.
- A revert goes back to the patch that was active before, if that may still be used; else to the
  one before it, else to the one that ships with the app, which is put into the store for that.
- Where STATE is missing or damaged its copy counts. Where that is, too, nothing says what was
  active: no patch is, so what ships with the app runs, and none becomes active that is lower than
  those in the folder (`store.recovery`). It is logged and returned, never silent.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from patchdeploy.errors import (
    ConfigError,
    IntegrityError,
    PatchdeployError,
    PatchError,
    PatchRefusedError,
    UnknownTaskError,
)
from patchdeploy.patchfile import CheckedPatch, Policy
from patchdeploy.patchfile.key_lists import join_lists
from patchdeploy.store.files import DiskFiles, Files
from patchdeploy.store.folder import StoreFolder, patch_name
from patchdeploy.store.records import (
    Entry,
    Hooks,
    Installed,
    Recovery,
    Shipped,
    Status,
    StoredPatch,
)
from patchdeploy.store.recovery import FoundState, find_state, keep_floors
from patchdeploy.store.rules import check_sequence, find_use, floor_of, is_settled
from patchdeploy.store.state import HEX64, StoreState
from patchdeploy.task_names import TASK_NAME

__all__ = ["Entry", "Hooks", "Installed", "Recovery", "Shipped", "Status", "Store", "StoredPatch"]

LOGGER = logging.getLogger("patchdeploy.store")
GONE = "the file is gone"
"""What is wrong with a patch that STATE names and the folder has not."""


def read_clock() -> int:
    """The machine's clock, Unix seconds."""
    return int(time.time())


@dataclass(frozen=True)
class Store:
    """A patch store. It keeps nothing in memory: any number of processes may use one folder.

    Attributes:
        folder: made by the first write; its parent must exist.
        policy: what every patch must meet; ``floor`` and ``now`` are the store's and not used.
        hooks: the checks.
        files: the disk.
        clock: Unix seconds.
        shipped: by task, the patch that comes with the app.
    """

    folder: Path
    policy: Policy
    hooks: Hooks
    files: Files = field(default_factory=DiskFiles)
    clock: Callable[[], int] = read_clock
    shipped: Mapping[str, Shipped] = field(default_factory=dict)

    def install(self, data: bytes, activate: bool = True) -> Installed:
        """Check a patch file, keep it, and make it its task's active one.

        The file that is active already is left as it is, and put back where it was damaged.

        Args:
            activate: False: keep it only; `activate` makes it active, `clean_up` removes it.

        Raises:
            PatchRefusedError: it failed a check; nothing changed, but that a folder which was not
                there may now be an empty store.
            ConfigError: the store holds as many tasks as it can.
            StorageError: the disk failed; the state before it stays.
        """
        data = bytes(data)
        with self._writing("install a patch", makes=True) as found:
            checked = self._check(data, found.state)
            settled = is_settled(found.state, checked, activate)
            if settled and self._place.is_whole(checked.sha256):
                return _installed(checked, found, changed=False)
            self._check_sequence(found.state, checked, activate)
            if not settled:
                policy = self._policy(found.state)
                self.hooks.check(data, replace(policy, floor=0, now=self.clock()))
            return self._admit(found, data, checked, activate)

    def activate(self, sha256: str) -> Installed:
        """Make a patch that was installed its task's active one.

        Raises:
            ConfigError: ``sha256`` is not a hash, or the store holds as many tasks as it can.
            PatchError: no such patch in the store, or no store at all.
            PatchRefusedError, IntegrityError: it failed a check; nothing changed.
            StorageError: the disk failed; the state before it stays.
        """
        _check_name(sha256, HEX64, "64 lower-case hexadecimal digits", "patch")
        with self._writing("activate a patch") as found:
            try:
                data = self._place.read_patch(sha256)
            except FileNotFoundError as error:
                raise PatchError(
                    f"store {self.folder} holds no patch {sha256}; a patch must be installed "
                    "before it is activated; install it, or list the store and choose one"
                ) from error
            checked = self._check(data, found.state)
            if is_settled(found.state, checked, activate=True):
                return _installed(checked, found, changed=False)
            self._check_sequence(found.state, checked, activate=True)
            return self._admit(found, data, checked, activate=True)

    def revert(self, task: str) -> Installed:
        """Make the patch before the active one active again; doing it twice changes nothing.

        The floor stays, so nothing else that is older can be activated.

        Raises:
            ConfigError: ``task`` is not a task name.
            UnknownTaskError: the task has no active patch.
            PatchError: it has no previous one, or there is no store.
            PatchRefusedError, IntegrityError: that failed a check; nothing changed.
            StorageError: the disk failed; the state before it stays.
        """
        with self._writing("revert a task") as found:
            self._active(found.state, task)
            sha256 = found.state.previous.get(task)
            if sha256 is None:
                raise PatchError(
                    f"task {task!r} has no previous patch; a revert goes one step back and never "
                    "further; install a newer patch instead"
                )
            try:
                data = self._place.read_patch(sha256)
            except FileNotFoundError as error:
                raise self._gone(task, sha256) from error
            checked = self._check_task(data, task, found.state)
            self._test(checked)
            self._place.commit(found.state.reverted(task), found.state)
            return _installed(checked, found, changed=True)

    @property
    def is_there(self) -> bool:
        """Whether the folder is a store; where it is none, reading finds nothing active.

        Raises:
            StorageError: the disk failed.
        """
        with self._place.disk("look for a store"):
            return self._place.is_store()

    def active(self) -> Mapping[str, str]:
        """SHA-256 of each task's active patch, from STATE alone: cheap enough to ask often.

        Raises:
            StorageError: the disk failed.
        """
        with self._place.disk("find the active patches"):
            return self._find_aloud().state.active

    def read(self, task: str) -> StoredPatch:
        """The active patch of ``task``. The file is read once: the bytes checked are those used.

        Raises:
            ConfigError: ``task`` is not a task name.
            UnknownTaskError: it has no active patch.
            IntegrityError: the file is gone, or is not what its name says.
            PatchRefusedError: it fails a check, for instance since its key was revoked.
            StorageError: the disk failed.
        """
        with self._place.disk("read a patch"):
            data, state = self._read_active(task)
        checked = self._check_task(data, task, state)
        return StoredPatch(data, checked, self.hooks.decode(checked))

    def list(self) -> tuple[Entry, ...]:
        """Every patch file there, and those that should be; by task, then sequence.

        Raises:
            PatchError: there is no store.
            StorageError: the disk failed.
        """
        self._demand_store("list the patches")
        with self._place.disk("list the patches"):
            entries = self._entries()
        return tuple(sorted(entries, key=lambda one: (one.task or "~", one.sequence or 0)))

    def _entries(self) -> tuple[Entry, ...]:
        """A file that is removed while it is looked for is no fault: a writer is at work.

        It is one where the STATE that names it still stands afterwards.
        """
        while True:
            state = self._find_aloud().state
            entries = [self._entry(one, state) for one in state.named | self._place.patches()]
            missing = {one.sha256 for one in entries if one.problem == GONE}
            if not missing or self._find().state == state:
                removed = missing - state.named
                return tuple(one for one in entries if one.sha256 not in removed)

    def clean_up(self) -> tuple[str, ...]:
        """Remove what a crash left and every patch that is neither active nor previous.

        Where STATE was lost or damaged, patches stay: only temporary files go. Of a task that lost
        what it had active the highest stays. A folder with such a name stays, too, and a warning
        is logged.

        Returns:
            The names that were removed, sorted.

        Raises:
            PatchError: there is no store.
            StorageError: the disk failed; what is in use is untouched.
        """
        with self._writing("clean up") as found:
            useless = self._place.temporaries()
            if found.recovery is None:
                useless += map(patch_name, self._place.patches() - found.state.kept)
            return tuple(self._place.remove(sorted(useless)))

    def recover(self) -> Recovery | None:
        """Write STATE anew where it is missing or damaged, as every write does first.

        A folder that is no store becomes an empty one.

        Returns:
            What was wrong and what came of it; None where nothing was.

        Raises:
            StorageError: the disk failed.
        """
        with self._writing("recover", makes=True) as found:
            return found.recovery

    def glance(self) -> object:
        """A value that equals an earlier one if STATE and the names of the patches are as then.

        Raises:
            StorageError: the disk failed.
        """
        with self._place.disk("look at the store"):
            return self._place.look(), self._place.patches()

    def effective_policy(self) -> Policy:
        """What a patch must meet now: ``policy``, less the keys that the store knows as revoked.

        Raises:
            PatchKeyError: the policy's list and the store's do not go together.
            StorageError: the disk failed.
        """
        with self._place.disk("read the list of trusted keys"):
            return self._policy(self._find().state)

    def reset_floor(self, task: str) -> int:
        """Lower the floor of ``task`` to the patch that is active; the new floor.

        For an operator alone: from then on every patch above that number is taken again, also an
        old one that held mistakes, whoever sends it. Where no active patch may be used the store
        forgets the task, and 0 is returned: what ships with the app runs.

        Raises:
            ConfigError: ``task`` is not a task name.
            UnknownTaskError: the store has no floor of this task.
            PatchError: there is no store.
            StorageError: the disk failed; the state before it stays.
        """
        with self._writing("reset a floor") as found:
            _check_task_name(task)
            state = found.state
            if task not in state.floors:
                raise UnknownTaskError(
                    f"no floor for task {task!r} in store {self.folder}; it has "
                    f"{', '.join(sorted(state.floors)) or 'none'}; choose one of them"
                )
            active = self._usable(state.active.get(task), task, state)
            new = state.without(task)
            if active is not None:
                floors = {**state.floors, task: (floor_of(active),)}
                new = replace(state, floors=floors)
            sequence = 0 if active is None else active.header.sequence
            LOGGER.warning(
                "FLOOR RESET: task %s of store %s takes every patch above %d again, whoever sends "
                "it; it was %s",
                task,
                self.folder,
                sequence,
                state.floors[task],
            )
            self._place.commit(new, state)
            return sequence

    def reset_keys(self) -> None:
        """Forget the list of trusted keys that the store has seen; the policy's counts alone.

        For an operator alone: a key that only the store's list had revoked counts again where the
        policy's list has it.

        Raises:
            PatchError: there is no store.
            StorageError: the disk failed; the state before it stays.
        """
        with self._writing("reset the keys", forgets_keys=True) as found:
            LOGGER.warning(
                "KEYS RESET: store %s takes what %s says", self.folder, found.state.trusted
            )

    @property
    def _place(self) -> StoreFolder:
        return StoreFolder(Path(self.folder), self.files)

    @contextmanager
    def _writing(
        self, action: str, makes: bool = False, forgets_keys: bool = False
    ) -> Iterator[FoundState]:
        """The lock, and the state; STATE and its copy are whole before the block begins, and have
        the list of trusted keys that counts.

        Args:
            makes: make a store where there is none; else that is a PatchError.
            forgets_keys: the list of the policy takes the place of the one in STATE.

        What is visible may come from a process that was killed before it synced the folder: that
        is done first, so that nothing is built on a name that a power loss can take back.
        """
        place = self._place
        if not makes:
            self._demand_store(action)
        with place.disk(action), place.locked():
            place.sync()
            found = self._find_aloud()
            state = found.state
            keys = self.policy.trusted if forgets_keys else self._policy(state).trusted
            if found.is_fresh:
                place.sync_parent()
            if found.is_lost:
                found = keep_floors(found, place, lambda data: self._check(data, state))
            new = replace(found, state=replace(found.state, trusted=keys))
            is_whole = found.recovery is None and not found.is_fresh
            if new.state != state or not is_whole or not place.has_copy_of(state):
                place.commit(new.state, state if is_whole else None)
            yield new

    def _demand_store(self, action: str) -> None:
        with self._place.disk(action):
            if not self._place.is_store():
                raise PatchError(
                    f"cannot {action} in {self.folder}: no patch store is there; installing a "
                    "patch makes one; correct the path"
                )

    def _find(self) -> FoundState:
        return find_state(self._place)

    def _find_aloud(self) -> FoundState:
        """`_find`, with a logged warning where the state does not come from STATE."""
        found = self._find()
        if found.recovery is not None:
            LOGGER.warning("STATE of store %s is lost or damaged: %s", self.folder, found.recovery)
        return found

    def _policy(self, state: StoreState) -> Policy:
        """The store's policy with the newest keys of it and ``state``."""
        return replace(self.policy, trusted=join_lists(state.trusted, self.policy.trusted))

    def _check(self, data: bytes, state: StoreState) -> CheckedPatch:
        """Checks 1 to 5; what is asked of sequence and expiry depends on the operation."""
        return self.hooks.check(data, replace(self._policy(state), floor=0, now=None))

    def _check_task(self, data: bytes, task: str, state: StoreState) -> CheckedPatch:
        """`_check`, and that it is a patch of the task that STATE names it for."""
        checked = self._check(data, state)
        if checked.header.task != task:
            raise IntegrityError(
                f"STATE names patch {checked.sha256} for task {task!r}; it is one of task "
                f"{checked.header.task!r}; install the patch of {task!r} again"
            )
        return checked

    def _test(self, checked: CheckedPatch) -> None:
        """Checks 7 to 9."""
        self.hooks.self_test(checked, self.hooks.decode(checked))

    def _check_sequence(self, state: StoreState, checked: CheckedPatch, activate: bool) -> None:
        """Check 6 of a store, of a file that STATE does not name for this already.

        Raises:
            PatchRefusedError: code "sequence".
        """
        if not is_settled(state, checked, activate):
            shipped = self.shipped.get(checked.header.task)
            check_sequence(state, self._policy(state), shipped, checked)

    def _admit(
        self, found: FoundState, data: bytes, checked: CheckedPatch, activate: bool
    ) -> Installed:
        """Checks 7 to 9, then the file, then STATE."""
        self._test(checked)
        sha256, state = checked.sha256, found.state
        lost: tuple[int, ...] = ()
        if activate:
            before = self._find_back(state, checked)
            back_to = None if before is None else before.sha256
            state = state.activated(checked.header.task, floor_of(checked), back_to)
            sides = () if before is None else before.header.resolutions
            lost = tuple(sorted(set(sides) - set(checked.header.resolutions)))
        if sha256 not in found.state.named or not self._place.is_whole(sha256):
            self._place.put_patch(sha256, data)
        if state is not found.state:
            self._place.commit(state, found.state)
        return replace(_installed(checked, found, changed=True), lost_resolutions=lost)

    def _find_back(self, state: StoreState, checked: CheckedPatch) -> CheckedPatch | None:
        """What a revert is to go back to once ``checked`` is active: the patch that is active now
        or was before and may be used, else what ships with the app; that is put into the folder."""
        task = checked.header.task
        for sha256 in (state.active.get(task), state.previous.get(task)):
            usable = None if sha256 == checked.sha256 else self._usable(sha256, task, state)
            if usable is not None:
                return usable
        return self._put_shipped(state, checked)

    def _usable(self, sha256: str | None, task: str, state: StoreState) -> CheckedPatch | None:
        """The patch with this name after checks 1 to 5; None where it may not be used."""
        if sha256 is None:
            return None
        try:
            return self._check_task(self._place.read_patch(sha256), task, state)
        except (FileNotFoundError, IntegrityError, PatchRefusedError):
            return None

    def _put_shipped(self, state: StoreState, checked: CheckedPatch) -> CheckedPatch | None:
        """What ships with the app for the task of ``checked``, in the folder."""
        task = checked.header.task
        if task not in self.shipped:
            return None
        try:
            data = self.shipped[task].read()
            shipped = self._check_task(data, task, state)
        except PatchdeployError as error:
            LOGGER.warning("task %s: a revert cannot go back to what ships: %s", task, error)
            return None
        if shipped.sha256 == checked.sha256:
            return None
        self._place.put_patch(shipped.sha256, data)
        return shipped

    def _read_active(self, task: str) -> tuple[bytes, StoreState]:
        """A patch that is replaced and cleaned up while it is looked for is looked for again."""
        state = self._find().state
        while True:
            sha256 = self._active(state, task)
            try:
                return self._place.read_patch(sha256), state
            except FileNotFoundError as error:
                state = self._find().state
                if self._active(state, task) == sha256:
                    raise self._gone(task, sha256) from error

    def _active(self, state: StoreState, task: str) -> str:
        _check_task_name(task)
        if task not in state.active:
            raise UnknownTaskError(
                f"no active patch for task {task!r} in store {self.folder}; it has "
                f"{', '.join(sorted(state.active)) or 'none'}; choose one of them or install one"
            )
        return state.active[task]

    def _gone(self, task: str, sha256: str) -> IntegrityError:
        return IntegrityError(
            f"patch file {patch_name(sha256)} of task {task!r} is gone from store {self.folder}; "
            "STATE names it; install the patch again"
        )

    def _entry(self, sha256: str, state: StoreState) -> Entry:
        status, task = find_use(sha256, state)
        file_bytes = None
        try:
            data = self._place.read_patch(sha256)
            file_bytes = len(data)
            checked = (
                self._check(data, state) if task is None else self._check_task(data, task, state)
            )
        except FileNotFoundError:
            return Entry(sha256, status, task, None, None, None, GONE)
        except (IntegrityError, PatchRefusedError) as error:
            return Entry(sha256, status, task, None, None, file_bytes, str(error))
        header = checked.header
        return Entry(sha256, status, header.task, header.sequence, header.expires, file_bytes, None)


def _check_name(value: str, pattern: re.Pattern[str], rule: str, what: str) -> None:
    """Nothing that a caller gives becomes a path before it matches ``pattern``."""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise ConfigError(
            f"{what} {str(value)[:80]!r}; it must be {rule}; list the store and choose one"
        )


def _check_task_name(task: str) -> None:
    _check_name(task, TASK_NAME, "1 to 64 of a-z, 0-9, underscore and hyphen", "task")


def _installed(checked: CheckedPatch, found: FoundState, changed: bool) -> Installed:
    header = checked.header
    return Installed(checked.sha256, header.task, header.sequence, changed, found.recovery)
