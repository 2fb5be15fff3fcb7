"""Row 16 of patch-safety.md: a file is swapped after its check. Row 17: updates while in use."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from store_cases import TASK, check_values, decode_values, expect, hash_of, make_patch, open_store

from patchdeploy.errors import IntegrityError, PatchError, PatchFileError
from patchdeploy.patchfile import check_patch_file
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Store, StoredPatch
from patchdeploy.store.files import DiskFiles, Files
from patchdeploy.store.folder import STATE, patch_name

OpenStore = Callable[[Path, Files], Store]
OTHERS = (make_patch(7), make_patch(2, passes=False), b"", make_patch(2)[:-1])
"""What the file is swapped with: a signed patch, one that fails its test, nothing, a part."""


def open_plain(folder: Path, files: Files) -> Store:
    """The store under proof."""
    return open_store(folder, files)


class SwappingFiles(DiskFiles):
    """As soon as a patch file has been read, another lies in its place."""

    def __init__(self, other: bytes) -> None:
        self.other = other

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """One read, then the swap."""
        data = super().read(path, limit_bytes)
        if path.suffix == ".pdp":
            _swap(path, self.other)
        return data


def _swap(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


def check_used_bytes(stored: StoredPatch, store: Store) -> None:
    """What is used is what was checked: header, payload and values come from ``data``."""
    expect(sha256_hex(stored.data), stored.checked.sha256, "sha256_hex(stored.data)")
    again = check_patch_file(stored.data, store.policy)
    expect(again, stored.checked, "the checked bytes are not the bytes that were returned")
    values, expected = stored.patch.values[32], decode_values(again).values[32]
    assert np.array_equal(values.weight_scale, expected.weight_scale), (
        "np.array_equal(values.weight_scale, expected.weight_scale)"
    )
    check_values(again, stored.patch)


def prove_swaps(folder: Path, open_it: OpenStore = open_plain) -> int:
    """A swap right after each read, with each of the other files; the number of swaps."""
    for number, other in enumerate(OTHERS):
        place = folder / f"swap-{number}"
        store = open_it(place, DiskFiles())
        store.install(make_patch(1))
        store.install(make_patch(2), activate=False)
        swapping = open_it(place, SwappingFiles(other))
        activated = swapping.activate(hash_of(2))
        expect(
            (place / patch_name(activated.sha256)).read_bytes(),
            make_patch(2),
            "(place / patch_name(activated.sha256)).read_bytes()",
        )
        stored = swapping.read(TASK)
        expect(stored.data, make_patch(2), "stored.data")
        check_used_bytes(stored, store)
    return 2 * len(OTHERS)


@dataclass
class Races:
    """How many reads came to which end."""

    good: int = 0
    refused: int = 0


def prove_swap_races(folder: Path, races: int, open_it: OpenStore = open_plain) -> Races:
    """A thread swaps the active file without pause while another reads it ``races`` times."""
    store = open_it(folder, DiskFiles())
    store.install(make_patch(2))
    path = folder / patch_name(hash_of(2))
    seen = Races()

    def swap_once(number: int) -> None:
        _swap(path, OTHERS[number // 2 % len(OTHERS)] if number % 2 else make_patch(2))

    with _repeating(swap_once):
        while seen.good + seen.refused < races:
            try:
                stored = store.read(TASK)
            except (IntegrityError, PatchFileError):
                seen.refused += 1
                continue
            seen.good += 1
            expect(stored.data, make_patch(2), "stored.data")
            check_used_bytes(stored, store)
    return seen


@contextmanager
def _repeating(act: Callable[[int], None]) -> Iterator[None]:
    """``act`` again and again in a thread; what it raises is raised at the end."""
    stop, errors = threading.Event(), []

    def run() -> None:
        number = 0
        while not stop.is_set():
            try:
                act(number)
            except BaseException as error:
                errors.append(error)
                return
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


def prove_updates_in_use(folder: Path, installs: int, open_it: OpenStore = open_plain) -> int:
    """Installs, reverts, repairs and clean-ups while a reader works; the number of its reads.

    What the reader holds stays bit for bit: decoded values, the mapped patch file and STATE. What
    it reads anew is always one whole patch.
    """
    store = open_it(folder, DiskFiles())
    store.install(make_patch(1))
    held = store.read(TASK)
    values = held.patch.values[32].weight_scale.tobytes()
    reads = 0

    def read_once(number: int) -> None:
        nonlocal reads
        stored = store.read(TASK)
        check_used_bytes(stored, store)
        expect(
            stored.patch.values[32].weight_scale[1],
            stored.checked.header.sequence,
            "stored.patch.values[32].weight_scale[1]",
        )
        reads += 1

    with (
        _mapped(folder / patch_name(held.checked.sha256)) as patch_map,
        _mapped(folder / STATE) as state_map,
        _repeating(read_once),
    ):
        patch_bytes, state_bytes = bytes(patch_map), bytes(state_map)
        for number in range(2, installs + 2):
            _update(store, number)
            assert bytes(patch_map) == patch_bytes == held.data, "a mapped patch file changed"
            expect(bytes(state_map), state_bytes, "a STATE that is in use changed")
            expect(
                held.patch.values[32].weight_scale.tobytes(),
                values,
                "held.patch.values[32].weight_scale.tobytes()",
            )
    _check_repair(folder, store)
    return reads


def _update(store: Store, sequence: int) -> None:
    assert store.install(make_patch(sequence)).changed, (
        "store.install(make_patch(sequence)).changed"
    )
    if sequence % 3 == 0:
        store.revert(TASK)
    if sequence % 2 == 0:
        store.clean_up()


def _check_repair(folder: Path, store: Store) -> None:
    """A damaged file that someone has mapped is replaced, not written into."""
    data = store.read(TASK).data
    path = folder / patch_name(sha256_hex(data))
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with _mapped(path) as damaged:
        before = bytes(damaged)
        with suppress(PatchError):  # a store without repair fails the next line
            assert store.install(data).changed, "store.install(data).changed"
        expect(bytes(damaged), before, "a mapped patch file changed")
    expect(store.read(TASK).data, data, "store.read(TASK).data")


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        yield mapped
