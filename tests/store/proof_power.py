"""Row 13 of patch-safety.md: the power fails. Row 14: the disk does.

Both run over the simulated disk. After a power loss a new process finds the state before the
operation or the one after it, whole; the one after it once the operation has returned.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import get_args

from operations import OPERATIONS, Operation, random_operation
from simulated_disk import FOLDER, FaultyFiles, Kind, SimulatedDisk
from store_cases import CACHED_HOOKS, Summary, expect, make_patch, open_store, running, summarise

from patchdeploy.errors import StorageError
from patchdeploy.store import Store
from patchdeploy.store.files import Files
from patchdeploy.store.folder import StoreFolder

OpenStore = Callable[[Files], Store]


def open_simulated(files: Files) -> Store:
    """The store under proof."""
    return open_store(FOLDER, files, hooks=CACHED_HOOKS)


@dataclass
class Crashes:
    """Power losses tried: how many, and the different (operation, step, disk after it)."""

    rng: random.Random
    open_it: OpenStore
    count: int = 0
    states: set[object] = field(default_factory=set)

    def check(
        self, place: object, disk: SimulatedDisk, allowed: set[Summary], may_be_damaged: bool
    ) -> None:
        """The power fails on ``disk``; what is found then must be among ``allowed``."""
        after = disk.crashed(self.rng)
        self.count += 1
        self.states.add((place, after.image()))
        found = summarise(self.open_it(after), may_be_damaged)
        assert found in allowed, f"{place}, then a power loss: {found}, not one of {allowed}"
        if self.count % 8 == 0:  # and it goes on from there
            assert self.open_it(after).install(make_patch(9)).changed, (
                "self.open_it(after).install(make_patch(9)).changed"
            )
            expect(
                running(self.open_it(after.crashed(self.rng))),
                9,
                "running(self.open_it(after.crashed(self.rng)))",
            )


def prove_power_loss(states: int, open_it: OpenStore = open_simulated, seed: int = 0) -> Crashes:
    """Power losses at every step of every operation until ``states`` different ones were met.

    At each step also: the process is killed there, another one does the operation again, or cleans
    up, and returns; then the power fails. What is seen is not always what is kept. After the listed
    operations come random histories.
    """
    rng = random.Random(seed)
    crashes = Crashes(rng, open_it)
    for name, operation in OPERATIONS.items():
        _crash_everywhere(name, operation, 3, crashes)
    histories = 0
    while len(crashes.states) < states:
        histories += 1
        _crash_everywhere(f"history {histories}", random_operation(rng), 3, crashes)
    return crashes


def _crash_everywhere(name: str, operation: Operation, times: int, crashes: Crashes) -> None:
    for moment in _moments(name, operation, crashes.open_it):
        for _ in range(times):
            crashes.check(*moment)


Moment = tuple[object, SimulatedDisk, set[Summary], bool]
"""Where, the disk there, what a power loss there may leave, whether STATE may be damaged."""


def _moments(name: str, operation: Operation, open_it: OpenStore) -> Iterator[Moment]:
    damaged = operation.starts_damaged
    disk, before, after = prepare(operation, open_it)
    for step, image in enumerate(_steps(disk, operation, open_it)):
        yield (name, step), image, {before, after}, damaged
        for what, act in _successors(operation):
            successor = image.copied()
            act(open_it(successor))
            kept = {summarise(open_it(successor))}
            assert what == "clean-up" or kept == {after}, f"{name} again after step {step}"
            yield (name, step, what), successor, kept, False
    operation.act(open_it(disk))
    yield (name, "returned"), disk, {after}, False


def _successors(operation: Operation) -> Iterator[tuple[str, Callable[[Store], object]]]:
    """What the next process does; a revert is not done again, since that takes it back."""
    yield "clean-up", _clean_up
    if operation.repeats:
        yield "again", operation.act


def _clean_up(store: Store) -> None:
    """Where nothing of a store is there yet, there is nothing to clean up."""
    if StoreFolder(store.folder, store.files).is_store():
        store.clean_up()


def prepare(operation: Operation, open_it: OpenStore) -> tuple[SimulatedDisk, Summary, Summary]:
    """A disk on which all that comes before is durable; the summaries before and after."""
    disk = SimulatedDisk()
    operation.set_up(open_it(disk))
    disk.keep_everything()
    before = summarise(open_it(disk.copied()), operation.starts_damaged)
    done = disk.copied()
    operation.act(open_it(done))
    return disk, before, summarise(open_it(done))


def _steps(disk: SimulatedDisk, operation: Operation, open_it: OpenStore) -> list[SimulatedDisk]:
    """The disk after each step of the operation."""
    disk, images = disk.copied(), []
    disk.after_step = lambda: images.append(disk.copied())
    operation.act(open_it(disk))
    return images


@dataclass
class Faults:
    """Faults tried: how many were met, and how many of them ended in a typed error."""

    met: int = 0
    refused: int = 0


def prove_disk_faults(open_it: OpenStore = open_simulated, rounds: int = 1) -> Faults:
    """Every k-th operation of the disk fails, once and for good, until an operation runs through.

    A typed error and the state before, seen and kept; or no error and the state after. Tried again
    on a disk that works, the operation succeeds and a power loss does not undo it.

    Args:
        rounds: power losses tried after each fault, twice.
    """
    faults = Faults()
    for name, operation in OPERATIONS.items():
        prepared = prepare(operation, open_it)
        for kind in get_args(Kind):
            for code in (errno.EIO, errno.ENOSPC):
                at = 1
                while _check_fault(name, prepared, open_it, (at, kind, code), rounds, faults):
                    at += 1
    return faults


def _check_fault(
    name: str,
    prepared: tuple[SimulatedDisk, Summary, Summary],
    open_it: OpenStore,
    fault: tuple[int, Kind, int],
    rounds: int,
    faults: Faults,
) -> bool:
    """Whether the disk was asked often enough for this fault to be met."""
    operation = OPERATIONS[name]
    before, after = prepared[1:]
    disk = prepared[0].copied()
    faulty = FaultyFiles(disk, *fault)
    error = _run(operation, open_it(faulty))
    if faulty.count < fault[0]:
        return False
    faults.met += 1
    faults.refused += error is not None
    allowed = _allowed_after(error, fault[1], before, after)
    found = summarise(open_it(disk), operation.starts_damaged)
    if operation.starts_damaged and error is not None:
        allowed = {before, after}  # the same patches run, whether STATE says so or not
    assert found in allowed, f"{name}, fault {fault}: {found}, not one of {allowed}"
    crashes = Crashes(random.Random(fault[0]), open_it)
    for _ in range(rounds):
        place = (name, fault)
        crashes.check(place, disk, {before, after}, operation.starts_damaged)
    if found == before != after:
        operation.act(open_it(disk))
        for _ in range(rounds):
            crashes.check((name, fault, "again"), disk, {after}, may_be_damaged=False)
    return True


def _run(operation: Operation, store: Store) -> StorageError | None:
    try:
        operation.act(store)
    except StorageError as error:
        return error
    return None


def _allowed_after(
    error: StorageError | None, kind: Kind, before: Summary, after: Summary
) -> set[Summary]:
    """What may be seen after an error: a disk that fails for good may keep either."""
    if error is None:
        return {after}
    if str(error).endswith("the state before this stays"):
        return {before}
    assert str(error).endswith("the store is whole, in the state before this or after it"), error
    expect(kind, "for good", "kind")
    return {before, after}
