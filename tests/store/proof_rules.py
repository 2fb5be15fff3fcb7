"""Rows 5, 7, 8, 11, 15 and 18 of patch-safety.md, as far as they are the store's.

Which patch may become active, when, under which name, and what follows from a damaged STATE.
"""

from __future__ import annotations

import itertools
import os
import random
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from operations import install_all, write_raw
from simulated_disk import FOLDER, SimulatedDisk
from store_cases import (
    CACHED_HOOKS,
    HOOKS,
    NOW,
    OTHER_BASE,
    OTHER_KEY,
    TASK,
    Summary,
    expect,
    hash_of,
    make_patch,
    open_store,
    running,
    summarise,
)

from patchdeploy.errors import (
    ConfigError,
    IntegrityError,
    PatchError,
    PatchRefusedError,
    StorageError,
    UnknownTaskError,
)
from patchdeploy.patchfile import CheckedPatch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Store
from patchdeploy.store.files import DiskFiles
from patchdeploy.store.folder import COPY, LOCK, STATE, patch_name

OpenStore = Callable[..., Store]
"""`open_store` or one with a planted bug."""


def install_code(store: Store, data: bytes, activate: bool = True) -> str:
    """ "changed", "same", or the code of the check that refused the patch."""
    try:
        return "changed" if store.install(data, activate).changed else "same"
    except PatchRefusedError as error:
        return error.code


def prove_orders(open_it: OpenStore = open_store, orders: int = 120, versions: int = 5) -> int:
    """Row 7: all orders of five versions, each replayed and varied; the number of installs.

    After each install: a version is taken when it is above all before it. The active one again
    changes nothing; an older one, and another file of the same number, are refused; a revert opens
    no door, and the highest comes back after it.
    """
    installs = 0
    for order in itertools.islice(itertools.permutations(range(1, versions + 1)), orders):
        store = open_it(FOLDER, SimulatedDisk(), hooks=CACHED_HOOKS)
        taken = [0]
        for sequence in order:
            expected = "changed" if sequence > taken[-1] else "sequence"
            expect(
                install_code(store, make_patch(sequence)),
                expected,
                "install_code(store, make_patch(sequence))",
            )
            if expected == "changed":
                taken.append(sequence)
            for replayed in order[: order.index(sequence) + 1]:
                _check_replay(store, replayed, taken[-1])
            installs += 2 + 2 * order.index(sequence)
        if len(taken) > 2:
            _check_revert(store, taken)
    return installs


def _check_replay(store: Store, sequence: int, highest: int) -> None:
    again = "same" if sequence == highest else "sequence"
    expect(
        install_code(store, make_patch(sequence)),
        again,
        "install_code(store, make_patch(sequence))",
    )
    expect(
        install_code(store, make_patch(sequence, variant=1)),
        "sequence",
        "install_code(store, make_patch(sequence, variant=1))",
    )
    expect(
        install_code(store, make_patch(sequence, variant=1), activate=False),
        "sequence",
        "install_code(store, make_patch(sequence, variant=1), activate=False)",
    )
    expect(running(store), highest, "running(store)")


def _check_revert(store: Store, taken: list[int]) -> None:
    highest, previous = taken[-1], taken[-2]
    assert store.revert(TASK).sequence == previous == running(store), (
        "store.revert(TASK).sequence == previous == running(store)"
    )
    for sequence in range(1, highest):
        code = install_code(store, make_patch(sequence))
        expect(code, "same" if sequence == previous else "sequence", "code")
    expect(dict(summarise(store).floors), {TASK: highest}, "dict(summarise(store).floors)")
    expect(
        install_code(store, make_patch(highest)),
        "changed",
        "install_code(store, make_patch(highest))",
    )
    expect(running(store), highest, "running(store)")
    expect(
        install_code(store, make_patch(previous)),
        "sequence",
        "install_code(store, make_patch(previous))",
    )
    expect(store.revert(TASK).sequence, previous, "store.revert(TASK).sequence")
    assert store.activate(hash_of(highest)).changed, "store.activate(hash_of(highest)).changed"
    expect(summarise(store).previous, (hash_of(previous),), "summarise(store).previous")


