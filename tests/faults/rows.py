"""The rows: what each fault is, what must come of it, and what tries it at full length.

A row may have several parts, each a function of (scale, folder, progress) that says what it tried
or raises. The store's rows come from tests/store/long_forms.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from case_folders import ROOT
from limits import measure_limits
from long_forms import LONG_FORMS, LongForm
from rows_bundles import try_documents, try_files, try_killed_writers
from rows_cascades import try_decisions, try_parts
from rows_container import try_bit_flips, try_lengths, try_signatures
from rows_engine import try_changed_bases, try_forks
from rows_foreign import try_checkpoints, try_keras, try_own
from rows_greedy import try_greedy
from rows_hostile import try_hostile
from rows_images import try_images
from rows_match import try_bases, try_places
from rows_misbehave import try_planted
from rows_revoked import try_revoked
from rows_service import try_service
from rows_sites import try_sites
from rows_state import try_state
from rows_values import try_values
from tried import Progress, Told, scaled

ENGINE_TESTS = "tests/runtime/test_engine_store.py"
INSTALLS = 1000

Attempt = Callable[[float, Path, Progress], Told]

SHARED = ("errors*.py", "storage*.py")
PATCHES = (*SHARED, "patchfile/*.py", "store/*.py", "runtime/self_test.py", "runtime/versions.py")
BUNDLES = (*SHARED, "documents.py", "flatbuffer.py", "slot*.py", "bundle/*.py", "runtime/*.py")
CASCADES = (*SHARED, "cascade/*.py", "patchfile/cascade_part.py", "patchfile/pa*.py")
IMAGES = (*SHARED, "data/*.py")
FOREIGN = (*SHARED, "documents.py", "named*.py", "base/*.py", "patch/*.py", "training/check*.py")
"""Of patchdeploy/, what a row is about: where these change, its result is of an earlier state."""


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        number: of the row in the list of faults; 21 is what checking costs.
        fault, expected: as the list has them.
        parts: name and function of each part.
        sources: patterns of the files that it is about.
    """

    number: int
    fault: str
    expected: str
    parts: tuple[tuple[str, Attempt], ...]
    sources: tuple[str, ...] = PATCHES


def _scaled(function: Callable[[float, Progress], Told]) -> Attempt:
    return lambda scale, folder, progress: function(scale, progress)


def _store(form: LongForm) -> Attempt:
    def attempt(scale: float, folder: Path, progress: Progress) -> Told:
        told = form.run(folder, scale)
        numbers = [int(one.replace(",", "")) for one in re.findall(r"\d[\d,]*", told)]
        count = sum(numbers[place] for place in COUNTED.get(form.row, (0,)))
        return Told(told, "as expected", count)

    return attempt


def _planted(runtime: str) -> Attempt:
    return lambda scale, folder, progress: try_planted(folder, runtime)


