"""One writer at a time: locks of files, which the kernel gives back however a process ends.

In: the path of a lock file. Out: a handle that holds it until it is closed, or a StorageError.

There are two kinds of lock, which do not see each other: flock, which Python's programs hold, and
record locks (fcntl), the only ones that a JVM has. Where a JVM may write, too, both are held.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from patchdeploy.errors import StorageError
from patchdeploy.storage import irregular

_LOG = logging.getLogger(__name__)
LOCK_SECONDS = 60.0
"""How long a writer waits for another one, by default."""
_LOOK_SECONDS = 0.005
_FLAGS = os.O_RDWR | os.O_CREAT
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY", "O_NOFOLLOW"):
    _FLAGS |= getattr(os, _flag, 0)  # each where the system has it
_NO_RECORD_LOCKS = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def open_lock(path: Path) -> int:
    """A handle of the lock file ``path``, made if need be; the caller closes it.

    flock needs a handle and no right to write, so whoever may open a lock file may hold it. Only
    those who may write its folder may open this one; rights that an older version gave are taken
    back.

    Raises:
        IrregularFileError: a link, a pipe, a device or a folder has the name.
        OSError: it cannot be opened.
    """
    try:
        handle = os.open(path, _FLAGS, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise irregular(path, "a link, or not a regular file") from error
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise irregular(path, "not a regular file")
        mode = _lock_mode(path.parent)
        if stat.S_IMODE(status.st_mode) != mode and hasattr(os, "fchmod"):
            with suppress(PermissionError):  # another writer's file: its owner sees to its mode
                os.fchmod(handle, mode)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock_mode(folder: Path) -> int:
    """Read and write for its owner, and for whoever else may write ``folder``."""
    writable = stat.S_IMODE(folder.stat().st_mode)
    return 0o600 | (0o060 if writable & 0o020 else 0) | (0o006 if writable & 0o002 else 0)


def hold_lock(
    handle: int, place: Path, seconds: float = LOCK_SECONDS, *, record: bool = False
) -> None:
    """Wait until no other open file holds ``handle``'s (flock), then hold it until it is closed.

    The kernel gives the lock back when the process ends, however that comes. Where the system has
    no flock nothing is held: a rename is one step all the same.

    Args:
        place: what is locked, for the error's message.
        record: hold a record lock of the whole file, too, always second, so that nobody waits for
            each other. Linux has some that belong to an open file (F_OFD_SETLK), and those are
            taken: an ordinary one is lost as soon as the process closes any handle of the file, as
            a thread does that has waited in vain. Other systems hold flock alone.

    Raises:
        StorageError: another one held it for ``seconds``; nothing was written.
        OSError: the file cannot be locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    end = time.monotonic() + seconds
    for take in (_flock, _lock_record) if record else (_flock,):
        while not take(fcntl, handle, place):
            if time.monotonic() >= end:
                raise StorageError(
                    f"another process has held {place} for {seconds:g} seconds; one at a time "
                    "writes there; let it end, or end it, and try again; nothing was written"
                )
            time.sleep(_LOOK_SECONDS)


def _flock(fcntl: Any, handle: int, place: Path) -> bool:
    """Whether it is held now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_record(fcntl: Any, handle: int, place: Path) -> bool:
    """Whether it is held now, or cannot be held here at all."""
    if sys.platform != "linux":
        return True
    # struct flock of Linux: type, whence, start, length (0: to the end), process (must be 0).
    whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, whole)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_RECORD_LOCKS:
            raise
        _LOG.info("%s: no record lock here (%s); keep other languages out", place, error.strerror)
    return True
