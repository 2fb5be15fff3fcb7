"""Row 20 of patch-safety.md: stores with one mistake each, and the proof that must notice it."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from proof_keys import prove_reset, prove_revocation, prove_shipped_floor
from proof_kill import prove_kills, prove_one_wins
from proof_power import prove_disk_faults, prove_power_loss
from proof_rules import (
    prove_checks,
    prove_clean_up,
    prove_expiry,
    prove_hostile_names,
    prove_order_of_commit,
    prove_orders,
    prove_readers_lock,
    prove_state_damage,
)
from proof_use import prove_swaps, prove_updates_in_use

from patchdeploy import storage_locks
from patchdeploy.errors import PatchdeployError
from patchdeploy.patchfile import CheckedPatch, Policy, read_container
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.json import encode_canonical
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Installed, Store, patch_store, recovery, rules
from patchdeploy.store import files as files_module
from patchdeploy.store import folder as folder_module
from patchdeploy.store.files import DiskFiles, Files, publish
from patchdeploy.store.folder import COPY, STATE, StoreFolder, patch_name
from patchdeploy.store.recovery import FoundState
from patchdeploy.store.state import Floor, StoreState


@dataclass(frozen=True)
class Bug:
    """``plant`` puts it in; ``proof`` then fails with a text that ``match`` is found in."""

    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    proof: Callable[[Path], object]
    match: str


BUGS: list[Bug] = []


def bug(
    name: str, proof: Callable[[Path], object], match: str
) -> Callable[[Callable[[pytest.MonkeyPatch], None]], None]:
    """Adds the function below it to `BUGS`."""

    def add(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
        BUGS.append(Bug(name, plant, proof, match))

    return add


def prove_bug(bug: Bug, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Plant it; its proof must fail, and for this reason."""
    bug.plant(patch)
    with pytest.raises((AssertionError, PatchdeployError, OSError, ValueError)) as caught:
        bug.proof(folder)
    text = f"{caught.type.__name__}: {caught.value}"
    assert re.search(bug.match, text, re.DOTALL), f"{bug.name}: failed for another reason: {text}"


def power(folder: Path) -> object:
    """Row 13."""
    return prove_power_loss(states=500)


def faults(folder: Path) -> object:
    """Row 14."""
    return prove_disk_faults()


def kills(folder: Path) -> object:
    """Row 12."""
    return prove_kills(folder, names=["install"])


def without_folder(proof: Callable[[], object]) -> Callable[[Path], object]:
    """A proof over the simulated disk."""
    return lambda folder: proof()


state_damage = without_folder(functools.partial(prove_state_damage, masks=(1,), step=5))


# Rows 12 to 14: what is written, in which order, and synced


@bug("no fsync of files", power, "STATE was left damaged|has SHA-256|then a power loss")
def _(patch: pytest.MonkeyPatch) -> None:
    def write(files: Files, path: Path, data: bytes) -> None:
        handle, rest = files.create(path), memoryview(data)
        while rest:
            rest = rest[files.write(handle, rest) :]
        files.close(handle)

    patch.setattr(files_module, "_write_new", write)


@bug("no fsync of the folder after a patch file", power, "the file is gone|is gone from store")
def _(patch: pytest.MonkeyPatch) -> None:
    def put(self: StoreFolder, sha256: str, data: bytes) -> None:
        publish(self.files, self.path, patch_name(sha256), data)

    patch.setattr(StoreFolder, "put_patch", put)


@bug("STATE names what ships, and its file is not written", power, "is gone|then a power loss")
def _(patch: pytest.MonkeyPatch) -> None:
    def put(self: Store, state: StoreState, checked: CheckedPatch) -> CheckedPatch | None:
        shipped = self.shipped.get(checked.header.task)
        return None if shipped is None else self._check(shipped.read(), state)

    patch.setattr(Store, "_put_shipped", put)


@bug("no fsync of the folder after STATE", power, "'again'.*then a power loss")
def _(patch: pytest.MonkeyPatch) -> None:
    def commit(self: StoreFolder, state: StoreState, before: StoreState | None) -> None:
        for name in (COPY, STATE):
            publish(self.files, self.path, name, state.to_bytes())

    patch.setattr(StoreFolder, "commit", commit)


