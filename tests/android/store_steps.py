"""One store folder in two hands: Python and Kotlin in turn, beside a folder that is Python's alone.

In: a number of steps and a seed. Out: after each step, what either said and what lies in the
folders. Between steps files are damaged, lost and left over, in both folders alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from coding_cases import make_header, part, tiny_table, zeros
from container_cases import KEYS, TRUSTED, forge, sha

from patchdeploy.errors import PatchdeployError, PatchRefusedError
from patchdeploy.patchfile import CheckedPatch, Policy, check_patch_file
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.parts import PARTS
from patchdeploy.patchfile.payload import decode_payload
from patchdeploy.store import Hooks, Installed, Shipped, Store

Rng = np.random.Generator
TABLE = tiny_table()
TASKS = ("first", "second")
Ask = Callable[[Path, dict[str, Any], bytes], Any]
"""(folder, operation, data) -> what one language says."""


@dataclass(frozen=True)
class Settings:
    """What an app opens its store with."""

    policy: Policy
    shipped: dict[str, Path]
    now: int


def make_files() -> list[bytes]:
    """Good patches of two tasks, several numbers, signers and sides; and some that are refused."""
    files = []
    for task in TASKS:
        for sequence in range(1, 9):
            for signers in ((0,), (1,), (0, 1)):
                files.append(make_file(task, sequence, signers, 1000 if sequence == 4 else 0))
    damaged = files[3][:-1] + bytes([files[3][-1] ^ 1])
    return [*files, damaged, files[5][:40], b"", forge(signers=(2,))]


def make_file(task: str, sequence: int, signers: tuple[int, ...] = (0,), expires: int = 0) -> bytes:
    """A good patch; an even number has a side more than an odd one."""
    sides = (24,) if sequence % 2 else (24, 16)
    payload = _payload(len(sides))
    header = make_header(payload, TABLE, 3, sides, task=task, sequence=sequence)
    return forge(replace(header, expires=expires).to_bytes(), payload, signers)


def _payload(sides: int) -> bytes:
    contents = zeros(3, sides)
    return b"".join(part(k, contents[name]) for k, name in enumerate(PARTS))


def random_steps(
    count: int, seed: int, folder: Path, kotlin: Callable[[Settings], Ask]
) -> Iterator[tuple[str, Any, Any]]:
    """(what was done, what should come of it, what came of it) for each step.

    Args:
        folder: for the two store folders and the files that ship.
        kotlin: makes the function that asks Kotlin.
    """
    rng, files = np.random.default_rng(seed), make_files()
    shipped = {"first": folder / "shipped.pdp"}
    shipped["first"].write_bytes(files[0])
    ours, shared = folder / "ours", folder / "shared"
    for number in range(count):
        if number % 40 == 0:
            ours, shared = folder / f"ours{number}", folder / f"shared{number}"
        settings = _settings(rng, shipped)
        operation, data = _operation(rng, files)
        hand = kotlin(settings) if rng.random() < 0.5 else ask_python(settings)
        expected = ask_python(settings)(ours, operation, data), snapshot(ours)
        found = hand(shared, operation, data), snapshot(shared)
        shown = {key: one for key, one in operation.items() if key != "bytes"}
        yield f"step {number} of seed {seed}, {shown}", expected, found
        if rng.random() < 0.15:
            _damage(rng, ours, shared)


def _settings(rng: Rng, shipped: dict[str, Path]) -> Settings:
    trusted = TRUSTED
    if rng.random() < 0.1:
        gone = int(rng.integers(3))
        keys = [None if k == gone else key.public for k, key in enumerate(KEYS)]
        trusted = TrustedKeys(tuple(keys), 1)
    policy = Policy(trusted, base_sha256=TABLE.sha256, base_bytes=TABLE.length_bytes)
    return Settings(policy, shipped if rng.random() < 0.5 else {}, int(rng.choice([999, 1000])))


def _operation(rng: Rng, files: list[bytes]) -> tuple[dict[str, Any], bytes]:
    name = rng.choice(
        ["install", "activate", "revert", "clean_up", "recover", "active", "read", "list"],
        p=[0.4, 0.1, 0.15, 0.08, 0.05, 0.06, 0.08, 0.08],
    )
    file = files[rng.integers(len(files))]
    operation: dict[str, Any] = {"do": str(name)}
    if name == "install":
        return {**operation, "activate": bool(rng.random() < 0.8)}, file
    if name == "activate":
        return {**operation, "sha256": sha(file)}, b""
    if name in ("revert", "read"):
        return {**operation, "task": str(rng.choice([*TASKS, "third"]))}, b""
    return operation, b""


def ask_python(settings: Settings) -> Ask:
    """What Python says: the value, or the code or name of the error."""

    def ask(folder: Path, operation: dict[str, Any], data: bytes) -> Any:
        try:
            return _use(_open(settings, folder), operation, data)
        except PatchRefusedError as error:
            return error.code
        except PatchdeployError as error:
            return type(error).__name__.replace("Error", "Exception")

    return ask


def _open(settings: Settings, folder: Path) -> Store:
    def decode(checked: CheckedPatch) -> Any:
        return decode_payload(checked.payload, checked.header, TABLE)

    def self_test(checked: CheckedPatch, patch: Any) -> None:
        if checked.header.sequence % 5 == 0:
            raise PatchRefusedError("self_test", "sequence", "no multiple of 5", "one", "none")

    shipped = {}
    for task, path in settings.shipped.items():
        checked = check_patch_file(path.read_bytes(), Policy(TRUSTED))
        signers = tuple(sorted(checked.signed_by))
        shipped[task] = Shipped(checked.header.sequence, path.read_bytes, signers)
    hooks = Hooks(check_patch_file, decode, self_test)
    return Store(folder, settings.policy, hooks, clock=lambda: settings.now, shipped=shipped)


def _use(store: Store, operation: dict[str, Any], data: bytes) -> Any:
    name = operation["do"]
    if name == "install":
        return _told(store.install(data, operation["activate"]))
    if name == "activate":
        return _told(store.activate(operation["sha256"]))
    if name == "revert":
        return _told(store.revert(operation["task"]))
    if name == "clean_up":
        return list(store.clean_up())
    if name == "recover":
        found = store.recover()
        return None if found is None else [dict(found.active), sorted(found.refused)]
    if name == "active":
        return dict(store.active())
    if name == "read":
        read = store.read(operation["task"])
        return [read.checked.sha256, list(read.patch.classes)]
    return sorted(
        [e.sha256, e.status, e.task, e.sequence, e.expires, e.file_bytes, e.problem is not None]
        for e in store.list()
    )


def _told(one: Installed) -> list[Any]:
    recovered = one.recovery is not None
    return [one.sha256, one.task, one.sequence, one.changed, recovered, list(one.lost_resolutions)]


def snapshot(folder: Path) -> dict[str, str]:
    """Every name of a store folder with the hash of its bytes; temporary files by their number."""
    if not folder.exists():
        return {}
    paths = sorted(path for path in folder.iterdir() if path.name != "lock")
    named = {path.name: sha(path.read_bytes()) for path in paths if path.suffix != ".tmp"}
    return {**named, ".tmp": str(len(paths) - len(named))}


def _damage(rng: Rng, *folders: Path) -> None:
    """The same to each folder: what a crash, a bad disk or a person may do."""
    kind = int(rng.integers(6))
    pick = float(rng.random())
    for folder in folders:
        patches = sorted(folder.glob("*.pdp")) if folder.exists() else []
        victims = [folder / "STATE"] if kind < 2 else [folder / "STATE.copy"]
        if kind == 3:
            victims = [folder / "STATE", folder / "STATE.copy"]
        if kind == 4:
            victims = patches[int(pick * len(patches)) :][:1]
        for victim in (path for path in victims if path.exists()):
            _spoil(victim, pick)
        if kind == 5 and folder.exists():
            (folder / f"{int(pick * 1e15):016x}.tmp").write_bytes(b"half")


def _spoil(path: Path, pick: float) -> None:
    data = path.read_bytes()
    place = int(pick * len(data))
    if pick < 0.3:
        path.unlink()
    elif pick < 0.6:
        path.write_bytes(data[:place])
    else:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
