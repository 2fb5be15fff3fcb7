"""Patches and stores that the tests share: real containers and signatures, small values.

The payload is four float32; decoding it and the self-test are stand-ins, since a store knows
neither. A payload whose first value is negative decodes and then fails the self-test.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import (
    CheckedPatch,
    Policy,
    add_signature,
    build_patch,
    check_patch_file,
)
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.slots import PatchValues
from patchdeploy.storage import sha256_hex
from patchdeploy.store import Hooks, Store
from patchdeploy.store.files import DiskFiles, Files
from patchdeploy.store.folder import MISSING, StoreFolder
from patchdeploy.store.state import StoreState

TASK = "birds"
KEY = SigningKey.from_seed(b"patchdeploy tests: store key one")
OTHER_KEY = SigningKey.from_seed(b"patchdeploy tests: store key two")
BASE = "b" * 64
OTHER_BASE = "c" * 64
POLICY = Policy(TrustedKeys((KEY.public,), 1), runtime="onnx", base_sha256=BASE, base_bytes=1000)
NOW = 1_800_000_000


@functools.cache
def make_patch(
    sequence: int,
    task: str = TASK,
    variant: int = 0,
    expires: int = 0,
    base_sha256: str = BASE,
    key: SigningKey = KEY,
    passes: bool = True,
    index: int = 0,
) -> bytes:
    """A signed patch file; ``variant`` tells two files of one sequence number apart."""
    values = np.array([1 if passes else -1, sequence, variant, 4], "<f4")
    payload = values.tobytes()
    header = PatchHeader(
        task=task,
        base_sha256=base_sha256,
        base_bytes=1000,
        classes=2,
        engine=1,
        expires=expires,
        payload_sha256=sha256_hex(payload),
        payload_bytes=len(payload),
        resolutions=(32,),
        results={"onnx": {32: sha256_hex(payload)}},
        sequence=sequence,
        sites=((0, 4),),
    )
    return add_signature(build_patch(header, payload), key, index)


def decode_values(checked: CheckedPatch) -> PatchFile:
    """The stand-in for checks 7 and 8: four floats as weight scales."""
    scales: NDArray[np.float32] = np.frombuffer(checked.payload, "<f4")
    if not np.isfinite(scales).all():
        raise PatchRefusedError("values", "value", "finite", "another", "pack it again")
    none = np.zeros(0, np.int8)
    values = PatchValues(scales, np.zeros(0, np.int32), np.zeros(0, np.float32), none, none)
    header = checked.header
    return PatchFile(header.task, ("no", "yes"), header.base_sha256, {32: values})


def check_values(checked: CheckedPatch, patch: PatchFile) -> None:
    """The stand-in for check 9."""
    if patch.values[32].weight_scale[0] < 0:
        raise PatchRefusedError("self_test", "score", "1", "-1", "pack it again")


HOOKS = Hooks(check_patch_file, decode_values, check_values)


@functools.lru_cache(maxsize=1000)
def _outcome(data: bytes, policy: Policy) -> CheckedPatch | PatchRefusedError:
    try:
        return check_patch_file(data, policy)
    except PatchRefusedError as error:
        return error.with_traceback(None)


def check_once(data: bytes, policy: Policy) -> CheckedPatch:
    """`check_patch_file`; what it says of the same bytes under the same policy is kept."""
    outcome = _outcome(data, policy)
    if isinstance(outcome, PatchRefusedError):
        raise outcome
    return outcome


CACHED_HOOKS = replace(HOOKS, check=check_once)


def open_store(
    folder: Path,
    files: Files | None = None,
    policy: Policy = POLICY,
    hooks: Hooks = HOOKS,
    now: int = NOW,
) -> Store:
    """A store that takes `make_patch`'s files."""
    return Store(folder, policy, hooks, files or DiskFiles(), lambda: now)


@dataclass(frozen=True)
class Summary:
    """What a store runs: the hash of every patch in use, and the floors where STATE has them."""

    active: tuple[tuple[str, str], ...]
    previous: tuple[str, ...]
    floors: tuple[tuple[str, int], ...]


def summarise(store: Store, may_be_damaged: bool = False) -> Summary:
    """What a new process finds; fails unless every patch in use is whole and is read back."""
    active = dict(store.active())
    place = StoreFolder(store.folder, store.files)
    listed = store.list() if place.is_store() else ()
    entries = [entry for entry in listed if entry.status != "installed"]
    for entry in entries:
        assert entry.problem is None, entry
    for task, sha256 in active.items():
        stored = store.read(task)
        assert sha256_hex(stored.data) == sha256 == stored.checked.sha256, (
            "sha256_hex(stored.data) == sha256 == stored.checked.sha256"
        )
    seen = place.look()
    is_known = seen.problem in (None, MISSING) or may_be_damaged
    assert is_known, f"STATE was left damaged: {seen}"
    state = seen.state or StoreState()
    return Summary(
        tuple(sorted(active.items())),
        tuple(sorted(entry.sha256 for entry in entries if entry.status == "previous")),
        tuple(sorted((task, max(floors).sequence) for task, floors in state.floors.items())),
    )


def running(store: Store, task: str = TASK) -> int:
    """The sequence number of the task's active patch."""
    return store.read(task).checked.header.sequence


def hash_of(sequence: int, **options: object) -> str:
    """The name that `make_patch` gets in a store."""
    return sha256_hex(make_patch(sequence, **options))  # type: ignore[arg-type]


def expect(found: object, expected: object, what: str) -> None:
    """Fail unless they are equal, and say what differs: proofs also run outside pytest."""
    if found != expected:
        raise AssertionError(f"{what}: {found!r:.300}, not {expected!r:.300}")