def _engine(scale: float, folder: Path, progress: Progress) -> Told:
    """Row 17 with a runtime: installs while two threads classify."""
    installs = max(4, scaled(INSTALLS, scale))
    command = [sys.executable, "-m", "pytest", "-q", "-k", "installs_under_inference"]
    command += ["-p", "no:cacheprovider", ENGINE_TESTS]
    environment = {**os.environ, "PATCHDEPLOY_FAULT_INSTALLS": str(installs)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "1 passed" in done.stdout, done.stdout[-3000:]
    return Told(
        f"{installs:,} installs, each with a refresh and a clean-up, while 2 threads classify with "
        "an Engine (LiteRT)",
        "every answer is, bit for bit, that of one installed version",
        installs,
    )


COUNTED = {7: (0, 3), 8: (), 12: (0, 2), 16: (0, 1)}
"""Which numbers in what a row of the store says are counts of faults; by default the first."""
STORE = {form.row: _store(form) for form in LONG_FORMS}


def _row(
    number: int,
    fault: str,
    expected: str,
    sources: tuple[str, ...] = PATCHES,
    **parts: Attempt,
) -> Row:
    return Row(number, fault, expected, tuple(parts.items()), sources)


ROWS = (
    _row(1, "bit flip", "typed error", mutants=_scaled(try_bit_flips)),
    _row(2, "truncated, extended", "typed error", lengths=_scaled(try_lengths)),
    _row(
        3,
        "hostile header or payload, validly signed",
        "typed error or a sound patch, in bounded time and memory",
        mutants=_scaled(try_hostile),
        greedy=_scaled(try_greedy),
    ),
    _row(
        4,
        "wrong key, duplicate key, short coverage, leaked key",
        "typed error; a revoked key leaves nothing",
        keys=_scaled(try_signatures),
        store=STORE[4],
        engine=try_revoked,
    ),
    _row(5, "wrong base", "typed error", pairs=_scaled(try_bases)),
    _row(6, "wrong task, runtime, engine", "typed error", pairs=_scaled(try_places)),
    _row(7, "older, replayed", "typed error; the same file is a no-op", store=STORE[7]),
    _row(8, "expired", "refused on install; the active patch still runs", store=STORE[8]),
    _row(
        9,
        "NaN, infinity, zero or negative scale, int8 -128",
        "typed error",
        values=_scaled(try_values),
    ),
    _row(10, "overlap, hole, overflow, another slot", "typed error", sites=_scaled(try_sites)),
    _row(11, "path tricks", "impossible: file names are hashes", store=STORE[11]),
    _row(12, "process killed", "exactly old or new", store=STORE[12]),
    _row(13, "power lost", "old or new; new once install returned", store=STORE[13]),
    _row(14, "ENOSPC, EIO, failed fsync", "typed error, old stays", store=STORE[14]),
    _row(
        15,
        "STATE corrupt or missing",
        "the same state from its copy, else what ships, and floors",
        store=STORE[15],
        engine=lambda scale, folder, progress: try_state(folder, progress),
    ),
    _row(
        16, "file swapped after the check", "the checked bytes are the used bytes", store=STORE[16]
    ),
    _row(
        17,
        "update while in use",
        "the running model is unaffected",
        store=STORE[17],
        engine=_engine,
    ),
    _row(
        18,
        "loads but misbehaves",
        "self-test fails, previous kept",
        litert=_planted("litert"),
        onnxruntime=_planted("onnxruntime"),
    ),
    _row(19, "concurrent installers", "one wins", store=STORE[19]),
    _row(20, "the harness itself", "every planted bug is caught", store=STORE[20]),
    _row(
        21,
        "what checking costs",
        "at most 50 ms per MiB; at most 16 MiB beside the file",
        limits=_scaled(measure_limits),
    ),
    _row(
        22,
        "hostile bundle; killed writer of one",
        "typed error before use; what is left goes with the next writer",
        BUNDLES,
        documents=_scaled(try_documents),
        files=try_files,
        writers=try_killed_writers,
    ),
    _row(
        23,
        "base changed with its manifest; fork",
        "no score; an error or the right answer, never a hang",
        BUNDLES,
        bases=try_changed_bases,
        forks=try_forks,
    ),
    _row(
        24, "hostile image", "pixels or a typed error, in bounded time", IMAGES, images=try_images
    ),
    _row(
        25,
        "greedy client; redirect, address or proxy that is none",
        "others are answered; typed error",
        service=try_service,
    ),
    _row(
        26,
        "a checkpoint, Keras file, trained patch or network of another's making, or damaged",
        "ours: typed error; others: typed error or a network, nothing run",
        FOREIGN,
        own=_scaled(try_own),
        checkpoints=_scaled(try_checkpoints),
        keras=_scaled(try_keras),
    ),
    _row(
        27,
        "cascade of wrong bytes, validly signed; decisions",
        "typed error or the cascade that the page says; the same stage everywhere",
        CASCADES,
        parts=_scaled(try_parts),
        decisions=_scaled(try_decisions),
    ),
)