def prove_expiry(open_it: OpenStore = open_store) -> None:
    """Row 8: the clock before, at and after the time of expiry, and set back."""
    for now, code in ((NOW - 1, "changed"), (NOW, "expired"), (NOW + 1, "expired")):
        store = open_it(FOLDER, SimulatedDisk(), now=now)
        expect(
            install_code(store, make_patch(1, expires=NOW)),
            code,
            "install_code(store, make_patch(1, expires=NOW))",
        )
    disk = SimulatedDisk()
    early, late = open_it(FOLDER, disk, now=NOW - 1), open_it(FOLDER, disk, now=NOW + 1)
    early.install(make_patch(1))
    early.install(make_patch(2, expires=NOW))
    early.install(make_patch(3, expires=NOW), activate=False)
    expect(running(late), 2, "an active patch goes on after it expires")
    expect(
        install_code(late, make_patch(2, expires=NOW)),
        "same",
        "install_code(late, make_patch(2, expires=NOW))",
    )
    late.revert(TASK)
    expect(
        install_code(late, make_patch(2, expires=NOW)),
        "expired",
        "install_code(late, make_patch(2, expires=NOW))",
    )
    assert late.activate(hash_of(2, expires=NOW)).changed, (
        "late.activate(hash_of(2, expires=NOW)).changed"
    )
    expect(
        install_code(late, make_patch(4, expires=NOW)),
        "expired",
        "install_code(late, make_patch(4, expires=NOW))",
    )
    assert late.activate(hash_of(3, expires=NOW)).changed, "it was installed in time"
    expect(running(late), 3, "running(late)")
    expect(install_code(early, make_patch(4, expires=NOW)), "changed", "a clock set back")
    expect(install_code(early, make_patch(3)), "sequence", "the floor holds at any time")


def prove_checks(open_it: OpenStore = open_store) -> None:
    """Rows 4, 5 and 18: a patch that fails a check leaves no trace, and so no floor."""
    refused = {
        "base": make_patch(5, base_sha256=OTHER_BASE),
        "signature": make_patch(6, key=OTHER_KEY),
        "self_test": make_patch(7, passes=False),
        "payload_hash": make_patch(8)[:-1] + b"\x55",
        "truncated": b"",
    }
    disk = SimulatedDisk()
    store = open_it(FOLDER, disk)
    store.install(make_patch(1))
    before = disk.image()
    for code, data in refused.items():
        for activate in (True, False):
            expect(install_code(store, data, activate), code, "install_code(store, data, activate)")
            assert disk.image() == before, f"{code}: something was written"
        write_raw(store, patch_name(sha256_hex(data)), data)  # as if it had been installed before
        with suppress(PatchRefusedError):
            store.activate(sha256_hex(data))
        assert running(store) == 1, f"{code}: it was activated"
        disk.unlink(FOLDER / patch_name(sha256_hex(data)))
    expect(disk.image(), before, "disk.image()")
    expect(install_code(store, make_patch(2)), "changed", "no refused patch raised the floor")


def prove_order_of_commit(open_it: OpenStore = open_store) -> None:
    """While a patch is tested nothing of it is on the disk, and STATE is the old one."""
    disk = SimulatedDisk()
    open_it(FOLDER, disk).install(make_patch(1))
    before = disk.image()

    def self_test(checked: CheckedPatch, patch: PatchFile) -> None:
        expect(disk.image(), before, "written before the self-test")

    open_it(FOLDER, disk, hooks=replace(HOOKS, self_test=self_test)).install(make_patch(2))
    assert disk.image() != before, "disk.image() != before"


def prove_clean_up(open_it: OpenStore = open_store) -> None:
    """Clean-up leaves what is active and previous, and names that are not the store's."""
    disk = SimulatedDisk()
    store = open_it(FOLDER, disk)
    install_all(1, 2, 3)(store)
    store.install(make_patch(1, task="cars"))
    store.install(make_patch(4), activate=False)
    write_raw(store, "0123456789abcdef.tmp", b"half")
    write_raw(store, "notes.txt", b"mine")
    useless = (patch_name(hash_of(1)), patch_name(hash_of(4)), "0123456789abcdef.tmp")
    expect(store.clean_up(), tuple(sorted(useless)), "store.clean_up()")
    expect(store.clean_up(), (), "store.clean_up()")
    used = (patch_name(hash_of(2)), patch_name(hash_of(3)), patch_name(hash_of(1, task="cars")))
    expect(set(disk.seen), {STATE, COPY, "notes.txt", *used}, "set(disk.seen)")
    expect(store.revert(TASK).sequence, 2, "store.revert(TASK).sequence")


def prove_state_damage(
    open_it: OpenStore = open_store, masks: Iterable[int] = (1, 255), step: int = 1
) -> int:
    """Row 15: every byte of STATE changed, every length, none at all; the number of damages.

    Args:
        step: try every ``step``-th damage.

    With STATE alone damaged its copy gives the very same state: a patch that was reverted or
    replaced does not come back. With both damaged no patch is active, and the floors are those of
    the patches in the folder. Reading writes nothing; a write repairs STATE and says so.
    """
    disk, before, state = _store_to_damage(open_it)
    damages = 0
    for damaged in itertools.islice(_damages(state, masks), 0, None, step):
        for names in ((STATE,), (STATE, COPY), (COPY,)):
            if len(names) == 2 and damages % 5:
                continue  # the copy is parsed as STATE is
            copy = disk.copied()
            for name in names:
                copy.unlink(FOLDER / name)
                if damaged is not None:
                    write_raw(open_it(FOLDER, copy), name, damaged)
            _check_damaged(open_it(FOLDER, copy, hooks=CACHED_HOOKS), copy, names, before)
        damages += 1
    return damages


