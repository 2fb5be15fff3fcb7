"""Row 12 of patch-safety.md: the process is killed. Row 19: eight install at once.

On the real disk, in real processes. A kill comes before each operation of the file layer, by the
layer itself, and before each system call, by strace where there is one. What was seen stays seen:
this is not about the power, which proof_power.py is about.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from operations import OPERATIONS, Operation
from simulated_disk import FaultyFiles, KillingFiles
from store_cases import HOOKS, Summary, expect, hash_of, make_patch, open_store, running, summarise

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import CheckedPatch
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.store import Hooks, Store
from patchdeploy.store.files import DiskFiles, Files
from patchdeploy.store.folder import COPY, LOCK, STATE, patch_name

OpenStore = Callable[[Path, Files, Hooks], Store]
PROCESSES = 8
_PR_SET_PTRACER = 0x59616D61


def open_real(folder: Path, files: Files, hooks: Hooks) -> Store:
    """The store under proof."""
    return open_store(folder, files, hooks=hooks)


@dataclass
class Kills:
    """How many processes were killed, and how many of them had got to the new state.

    ``missed`` ones made fewer calls of a name than the run before (the memory allocator's are not
    always the same), so they came to their end.
    """

    count: int = 0
    new: int = 0
    missed: int = 0


def start_child(act: Callable[[], object], go: int | None = None, ready: int | None = None) -> int:
    """A copy of this process that does ``act``; exit status 0 if well.

    Args:
        go: a descriptor to read one byte from first.
        ready: one to write a byte to, right before that.
    """
    child = os.fork()
    if child:
        return child
    try:
        if go is not None:
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
            if ready is not None:
                os.write(ready, b"r")
            os.read(go, 1)
        act()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def end_child(child: int) -> bool:
    """Whether it came to its end (True) or was killed (False)."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        expect(os.WTERMSIG(status), signal.SIGKILL, "os.WTERMSIG(status)")
        return False
    expect(os.WEXITSTATUS(status), 0, "the child failed; its traceback is above")
    return True


class UnsyncedFiles(DiskFiles):
    """The real disk without waiting for it: a kill, unlike a power loss, loses nothing."""

    def sync(self, handle: int) -> None:
        """Nothing."""

    def sync_folder(self, folder: Path) -> None:
        """Nothing."""


Attempt = Callable[[Path], bool]
"""Does an operation in a store folder, killed at one place; whether it came to its end."""


def prove_kills(
    folder: Path, open_it: OpenStore = open_real, names: Iterable[str] = OPERATIONS
) -> Kills:
    """A kill before every operation of the file layer."""

    def list_attempts(place: Path, operation: Operation) -> list[Attempt]:
        counting = FaultyFiles(UnsyncedFiles())
        operation.act(open_it(place, counting, HOOKS))
        return [functools.partial(attempt, operation, at) for at in range(1, counting.count + 1)]

    def attempt(operation: Operation, at: int, place: Path) -> bool:
        store = open_it(place, KillingFiles(UnsyncedFiles(), at), HOOKS)
        return end_child(start_child(lambda: operation.act(store)))

    return _prove(folder, open_it, names, list_attempts)


def prove_kills_by_strace(
    folder: Path, open_it: OpenStore = open_real, names: Iterable[str] = OPERATIONS
) -> Kills:
    """A kill before every system call, as a first run without a kill lists them."""

    def list_attempts(place: Path, operation: Operation) -> list[Attempt]:
        log = folder / "calls.txt"
        assert _run_traced(open_it(place, DiskFiles(), HOOKS), operation, ["-o", str(log)]), (
            '_run_traced(open_it(place, DiskFiles(), HOOKS), operation, ["-o", str(log)])'
        )
        calls = [line.split("(")[0] for line in log.read_text().splitlines() if "(" in line]
        return [
            functools.partial(attempt, operation, call, calls[: k + 1].count(call))
            for k, call in enumerate(calls)
        ]

    def attempt(operation: Operation, call: str, number: int, place: Path) -> bool:
        store = open_it(place, DiskFiles(), HOOKS)
        return _run_traced(store, operation, _kill_at(call, number))

    return _prove(folder, open_it, names, list_attempts)