@bug("nothing synced that a killed process left", power, "'(again|clean-up)'.*then a power loss")
def _(patch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def writing(self: Store, action: str, makes: bool = False) -> Iterator[FoundState]:
        place = self._place
        with place.disk(action), place.locked():
            found = self._find()
            state = replace(found.state, trusted=self.policy.trusted)
            if found.is_fresh:
                place.sync_parent()
            if found.is_fresh or found.recovery is not None or state != found.state:
                place.commit(state, None)
            yield replace(found, state=state)

    patch.setattr(Store, "_writing", writing)


@bug("no fsync of the parent folder", power, "'again'.*then a power loss")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreFolder, "sync_parent", lambda self: None)


@bug("STATE written in place", kills, "STATE was left damaged|killed at")
def _(patch: pytest.MonkeyPatch) -> None:
    def put(files: Files, folder: Path, name: str, data: bytes) -> None:
        if name != STATE:
            return publish(files, folder, name, data)
        with contextlib.suppress(FileNotFoundError):
            files.unlink(folder / name)
        files_module._write_new(files, folder / name, data)

    patch.setattr(folder_module, "publish", put)


@bug("STATE before the patch file", kills, "the file is gone")
def _(patch: pytest.MonkeyPatch) -> None:
    def admit(
        self: Store, found: FoundState, data: bytes, checked: CheckedPatch, activate: bool
    ) -> Installed:
        self._test(checked)
        header = checked.header
        floor = Floor(header.sequence, checked.sha256, checked.signed_by)
        state = found.state.activated(header.task, floor, found.state.active.get(header.task))
        self._place.commit(state, found.state)
        self._place.put_patch(checked.sha256, data)
        return patch_store._installed(checked, found, changed=True)

    patch.setattr(Store, "_admit", admit)


@bug("a failed fsync is tried again", faults, "STATE was left damaged|then a power loss|SHA-256")
def _(patch: pytest.MonkeyPatch) -> None:
    def write(files: Files, path: Path, data: bytes) -> None:
        handle, rest = files.create(path), memoryview(data)
        while rest:
            rest = rest[files.write(handle, rest) :]
        try:
            files.sync(handle)
        except OSError:
            files.sync(handle)
        files.close(handle)

    patch.setattr(files_module, "_write_new", write)


@bug("a failed write is taken for a whole one", faults, "STATE was left damaged|has SHA-256")
def _(patch: pytest.MonkeyPatch) -> None:
    def write(files: Files, path: Path, data: bytes) -> None:
        handle = files.create(path)
        files.write(handle, memoryview(data))
        files.sync(handle)
        files.close(handle)

    patch.setattr(files_module, "_write_new", write)


@bug("the new STATE stays after its last sync failed", faults, "not one of")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreFolder, "_put_back", lambda self, before, written, cause: None)


@bug("untyped errors of the disk", faults, "Input/output error")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreFolder, "disk", lambda self, action: contextlib.nullcontext())


# Rows 5, 7, 8 and 18: what may become active


def _with_check(patch: pytest.MonkeyPatch, change: Callable[[Policy], Policy]) -> None:
    """Every check of a file is made under a changed policy."""
    initial = Store.__init__

    def init(self: Store, *args: Any, **keywords: Any) -> None:
        initial(self, *args, **keywords)
        check = self.hooks.check
        hooks = replace(self.hooks, check=lambda data, policy: check(data, change(policy)))
        object.__setattr__(self, "hooks", hooks)

    patch.setattr(Store, "__init__", init)


@bug("base check skipped", without_folder(prove_checks), "'changed', not 'base'")
def _(patch: pytest.MonkeyPatch) -> None:
    _with_check(patch, lambda policy: replace(policy, base_sha256=None))


@bug("self-test skipped", without_folder(prove_checks), "'changed', not 'self_test'")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Store, "_test", lambda self, checked: self.hooks.decode(checked))


@bug("patch file before the self-test", without_folder(prove_order_of_commit), "written before")
def _(patch: pytest.MonkeyPatch) -> None:
    admit = Store._admit

    def early(
        self: Store, found: FoundState, data: bytes, checked: CheckedPatch, activate: bool
    ) -> Installed:
        self._place.put_patch(checked.sha256, data)
        return admit(self, found, data, checked, activate)

    patch.setattr(Store, "_admit", early)


