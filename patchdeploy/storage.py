"""Files that are either the old ones or the new ones, never half written.

In: bytes and a path. Out: the file, written to a temporary name, synced and renamed, or a
StorageError with nothing changed; where the very last step fails, one that says the file is new.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from patchdeploy.errors import StorageError

LOCK_SECONDS = 60.0
"""How long a writer waits for another one, by default."""
_LOOK_SECONDS = 0.005


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of ``data``, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that after any fault the file is the old one or the new one.

    Temporary name in the same directory, write, fsync, rename, fsync of the directory.

    Raises:
        StorageError: the disk is full or the place cannot be written; ``path`` is as it was. Or
            the folder cannot be synced; then ``path`` is the new file, and the message says so.
    """
    with open_atomic(path, len(data)) as file:
        file.write(data)


@contextmanager
def open_atomic(path: Path, expected_bytes: int) -> Iterator[BinaryIO]:
    """A file to write piece by piece; it gets its name, ``path``, when the block ends well.

    Args:
        expected_bytes: how many will be written, for the error's message.

    Raises:
        StorageError: as `write_atomic`. Any other error of the block passes through; ``path`` is
            then as it was, too.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({expected_bytes} bytes): {error.strerror or error}; "
            "free space or choose another place; what was there is unchanged"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    _sync_name(path, expected_bytes)


def _sync_name(path: Path, expected_bytes: int) -> None:
    """The last step of a file that has its name already: a fault here takes nothing back."""
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"wrote {path} ({expected_bytes} bytes), but its folder cannot be synced: "
            f"{error.strerror or error}; the new content stands, but may not survive a loss of "
            "power; check the disk and write it again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Return when the names in ``folder`` are on the disk.

    Raises:
        OSError: they may not be.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold_lock(handle: int, place: Path, seconds: float = LOCK_SECONDS) -> None:
    """Wait until no other open file holds ``handle``'s (flock), then hold it until it is closed.

    The kernel gives the lock back when the process ends, however that comes. Where the system has
    no flock nothing is held: a rename is one step all the same.

    Args:
        place: what is locked, for the error's message.

    Raises:
        StorageError: another one held it for ``seconds``; nothing was written.
        OSError: the file cannot be locked.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= end:
                raise StorageError(
                    f"another process has held {place} for {seconds:g} seconds; one at a time "
                    "writes there; let it end, or end it, and try again; nothing was written"
                ) from error
            time.sleep(_LOOK_SECONDS)
        else:
            return
