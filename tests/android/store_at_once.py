"""Eight processes write into one store folder at once, half of them Kotlin's, half Python's.

In: the jar that `make android` builds. Out: what went wrong: an answer that no rule of the store
gives, an install that a later one did not see, a floor that fell, a torn file. A process of
either language is killed on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from comparison import Comparison
from container_cases import TRUSTED
from jvm import Patchkit
from store_steps import TABLE, TASKS, Ask, Settings, ask_python, make_file

from patchdeploy.patchfile import Policy
from patchdeploy.storage import sha256_hex
from patchdeploy.store.folder import COPY, STATE

NUMBERS = 400
"""Sequence numbers, which the workers use up in the course of their time."""
SETTINGS = Settings(Policy(TRUSTED, base_sha256=TABLE.sha256, base_bytes=TABLE.length_bytes), {}, 0)
MEMORY = Path("/dev/shm")
"""A file system that syncs at once: more operations, and so more of them at the same moment."""
REFUSALS = {
    "install": {"sequence", "self_test"},
    "activate": {"sequence", "self_test", "PatchException"},
    "revert": {"PatchException", "UnknownTaskException", "self_test"},
    "read": {"UnknownTaskException"},
    "clean_up": {"PatchException"},
    "list": {"PatchException"},
}
"""What may come of an operation but its result; the others are the others' doing."""


CHANGED = 3
"""Place in an install's answer: whether it changed what is active."""
MakeAsker = Callable[[Patchkit], Callable[[Settings], Ask]]


class Event(NamedTuple):
    """One operation of a worker; ``answer`` is a result, or a code or name of an error."""

    start: float
    end: float
    operation: str
    task: str
    number: int
    answer: Any


def work(ask: Ask, place: Path, seed: int, end: float, seconds: float) -> list[Event]:
    """Operations at random until ``end`` (time.time()); ``place`` has the store and the files."""
    rng, events = np.random.default_rng(seed), []
    while (left := end - time.time()) > 0:
        task = str(rng.choice(TASKS))
        number = 1 + min(NUMBERS - 1, int((1 - left / seconds) * NUMBERS) + int(rng.integers(4)))
        data = (place / f"{task}{number}").read_bytes()
        name = str(rng.choice(list(REFUSALS), p=[0.5, 0.1, 0.15, 0.15, 0.05, 0.05]))
        operation: dict[str, Any] = {"do": name, "task": task, "activate": bool(rng.random() < 0.8)}
        operation["sha256"] = sha256_hex(data)
        start = time.time()
        answer = ask(place / "store", operation, data if name == "install" else b"")
        kept = name == "install" and operation["activate"]
        said = name if kept or name != "install" else "keep"
        events.append(Event(start, time.time(), said, task, number, answer))
    return events


def compare_at_once(comparison: Comparison, kotlin: MakeAsker, seconds: float) -> Counter[str]:
    """Four processes of each language, and eight of Kotlin's; how many operations came of it."""
    counts: Counter[str] = Counter()
    for case, languages in (("both", "KKKKPPPP"), ("Kotlin alone", "KKKKKKKK")):
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made:
            place = Path(made)
            for task in TASKS:
                for number in range(1, NUMBERS + 1):
                    (place / f"{task}{number}").write_bytes(make_file(task, number))
            events = _run_all(kotlin, place, languages, seconds)
            counts[case] += len(events)
            comparison.check("processes at once", case, [], _faults(events, place / "store"))
    return counts


def _run_all(kotlin: MakeAsker, place: Path, languages: str, seconds: float) -> list[Event]:
    """What all workers did; the first and the last are killed at half of the time."""
    events: list[Event] = []
    machines = [Patchkit() for language in languages if language == "K"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(place), str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment}
    seeds = range(len(machines), len(languages))
    children = [subprocess.Popen([*command, str(seed)], **pipes) for seed in seeds]  # type: ignore[call-overload]
    for number, machine in enumerate(machines):
        _warm_up(kotlin(machine)(SETTINGS), place, f"warm{number}")
    for child in children:
        assert child.stdout.readline() == b"ready\n"
    end = time.time() + seconds

    def run(seed: int, machine: Patchkit) -> None:
        try:
            events.extend(work(kotlin(machine)(SETTINGS), place, seed, end, seconds))
        except (RuntimeError, BrokenPipeError):
            events.append(Event(0, 0, "killed", "", 0, None))

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(machines)]
    for thread in threads:
        thread.start()
    for child in children:
        child.stdin.write(f"{end}\n".encode())
        child.stdin.flush()
    time.sleep(seconds / 2)
    machines[0].kill()
    for child in children[-1:]:
        child.kill()
    outputs = [child.communicate()[0] for child in children]
    for thread in threads:
        thread.join()
    for machine in machines[1:]:
        machine.close()
    for text in outputs[:-1]:
        events += [Event(*row) for row in json.loads(text)]
    return events


def _warm_up(ask: Ask, place: Path, name: str) -> None:
    """A program's first operations take a hundred times as long as later ones."""
    for number in range(1, 21):
        data = (place / f"{TASKS[0]}{number}").read_bytes()
        ask(place / name, {"do": "install", "activate": True}, data)


def _faults(events: list[Event], store: Path) -> list[str]:
    """What no order of the operations, one after the other, explains."""
    faults = [f"{one}" for one in events if not _is_allowed(one)]
    done = [one for one in events if one.operation == "install" and type(one.answer) is list]
    if len(done) < 10:
        faults.append(f"{len(done)} installs were done")
    for task in TASKS:
        last = sorted((one for one in done if one.task == task), key=lambda one: one.start)
        for one in last:
            if not one.answer[CHANGED]:  # a revert may have made it the active one again
                continue
            missed = [e for e in last if e.end < one.start and e.number > one.number]
            faults += [f"{one} did not see {e}" for e in missed[:1]]
        read = ask_python(SETTINGS)(store, {"do": "read", "task": task}, b"")
        if type(read) is not list:
            faults.append(f"{task} cannot be read: {read}")
        older = make_file(task, max((e.number for e in last), default=2) - 1, signers=(0, 1))
        again = ask_python(SETTINGS)(store, {"do": "install", "activate": True}, older)
        if again != "sequence":
            faults.append(f"the floor of {task} fell: {again}")
    if (store / STATE).read_bytes() != (store / COPY).read_bytes():
        faults.append("STATE and its copy differ")
    problems = [row for row in ask_python(SETTINGS)(store, {"do": "list"}, b"") if row[-1]]
    return faults + [f"{row} is damaged" for row in problems]


def _is_allowed(event: Event) -> bool:
    if event.operation == "killed":
        return True
    name = "install" if event.operation == "keep" else event.operation
    return event.answer in REFUSALS[name] if type(event.answer) is str else event.answer is not None


def _main() -> None:
    place, seconds, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    ask = ask_python(SETTINGS)
    _warm_up(ask, place, f"warm{seed}")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    end = float(sys.stdin.readline())
    sys.stdout.write(json.dumps(work(ask, place, seed, end, seconds)))


if __name__ == "__main__":
    _main()