@bug("floor raised before the self-test", without_folder(prove_checks), "something was written")
def _(patch: pytest.MonkeyPatch) -> None:
    admit = Store._admit

    def early(
        self: Store, found: FoundState, data: bytes, checked: CheckedPatch, activate: bool
    ) -> Installed:
        state, header = found.state, checked.header
        if header.task in state.floors:
            early = Floor(header.sequence, checked.sha256, checked.signed_by)
            floors = {**state.floors, header.task: (early,)}
            self._place.commit(replace(state, floors=floors), state)
        return admit(self, found, data, checked, activate)

    patch.setattr(Store, "_admit", early)


def _with_sequence_rule(
    patch: pytest.MonkeyPatch, allows: Callable[[StoreState, CheckedPatch], bool]
) -> None:
    check = Store._check_sequence

    def looser(self: Store, state: StoreState, checked: CheckedPatch, activate: bool) -> None:
        if not allows(state, checked):
            check(self, state, checked, activate)

    patch.setattr(Store, "_check_sequence", looser)


@bug("equal sequence taken", without_folder(prove_orders), "'changed', not 'sequence'")
def _(patch: pytest.MonkeyPatch) -> None:
    _with_sequence_rule(
        patch,
        lambda state, checked: checked.header.sequence == _floor(state, checked.header.task),
    )


def _floor(state: StoreState, task: str) -> int:
    return max((one.sequence for one in state.floors.get(task, ())), default=0)


def _lowered(state: StoreState, task: str) -> StoreState:
    """``state`` with the task's floors one too low."""
    floors = tuple(one._replace(sequence=max(1, one.sequence - 1)) for one in state.floors[task])
    return replace(state, floors={**state.floors, task: floors})


@bug("floor off by one", without_folder(prove_orders), "'changed', not 'sequence'")
def _(patch: pytest.MonkeyPatch) -> None:
    activated = StoreState.activated

    def lower(self: StoreState, task: str, floor: Floor, back_to: str | None) -> StoreState:
        return _lowered(activated(self, task, floor, back_to), task)

    patch.setattr(StoreState, "activated", lower)


@bug("install takes the previous one", without_folder(prove_orders), "'changed', not 'sequence'")
def _(patch: pytest.MonkeyPatch) -> None:
    _with_sequence_rule(patch, lambda state, checked: checked.sha256 in state.named)


@bug("a revert lowers the floor", without_folder(prove_orders), "floors.: .*4.*, not .*5")
def _(patch: pytest.MonkeyPatch) -> None:
    reverted = StoreState.reverted

    def lower(self: StoreState, task: str) -> StoreState:
        return _lowered(reverted(self, task), task)

    patch.setattr(StoreState, "reverted", lower)


@bug("expiry not looked at", without_folder(prove_expiry), "'changed', not 'expired'")
def _(patch: pytest.MonkeyPatch) -> None:
    _with_check(patch, lambda policy: replace(policy, now=None))


@bug("expiry stops what is active", without_folder(prove_expiry), "time of expiry")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Store,
        "_check",
        lambda self, data, state: self.hooks.check(data, replace(self.policy, now=self.clock())),
    )


# Row 15: recovery


@bug("the hash of STATE not compared", state_damage, "what a reader finds|AssertionError|STATE")
def _(patch: pytest.MonkeyPatch) -> None:
    parse = StoreState.from_bytes

    def loose(cls: type[StoreState], data: bytes) -> StoreState:
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            document = json.loads(data)
            document.pop("state_sha256")
            own = sha256_hex(encode_canonical(document))
            return parse(encode_canonical({**document, "state_sha256": own}))
        raise files_module.IntegrityError("STATE does not parse")

    patch.setattr(StoreState, "from_bytes", classmethod(loose))


@bug("a silent repair", state_damage, "a silent repair")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "Recovery", lambda *parts: None)
    patch.setattr(recovery, "keep_floors", lambda found, folder, check: found)


@bug("no copy of STATE", state_damage, "what a reader finds active")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(folder_module, "_RECORDS", (STATE,))


@bug("a damaged copy of STATE stays", state_damage, "the copy of STATE|no file")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreFolder, "has_copy_of", lambda self, state: True)


@bug("a recovery without floors", state_damage, "a floor was lost|recovery.refused")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(patch_store, "keep_floors", lambda found, folder, check: found)