def _store_to_damage(open_it: OpenStore) -> tuple[SimulatedDisk, Summary, bytes]:
    """A store with a reverted task and files that are no patches of it; its STATE."""
    disk = SimulatedDisk()
    store = open_it(FOLDER, disk, hooks=CACHED_HOOKS)
    install_all(1, 2, 3)(store)
    store.revert(TASK)
    store.install(make_patch(1, task="cars"))
    store.install(make_patch(2, task="cars"))
    before, state = summarise(store), disk.read(FOLDER / STATE, 10**6)
    for data in (make_patch(9, key=OTHER_KEY), make_patch(9, base_sha256=OTHER_BASE), b"no"):
        write_raw(store, patch_name(sha256_hex(data)), data)
    write_raw(store, patch_name("0" * 64), make_patch(9))
    return disk, before, state


def _check_damaged(
    store: Store, disk: SimulatedDisk, names: tuple[str, ...], before: Summary
) -> None:
    is_lost = len(names) == 2
    expected = {} if is_lost else dict(before.active)
    image = disk.image()
    expect(dict(store.active()), expected, "what a reader finds active")
    expect(disk.image(), image, "a reader wrote")
    recovery = store.recover()
    if names == (COPY,):
        assert recovery is None, "STATE was whole"
    else:
        assert recovery is not None, "a silent repair"
        expect(dict(recovery.active), expected, "recovery.active")
        expect(len(recovery.refused), 4 if is_lost else 0, "len(recovery.refused)")
    after = summarise(store)
    expect(after.floors, before.floors, "a floor was lost")
    assert is_lost or after == before, "STATE is not what it was"
    assert store.recover() is None, "store.recover() is None"
    expect(disk.read(FOLDER / COPY, 10**6), disk.read(FOLDER / STATE, 10**6), "the copy of STATE")
    if is_lost:
        expect(install_code(store, make_patch(2)), "sequence", "an older patch after the loss")
        assert store.activate(hash_of(3)).changed, "the highest of those that were active"


def _damages(state: bytes, masks: Iterable[int]) -> Iterable[bytes | None]:
    yield None
    for mask, at in itertools.product(masks, range(len(state))):
        yield state[:at] + bytes([state[at] ^ mask]) + state[at + 1 :]
    for length in range(len(state)):
        yield state[:length]
    yield from (state + b"\n", state + state, state.replace(b":", b": "), b"[" * 100_000)


HOSTILE_NAMES: tuple[Any, ...] = (
    *("", ".", "..", "/", "//", "~", "-", "*", "?", "\0", "\n", " ", "%2e%2e", "$HOME", "`id`"),
    *("../birds", "birds/../birds", "./birds", "/birds", "birds/", "birds\0", "birds\n", " birds"),
    *(
        "birds.pdp",
        "BIRDS",
        "bïrds",
        "ｂｉｒｄｓ",
        "birds\u200b",
        "bi\u0000rds",
        "birds;",
        "b" * 65,
    ),
    *("../STATE", "STATE", "../lock", "..\\STATE", "C:\\birds", "CON", "nul", "file:///birds"),
    *("../" * 20 + "root", "a/" * 2000, "b" * 100_000, "١٢٣", "{birds}", "birds#", "@birds"),
    *(None, 7, b"birds", 1.5, ("birds",), True, Path("birds")),
)
"""More than 50 names that no task has; as a hash the task's own name is hostile, too."""


def prove_hostile_names(folder: Path, open_it: OpenStore = open_store) -> int:
    """Row 11: what a caller gives never becomes a path; links are not followed."""
    outside, store = folder / "outside", open_it(folder / "store", DiskFiles())
    outside.mkdir()
    (outside / "patch").write_bytes(make_patch(2))
    store.install(make_patch(1))
    before = _tree(folder)
    for name in HOSTILE_NAMES:
        for act in (store.read, store.revert, store.activate):
            try:
                act(name)
            except (ConfigError, UnknownTaskError):
                assert _tree(folder) == before, f"{name!r} changed something"
            else:
                raise AssertionError(f"{act.__name__}({name!r}) was not refused")
    return len(HOSTILE_NAMES) + _check_links(folder, store)


