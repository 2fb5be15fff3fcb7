"""Row 4 of patch-safety.md, as far as it is the store's: a key that leaked, and its revocation.

Whoever has a leaked key signs what a store takes, until the key is revoked. From then on none of
that may run, hold another patch back, or come back with an old copy of the list of keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

from proof_rules import install_code
from simulated_disk import FOLDER, SimulatedDisk
from store_cases import (
    KEY,
    OTHER_KEY,
    POLICY,
    TASK,
    expect,
    hash_of,
    make_patch,
    open_store,
    running,
    summarise,
)

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import Policy, add_signature
from patchdeploy.patchfile.json import LARGEST
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Shipped, Store
from patchdeploy.store.folder import patch_name

LEAKED, GOOD = KEY, OTHER_KEY
OLD = replace(POLICY, trusted=TrustedKeys((LEAKED.public, GOOD.public), 1))
"""Before anybody knew: the leaked key is number 0, the good one 1."""
NEW = replace(POLICY, trusted=TrustedKeys((None, GOOD.public), 1))

OpenStore = Callable[..., Store]


def good_patch(sequence: int) -> bytes:
    """Signed by the key that did not leak."""
    return make_patch(sequence, key=GOOD, index=1)


def read_code(store: Store) -> str:
    """ "ok", or the code with which the active patch is refused."""
    try:
        store.read(TASK)
    except PatchRefusedError as error:
        return error.code
    return "ok"


def prove_revocation(open_it: OpenStore = open_store) -> int:
    """Every way that a leaked key was used, every way that its revocation came; how many."""
    count = 0
    for forged, first in itertools.product(FORGED, FIRST):
        disk = SimulatedDisk()
        old = open_it(FOLDER, disk, policy=OLD)
        old.install(good_patch(5))
        FORGED[forged](old)
        what = f"{forged}, then {first}"
        new = open_it(FOLDER, disk, policy=NEW)
        FIRST[first](new)
        expect(read_code(new), "key_unknown", f"{what}: what the leaked key signed is read")
        for policy in (NEW, OLD):  # an app that ships the old list
            store = open_it(FOLDER, disk, policy=policy)
            expect(install_code(store, make_patch(LARGEST, variant=9)), "key_unknown", what)
            expect(install_code(store, good_patch(4)), "sequence", f"{what}: an old patch")
        expect(install_code(store, good_patch(6)), "changed", f"{what}: the task is frozen")
        expect(running(store), 6, what)
        good = (sha256_hex(good_patch(5)),) if forged == ONE else ()  # a store keeps two patches
        expect(summarise(store).previous, good, f"{what}: what a revert goes back to")
        if good:
            expect(store.revert(TASK).sequence, 5, f"{what}: a revert")
        count += 1
    _prove_empty_store(open_it)
    return count + 1


def _forge(*sequences: int) -> Callable[[Store], None]:
    def act(store: Store) -> None:
        for sequence in sequences:
            store.install(make_patch(sequence))

    return act


def _sign_again(store: Store) -> None:
    """The leaked key under a good patch, and then under a patch that its thief made."""
    store.install(add_signature(good_patch(7), LEAKED, 0))
    store.install(make_patch(LARGEST))


ONE = "the largest number"
FORGED: dict[str, Callable[[Store], None]] = {
    ONE: _forge(LARGEST),
    "two numbers": _forge(6, LARGEST),
    "a signature more": _sign_again,
}
FIRST: dict[str, Callable[[Store], object]] = {
    "a clean-up": lambda store: store.clean_up(),
    "a refused install": lambda store: install_code(store, make_patch(LARGEST, variant=1)),
    "a recovery": lambda store: store.recover(),
}


def _prove_empty_store(open_it: OpenStore) -> None:
    """The list is remembered though the first patch that met it was refused."""
    disk = SimulatedDisk()
    expect(install_code(open_it(FOLDER, disk, policy=NEW), make_patch(1)), "key_unknown", "new")
    old = open_it(FOLDER, disk, policy=OLD)
    expect(install_code(old, make_patch(1)), "key_unknown", "an old list after the new one")
    expect(install_code(old, good_patch(1)), "changed", "the key that did not leak")


def prove_shipped_floor(open_it: OpenStore = open_store) -> None:
    """What ships with the app is a floor, and what a revert goes back to, until it is revoked."""

    def shipping(policy: Policy, disk: SimulatedDisk) -> Store:
        shipped = {TASK: Shipped(9, lambda: make_patch(9), signers=(0,))}
        return replace(open_it(FOLDER, disk, policy=policy), shipped=shipped)

    expect(install_code(shipping(OLD, SimulatedDisk()), good_patch(8)), "sequence", "old list")
    store = shipping(NEW, SimulatedDisk())
    expect(install_code(store, good_patch(8)), "changed", "the leaked key's number is no floor")
    expect(summarise(store).previous, (), "a patch of the leaked key to revert to")


def prove_reset(open_it: OpenStore = open_store) -> None:
    """A floor that a good key set by mistake is lowered by an operator, and by nothing else."""
    disk = SimulatedDisk()
    store = open_it(FOLDER, disk)
    for sequence in (5, LARGEST):
        store.install(make_patch(sequence))
    expect(store.reset_floor(TASK), LARGEST, "the floor of what is active")
    store.revert(TASK)
    expect(install_code(store, make_patch(6)), "sequence", "before the reset")
    expect(store.reset_floor(TASK), 5, "the new floor")
    expect(install_code(store, make_patch(4)), "sequence", "below the active one")
    expect(install_code(store, make_patch(6)), "changed", "after the reset")
    expect(summarise(store).previous, (hash_of(5),), "what a revert goes back to")
    expect(install_code(store, make_patch(LARGEST - 1)), "changed", "the next")
    disk.unlink(FOLDER / patch_name(sha256_hex(make_patch(LARGEST - 1))))
    expect(store.reset_floor(TASK), 0, "no active patch that may be used")
    expect(summarise(store).active, (), "the task is forgotten")
    expect(install_code(store, make_patch(1)), "changed", "any patch")
