"""The operations of a store that the fault proofs interrupt, each with what comes before it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from store_cases import KEY, OTHER_KEY, POLICY, TASK, hash_of, make_patch

from patchdeploy.errors import PatchError, PatchFileError
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.store import Shipped, Store
from patchdeploy.store.folder import COPY, STATE

BOTH = (STATE, COPY)


@dataclass(frozen=True)
class Operation:
    """``act`` after ``set_up``.

    Attributes:
        starts_damaged: STATE is not whole before it.
        repeats: doing it again changes nothing more.
    """

    set_up: Callable[[Store], None]
    act: Callable[[Store], object]
    starts_damaged: bool = False
    repeats: bool = True


def install_all(*sequences: int) -> Callable[[Store], None]:
    """Installs these sequence numbers of the task, one after the other."""

    def set_up(store: Store) -> None:
        for sequence in sequences:
            store.install(make_patch(sequence))

    return set_up


def write_raw(store: Store, name: str, data: bytes) -> None:
    """Put a file into the folder behind the store's back, on the disk for good."""
    handle = store.files.create(store.folder / name)
    rest = memoryview(data)
    while rest:
        rest = rest[store.files.write(handle, rest) :]
    store.files.sync(handle)
    store.files.close(handle)
    store.files.sync_folder(store.folder)


def damage_state(store: Store, data: bytes = b"{", names: Sequence[str] = (STATE,)) -> None:
    """STATE as a bad sector would leave it; with ``BOTH`` its copy too."""
    for name in names:
        store.files.unlink(store.folder / name)
        write_raw(store, name, data)


def lose_state(store: Store) -> None:
    """Neither STATE nor its copy is there."""
    for name in BOTH:
        store.files.unlink(store.folder / name)


SHIPPED = {TASK: Shipped(1, lambda: make_patch(1))}


def _kept(store: Store) -> None:
    store.install(make_patch(1))
    store.install(make_patch(2), activate=False)


def _reverted(store: Store) -> None:
    install_all(1, 2)(store)
    store.revert(TASK)


def _littered(store: Store) -> None:
    install_all(1, 2, 3)(store)
    store.install(make_patch(4), activate=False)
    write_raw(store, "0123456789abcdef.tmp", b"half")


def _damaged(store: Store) -> None:
    install_all(1, 2)(store)
    store.install(make_patch(1, task="cars"))
    damage_state(store)


def _lost(store: Store) -> None:
    install_all(1, 2)(store)
    damage_state(store, names=BOTH)


NEWER_POLICY = replace(POLICY, trusted=TrustedKeys((KEY.public, OTHER_KEY.public), 1))

OPERATIONS = {
    "first install": Operation(lambda store: None, lambda s: s.install(make_patch(1))),
    "first install beside what ships": Operation(
        lambda store: None,
        lambda s: replace(s, shipped=SHIPPED).install(make_patch(2)),
    ),
    "install": Operation(install_all(1), lambda s: s.install(make_patch(2))),
    "install without activating": Operation(
        install_all(1), lambda s: s.install(make_patch(2), activate=False)
    ),
    "install of another task": Operation(
        install_all(1, 2), lambda s: s.install(make_patch(1, task="cars"))
    ),
    "install again": Operation(install_all(1, 2), lambda s: s.install(make_patch(2))),
    "install after revert": Operation(_reverted, lambda s: s.install(make_patch(2))),
    "activate": Operation(_kept, lambda s: s.activate(hash_of(2))),
    "revert": Operation(install_all(1, 2), lambda s: s.revert(TASK), repeats=False),
    "clean-up": Operation(_littered, lambda s: s.clean_up()),
    "recovery": Operation(_damaged, lambda s: s.recover(), starts_damaged=True),
    "recovery without a record": Operation(_lost, lambda s: s.recover(), starts_damaged=True),
    "install with a newer list of keys": Operation(
        install_all(1), lambda s: replace(s, policy=NEWER_POLICY).install(make_patch(2))
    ),
    "reset of a floor": Operation(_reverted, lambda s: s.reset_floor(TASK)),
}


def random_operation(rng: random.Random) -> Operation:
    """An operation after up to six others, over two tasks and six versions; some are refused."""
    acts = [_random_act(rng) for _ in range(rng.randint(1, 7))]

    def set_up(store: Store) -> None:
        for act, _ in acts[:-1]:
            act(store)

    return Operation(set_up, acts[-1][0], repeats=acts[-1][1])


def _random_act(rng: random.Random) -> tuple[Callable[[Store], object], bool]:
    """An act, and whether it repeats."""
    task, sequence = rng.choice((TASK, TASK, "cars")), rng.randint(1, 6)
    data, keep = make_patch(sequence, task=task), rng.random() < 0.2

    def refused_or(act: Callable[[Store], object]) -> Callable[[Store], object]:
        def run(store: Store) -> None:
            with suppress(PatchFileError, PatchError):
                act(store)

        return run

    choice = rng.randint(0, 9)
    if choice <= 5:
        return refused_or(lambda store: store.install(data, activate=not keep)), True
    if choice == 6:
        return refused_or(lambda store: store.activate(hash_of(sequence, task=task))), True
    if choice == 7:
        return refused_or(lambda store: store.clean_up()), True
    return refused_or(lambda store: store.revert(task)), False
