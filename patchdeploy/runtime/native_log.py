"""What a runtime's native code writes to standard error, without the line that says nothing.

LiteRT writes "INFO: Created TensorFlow Lite XNNPACK delegate for CPU." once in a process, straight
to file descriptor 2, and its package has no way to ask it not to. In: a block that makes the first
interpreter. Out: the same block; all else that was written meanwhile follows when it ends.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

DROPPED = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."

_lock = Lock()
_seen = False


@contextmanager
def without_greeting() -> Iterator[None]:
    """A block whose `DROPPED` line is not shown; later blocks of the process are left alone."""
    global _seen
    with _lock:
        first, _seen = not _seen, True
    kept = _redirect() if first else None
    try:
        yield
    finally:
        if kept is not None:
            _restore(*kept)


def _redirect() -> tuple[int, int] | None:
    """Descriptor 2 as it was, and the file that it leads to now; None where there is none."""
    try:
        sys.stderr.flush()
        before = os.dup(2)
    except (OSError, ValueError, AttributeError):
        return None
    handle, name = tempfile.mkstemp()
    Path(name).unlink()
    os.dup2(handle, 2)
    return before, handle


def _restore(before: int, handle: int) -> None:
    os.dup2(before, 2)
    os.lseek(handle, 0, os.SEEK_SET)
    with os.fdopen(handle, "rb") as file:
        for line in file:
            if line.rstrip() != DROPPED:
                os.write(before, line)
    os.close(before)
