"""The long forms of the store's fault rows: what each tried, in a sentence.

In: an empty folder on a real disk. Out: a sentence, or the error of the proof that failed. The
short forms are the tests beside this file. From the repository's root:

    python tests/store/long_forms.py <empty folder> [row ...]
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from planted_bugs import BUGS, prove_bug  # noqa: E402
from proof_keys import prove_reset, prove_revocation, prove_shipped_floor  # noqa: E402
from proof_kill import can_trace, prove_kills, prove_kills_by_strace, prove_one_wins  # noqa: E402
from proof_power import prove_disk_faults, prove_power_loss  # noqa: E402
from proof_rules import (  # noqa: E402
    prove_expiry,
    prove_hostile_names,
    prove_orders,
    prove_random_histories,
    prove_state_damage,
)
from proof_use import prove_swap_races, prove_swaps, prove_updates_in_use  # noqa: E402


@dataclass(frozen=True)
class LongForm:
    """``run`` a row of patch-safety.md in a folder of its own, at a scale from 0 to 1."""

    row: int
    fault: str
    run: Callable[[Path, float], str]


def _scaled(count: int, scale: float) -> int:
    return max(1, round(count * scale))


def _orders(folder: Path, scale: float) -> str:
    steps = prove_random_histories(histories=_scaled(500, scale))
    return (
        f"{prove_orders()} installs in all 120 orders of 5 versions; {steps} steps of random "
        "histories agreed with a model"
    )


def _expiry(folder: Path, scale: float) -> str:
    prove_expiry()
    return "clock before, at, after the time of expiry, and set back"


def _kills(folder: Path, scale: float) -> str:
    (folder / "layer").mkdir()
    (folder / "calls").mkdir()
    layer, reason = prove_kills(folder / "layer"), can_trace()
    if reason is not None:
        return f"{layer.count} kills, one before each file operation; NOT by system call: {reason}"
    calls = prove_kills_by_strace(folder / "calls")
    return (
        f"{layer.count} kills, one before each file operation, {layer.new} left the new state; "
        f"{calls.count} kills, one before each system call (strace), {calls.new} left the new "
        f"state; {calls.missed} calls were not made again"
    )


def _power(folder: Path, scale: float) -> str:
    crashes = prove_power_loss(states=_scaled(10_000, scale))
    return f"{crashes.count} power losses, {len(crashes.states)} different states"


def _disk(folder: Path, scale: float) -> str:
    faults = prove_disk_faults(rounds=_scaled(20, scale))
    return (
        f"{faults.met} faults (EIO, ENOSPC; once, for good; at every operation), {faults.refused} "
        "ended in a typed error"
    )


def _damage(folder: Path, scale: float) -> str:
    count = prove_state_damage(masks=[1 << bit for bit in range(8)])
    return f"{count} damages: every bit and every length of STATE"


def _swaps(folder: Path, scale: float) -> str:
    (folder / "exact").mkdir()
    exact = prove_swaps(folder / "exact")
    races = prove_swap_races(folder / "races", races=_scaled(1000, scale))
    return f"{exact} exact swaps; {races.good + races.refused} races, {races.refused} refused"


def _updates(folder: Path, scale: float) -> str:
    installs = _scaled(1000, scale)
    reads = prove_updates_in_use(folder / "store", installs=installs)
    return f"{installs} installs while {reads} reads; what readers held stayed bit for bit"


def _concurrent(folder: Path, scale: float) -> str:
    rounds = _scaled(100, scale)
    changed = prove_one_wins(folder, rounds=rounds)
    return (
        f"{rounds} rounds of 8 processes; {changed} of {8 * rounds} installs took effect, never "
        "two at once"
    )


def _bugs(folder: Path, scale: float) -> str:
    for number, bug in enumerate(BUGS):
        (folder / str(number)).mkdir()
        with pytest.MonkeyPatch.context() as patch:
            prove_bug(bug, folder / str(number), patch)
    return f"{len(BUGS)} planted bugs, each noticed by its proof's short form"


def _leaked(folder: Path, scale: float) -> str:
    count = prove_revocation()
    prove_shipped_floor()
    prove_reset()
    return (
        f"{count} stores in which a leaked key was used and then revoked: its patches do not run, "
        "its numbers hold no other back, and no older list brings it back"
    )


LONG_FORMS = (
    LongForm(4, "leaked key", _leaked),
    LongForm(7, "older, replayed", _orders),
    LongForm(8, "expired", _expiry),
    LongForm(
        11,
        "path tricks",
        lambda folder, scale: (
            f"{prove_hostile_names(folder)} hostile names and links, each three ways"
        ),
    ),
    LongForm(12, "process killed", _kills),
    LongForm(13, "power lost", _power),
    LongForm(14, "ENOSPC, EIO, failed fsync", _disk),
    LongForm(15, "STATE corrupt or missing", _damage),
    LongForm(16, "file swapped after the check", _swaps),
    LongForm(17, "update while in use", _updates),
    LongForm(19, "concurrent installers", _concurrent),
    LongForm(20, "the harness itself", _bugs),
)


def main(folder: Path, rows: set[int]) -> None:
    """Run the rows (none: all) and print a line for each."""
    logging.getLogger("patchdeploy.store").setLevel(logging.ERROR)
    for form in LONG_FORMS:
        if not rows or form.row in rows:
            start = time.perf_counter()
            place = Path(tempfile.mkdtemp(dir=folder, prefix=f"row-{form.row}-"))
            told = form.run(place, 1.0)
            seconds = time.perf_counter() - start
            print(f"row {form.row} {form.fault}: {told} ({seconds:.1f} s)", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), {int(row) for row in sys.argv[2:]})