def _check_links(folder: Path, store: Store) -> int:
    """A link in place of each file of the store; the number of links."""
    target = folder / "outside" / "patch"
    link = store.folder / patch_name(hash_of(2))
    link.symlink_to(target)
    _refused(lambda: store.activate(hash_of(2)), IntegrityError)
    expect(running(store), 1, "running(store)")
    expect(store.clean_up(), (link.name,), "store.clean_up()")
    expect(target.read_bytes(), make_patch(2), "target.read_bytes()")

    (folder / "outside" / "state").write_bytes((store.folder / STATE).read_bytes())
    (store.folder / STATE).unlink()
    (store.folder / STATE).symlink_to(folder / "outside" / "state")
    recovery = store.install(make_patch(3)).recovery
    assert recovery is not None, "STATE was read through a link"
    assert not (store.folder / STATE).is_symlink(), "not (store.folder / STATE).is_symlink()"
    assert b"floors" in (folder / "outside" / "state").read_bytes(), (
        'b"floors" in (folder / "outside" / "state").read_bytes()'
    )

    (store.folder / LOCK).unlink()
    (store.folder / LOCK).symlink_to(folder / "outside" / "lock")
    _refused(lambda: store.install(make_patch(4)), StorageError)
    assert not (folder / "outside" / "lock").exists(), 'not (folder / "outside" / "lock").exists()'
    (store.folder / LOCK).unlink()

    pipe = store.folder / patch_name(hash_of(5))
    os.mkfifo(pipe)
    _refused(lambda: store.activate(hash_of(5)), IntegrityError)
    pipe.unlink()
    pipe.mkdir()
    _refused(lambda: store.activate(hash_of(5)), IntegrityError, StorageError)
    return 5


def prove_readers_lock(folder: Path, open_it: OpenStore = open_store) -> None:
    """Row 11: the lock of a store that others may read can be opened by its writers alone."""
    place = folder / "store"
    place.mkdir(mode=0o755)
    (place / LOCK).write_bytes(b"")
    (place / LOCK).chmod(0o644)  # as an earlier version left it
    open_it(place, DiskFiles()).install(make_patch(1))
    for readable, writable, mode in ((0o044, 0o022, 0o755), (0o044, 0o002, 0o775)):
        place.chmod(mode)
        open_it(place, DiskFiles()).install(make_patch(mode))
        found = stat.S_IMODE((place / LOCK).stat().st_mode)
        closed = readable & ~((mode & 0o022) << 1)
        assert not found & closed, f"a reader of {mode:o} could have opened the lock: {found:o}"
        assert not found & writable & ~mode, f"{found:o}"


def _refused(act: Callable[[], object], *errors: type[Exception]) -> None:
    try:
        act()
    except errors:
        return
    raise AssertionError(f"not refused with {errors}")


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def prove_random_histories(
    open_it: OpenStore = open_store, histories: int = 30, seed: int = 0
) -> int:
    """Any order of operations against a model in a few lines; the number of steps."""
    rng, steps = random.Random(seed), 0
    for _ in range(histories):
        store = open_it(FOLDER, SimulatedDisk(), hooks=CACHED_HOOKS)
        active: int | None = None
        previous: int | None = None
        floor, kept = 0, set[int]()
        for _ in range(20):
            sequence = rng.randint(1, 7)
            act = rng.choice(("install", "install", "keep", "activate", "revert", "clean-up"))
            may = sequence > floor or sequence == floor in (active, previous)
            done = True
            try:
                if act == "install":
                    store.install(make_patch(sequence))
                elif act == "keep":
                    store.install(make_patch(sequence), activate=False)
                elif act == "activate":
                    store.activate(hash_of(sequence))
                elif act == "revert":
                    store.revert(TASK)
                else:
                    store.clean_up()
            except (PatchRefusedError, PatchError):
                done = False
            is_there = sequence in kept | {active, previous}
            if act == "install" or (act == "activate" and is_there):
                expect(done, may or sequence == active, "done")
                if done and sequence != active:
                    active, previous, floor = sequence, active or previous, max(floor, sequence)
                if done:
                    kept.add(sequence)
            elif act == "activate":
                assert not done, "not done"
            elif act == "keep":
                expect(done, sequence > floor or sequence in (active, previous), "done")
                kept |= {sequence} if done else set()
            elif act == "revert":
                expect(done, previous is not None, "done")
                if done:
                    active, previous = previous, active
            else:
                kept &= {one for one in (active, previous) if one is not None}
            summary = summarise(store)
            expect(
                summary.active,
                () if active is None else ((TASK, hash_of(active)),),
                "summary.active",
            )
            expect(
                summary.previous,
                () if previous is None else (hash_of(previous),),
                "summary.previous",
            )
            expect(
                dict(summary.floors),
                {} if active is None else {TASK: floor},
                "dict(summary.floors)",
            )
            steps += 1
    return steps