def can_trace() -> str | None:
    """Why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    store = open_real(Path(), DiskFiles(), HOOKS)
    nothing = Operation(lambda store: None, lambda store: None)
    came_to_end = _run_traced(store, nothing, _kill_at("exit_group", 1))
    return "strace may not attach to a process here" if came_to_end else None


def _kill_at(call: str, number: int) -> list[str]:
    """strace counts the calls of each name apart."""
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    return ["-o", os.devnull, "-e", inject]


def _run_traced(store: Store, operation: Operation, options: list[str]) -> bool:
    """The operation in a child under strace, from its first system call on."""
    (reader, writer), (is_ready, ready) = os.pipe(), os.pipe()
    child = start_child(lambda: operation.act(store), reader, ready)
    os.read(is_ready, 1)
    command = ["strace", "-e", "trace=all", *options, "-p", str(child)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None, "tracer.stderr is not None"
        tracer.stderr.readline()  # "Process ... attached", or why not
        os.write(writer, b"g")
        came_to_end = end_child(child)
    for end in (reader, writer, is_ready, ready):
        os.close(end)
    return came_to_end


def _prove(
    folder: Path,
    open_it: OpenStore,
    names: Iterable[str],
    list_attempts: Callable[[Path, Operation], list[Attempt]],
) -> Kills:
    kills = Kills()
    for number, name in enumerate(names):
        operation = OPERATIONS[name]
        start, done = folder / f"{number}-start", folder / f"{number}-done"
        before = _summary(start, operation.set_up, open_it, operation.starts_damaged)
        _copy(start, done)
        attempts = list_attempts(done, operation)
        after = summarise(open_it(done, UnsyncedFiles(), HOOKS))
        for at, attempt in enumerate(attempts):
            place = folder / f"{number}-{at}"
            _copy(start, place)
            came_to_end = attempt(place)
            store = open_it(place, UnsyncedFiles(), HOOKS)
            found = summarise(store, operation.starts_damaged)
            allowed = {after} if came_to_end else {before, after}
            assert found in allowed, f"{name}, killed at {at}: {found}, not one of {allowed}"
            kills.count += not came_to_end
            kills.missed += came_to_end
            kills.new += found == after != before and not came_to_end
            _check_goes_on(store, operation, after)
            shutil.rmtree(place)
    return kills


def _summary(
    folder: Path, act: Callable[[Store], object], open_it: OpenStore, may_be_damaged: bool
) -> Summary:
    store = open_it(folder, UnsyncedFiles(), HOOKS)
    act(store)
    return summarise(store, may_be_damaged)


def _copy(folder: Path, to: Path) -> None:
    if folder.exists():
        shutil.copytree(folder, to)


def _check_goes_on(store: Store, operation: Operation, after: Summary) -> None:
    """The same again works where it repeats, a clean-up leaves what is in use, a patch goes in."""
    if operation.repeats:
        operation.act(store)
        expect(summarise(store), after, "summarise(store)")
    store.clean_up()
    in_use = {patch_name(entry.sha256) for entry in store.list()}
    expect(
        {path.name for path in store.folder.iterdir()},
        in_use | {LOCK, STATE, COPY},
        "{path.name for path in store.folder.iterdir()}",
    )
    assert store.install(make_patch(9)).changed, "store.install(make_patch(9)).changed"
    expect(running(store), 9, "running(store)")


def prove_one_wins(folder: Path, rounds: int, open_it: OpenStore = open_real) -> int:
    """Eight processes install at once; the number of installs that changed something.

    In turn: eight files of one sequence number (one is taken), of eight numbers (the highest runs
    in the end), and one file eight times (one process changes something). No two are ever at work.
    """
    changed = 0
    for number in range(rounds):
        kind = number % 3
        patches = [
            make_patch(2, variant=i) if kind == 0 else make_patch(2 + i if kind == 1 else 2)
            for i in range(PROCESSES)
        ]
        place = folder / f"round-{number}"
        place.mkdir()
        outcomes = _install_at_once(place, patches, open_it)
        store = open_it(place / "store", DiskFiles(), HOOKS)
        summary = summarise(store)
        changed += outcomes.count("changed")
        highest = 1 + PROCESSES if kind == 1 else 2
        assert running(store) == highest, f"round {number} runs {running(store)}, not {highest}"
        expect(dict(summary.floors), {"birds": highest}, "dict(summary.floors)")
        expect(len(summary.previous), 1, "len(summary.previous)")
        expected = {0: ("changed", "sequence"), 2: ("changed", "same")}.get(kind)
        if expected is not None:
            one, others = expected
            expect(sorted(outcomes), sorted([one] + [others] * (PROCESSES - 1)), "sorted(outcomes)")
            expect(summary.previous, (hash_of(1),), "summary.previous")
        assert set(outcomes) <= {"changed", "sequence", "same"}, outcomes
        shutil.rmtree(place)
    return changed


def _install_at_once(place: Path, patches: list[bytes], open_it: OpenStore) -> list[str]:
    open_it(place / "store", DiskFiles(), HOOKS).install(make_patch(1))
    store = open_it(place / "store", DiskFiles(), _alone(place / "inside"))
    reader, writer = os.pipe()

    def install(number: int) -> None:
        try:
            outcome = "changed" if store.install(patches[number]).changed else "same"
        except PatchRefusedError as error:
            outcome = error.code
        (place / f"outcome-{number}").write_text(outcome)

    children = [
        start_child(lambda number=number: install(number), reader)  # type: ignore[misc]
        for number in range(len(patches))
    ]
    os.write(writer, b"g" * len(children))
    ends = [end_child(child) for child in children]
    os.close(reader)
    os.close(writer)
    assert all(ends), "all(ends)"
    return [(place / f"outcome-{number}").read_text() for number in range(len(patches))]


def _alone(marker: Path) -> Hooks:
    """A self-test during which no other may run."""

    def self_test(checked: CheckedPatch, patch: PatchFile) -> None:
        marker.open("xb").close()  # FileExistsError: another process is at work
        time.sleep(0.005)
        marker.unlink()

    return replace(HOOKS, self_test=self_test)
