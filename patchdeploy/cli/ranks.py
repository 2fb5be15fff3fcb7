"""An error that all ranks of a run have is said once, by the first.

In: what a rank that fails would say. Out: said or not. Ranks that torchrun has started read the
same files and fail for the same reason; a rank says it itself only where the first has not said
the same. They tell each other through the key-value store that torchrun keeps for its run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

WAIT_SECONDS = 10.0
"""How long a rank waits for the first to say something: on a busy machine one rank imports torch
seconds later than another."""
CONNECT_SECONDS = 5.0


def say_once(text: str, say: Callable[[], None]) -> None:
    """Call ``say``, unless this is a later rank and the first one has said ``text``.

    Outside torchrun, or where its store is not reached, every process speaks for itself. The first
    rank speaks before it tells so, and a later one ends after that: torchrun ends all others as
    soon as one has ended, and must not end the first before it has spoken. What begins with a
    rank's own number no other says, and the first may be the one that has died: no waiting then.
    """
    rank = _rank_under_torchrun()
    if rank is None:
        say()
    elif rank == 0:
        say()
        _tell(text)
    elif text.startswith(f"rank {rank} of {os.environ['WORLD_SIZE']}: ") or _told() != text:
        say()


def _rank_under_torchrun() -> int | None:
    """None for a process alone, or started by other means, whose ranks have no store in common
    that outlives them."""
    environment = os.environ
    rank, port = environment.get("RANK", ""), environment.get("MASTER_PORT", "")
    several = environment.get("WORLD_SIZE", "1") not in ("", "1")
    kept = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    good = several and kept and rank.isdecimal() and port.isdecimal()
    return int(rank) if good and "MASTER_ADDR" in environment else None


def _key() -> str:
    """Of this start of the ranks: torchrun may start them again."""
    return f"patchdeploy/error/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _tell(text: str) -> None:
    try:
        _open_store().set(_key(), text)
    except (ImportError, RuntimeError):
        return  # then every rank speaks for itself


def _told() -> str | None:
    """What the first rank has said; None where it has said nothing in time."""
    try:
        store = _open_store()
        store.wait([_key()], timedelta(seconds=WAIT_SECONDS))
        return str(store.get(_key()).decode())
    except (ImportError, RuntimeError):
        return None


def _open_store() -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=CONNECT_SECONDS),
    )