@bug("a recovery takes the highest file", state_damage, "what a reader finds active")
def _(patch: pytest.MonkeyPatch) -> None:
    find = recovery.find_state

    def highest(folder: StoreFolder) -> FoundState:
        found = find(folder)
        if found.recovery is None:
            return found
        active = {}
        for sha256 in sorted(folder.patches()):
            with contextlib.suppress(PatchdeployError):
                header = PatchHeader.from_bytes(read_container(folder.read_patch(sha256)).header)
                active[header.task] = sha256
        floors = {task: (Floor(1, sha256, (0,)),) for task, sha256 in active.items()}
        return replace(found, state=StoreState(active, {}, floors), is_lost=False)

    patch.setattr(patch_store, "find_state", highest)


# Row 4: a key that leaked

revocation = without_folder(prove_revocation)


@bug("a floor of a revoked key counts", revocation, "the task is frozen")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "still_count", lambda signers, policy: True)


@bug("the newest list of keys is forgotten", revocation, "not 'key_unknown'")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(patch_store, "join_lists", lambda known, other: other)


@bug("a revert to a revoked patch is prepared", revocation, "key_unknown|goes back to|PatchRef")
def _(patch: pytest.MonkeyPatch) -> None:
    def find(self: Store, state: StoreState, checked: CheckedPatch) -> CheckedPatch | None:
        sha256 = state.active.get(checked.header.task)
        return None if sha256 is None else replace(checked, sha256=sha256)

    patch.setattr(Store, "_find_back", find)


@bug("a number of a revoked app is a floor", without_folder(prove_shipped_floor), "no floor")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "_counts", lambda shipped, policy: True)


@bug(
    "a reset forgets the floor",
    without_folder(prove_reset),
    "before the reset|below the active one",
)
def _(patch: pytest.MonkeyPatch) -> None:
    reset = Store.reset_floor

    def forget(self: Store, task: str) -> int:
        sequence = reset(self, task)
        state = self._find().state
        floors = {**state.floors, task: (Floor(1, state.active[task], (0,)),)}
        self._place.commit(replace(state, floors=floors), state)
        return sequence

    patch.setattr(Store, "reset_floor", forget)


@bug("readers can open the lock", prove_readers_lock, "opened the lock")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(storage_locks, "_lock_mode", lambda folder: 0o644)


# Rows 11, 16, 17 and 19: other processes, other files


@bug("the file is read twice", prove_swaps, "activated.sha256.*read_bytes")
def _(patch: pytest.MonkeyPatch) -> None:
    read = StoreFolder.read_patch

    def twice(self: StoreFolder, sha256: str) -> bytes:
        read(self, sha256)
        return self.files.read(self.path / patch_name(sha256), 10**8)

    patch.setattr(StoreFolder, "read_patch", twice)


@bug("links are followed", prove_hostile_names, "was not refused|not refused|through a link")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiskFiles, "read", lambda self, path, limit_bytes: path.read_bytes())


@bug("names are not checked", prove_hostile_names, "holds no patch")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(patch_store, "_check_name", lambda value, pattern, rule, what: None)


@bug("clean-up takes the previous patch", without_folder(prove_clean_up), "store.clean_up")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreState, "named", property(lambda self: frozenset(self.active.values())))


@bug("clean-up takes every patch", without_folder(prove_clean_up), "store.clean_up")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreState, "named", property(lambda self: frozenset()))


@bug("the lock is ignored", lambda folder: prove_one_wins(folder, 3), "failed|assert|outcomes")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DiskFiles, "lock", lambda self, path: contextlib.nullcontext())


def _overwrite(files: Files, folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)


@bug("STATE is overwritten", lambda f: prove_updates_in_use(f / "store", 30), "changed|Bus error")
def _(patch: pytest.MonkeyPatch) -> None:
    def put(files: Files, folder: Path, name: str, data: bytes) -> None:
        (_overwrite if name == STATE else publish)(files, folder, name, data)

    patch.setattr(folder_module, "publish", put)


@bug(
    "a damaged patch file is overwritten",
    lambda f: prove_updates_in_use(f / "store", 3),
    "a mapped patch file changed",
)
def _(patch: pytest.MonkeyPatch) -> None:
    def put(files: Files, folder: Path, name: str, data: bytes) -> None:
        (publish if name == STATE else _overwrite)(files, folder, name, data)

    patch.setattr(folder_module, "publish", put)


@bug(
    "a damaged patch file stays",
    lambda f: prove_updates_in_use(f / "store", 3),
    "install.data..changed",
)
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(StoreFolder, "is_whole", lambda self, sha256: True)
