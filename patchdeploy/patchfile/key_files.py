"""The files of keys: a private one that only its owner reads, and one writer of a list at a time.

In: bytes and paths. Out: files that are whole and on the disk, or a typed error and no file.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from patchdeploy.errors import IrregularFileError, PatchKeyError, StorageError
from patchdeploy.storage import open_regular, sync_folder
from patchdeploy.storage_locks import LOCK_SECONDS, hold_lock, open_lock

MAX_FILE_BYTES = 65_536
_PEM_START = b"-----BEGIN "
_FOLDER_LOCK = ".patchdeploy-lock"


def write_private(path: Path, data: bytes) -> None:
    """A new file of mode 0600, on the disk together with its name.

    Raises:
        StorageError: there is such a file already, which stays as it is, or it cannot be written;
            then, as after any other fault, there is none.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write key file {path}: {error.strerror or error}; a key is never overwritten; "
        "choose a new name in a folder that is there and can be written"
    )


def read_private(path: Path) -> bytes:
    """The bytes of one regular file whose mode is checked after it is open.

    Raises:
        PatchKeyError: others can read or write it, it is longer than a key, or no regular file.
        StorageError: it is not there or cannot be read.
    """
    try:
        handle = open_regular(path, follow=True)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(handle)
            data = file.read(MAX_FILE_BYTES + 1)
    except IrregularFileError as error:
        raise PatchKeyError(f"key file {error}") from error
    except OSError as error:
        raise StorageError(
            f"cannot read key file {path}: {error.strerror or error}; name a file that is there "
            "and that you own"
        ) from error
    others = stat.S_IMODE(status.st_mode) & 0o077
    if others:
        raise PatchKeyError(
            f"key file {path} has mode {stat.S_IMODE(status.st_mode):04o}; group and others must "
            "have no access to it; if nobody has read it, chmod 600, else make a new key"
        )
    if len(data) > MAX_FILE_BYTES:
        raise PatchKeyError(
            f"key file {path} has more than {MAX_FILE_BYTES} bytes; it must be one PEM key; "
            "make one with patchdeploy keys new"
        )
    return data


def is_pem(path: Path) -> bool:
    """Whether a regular file begins as a PEM file does, whatever its name; False if unreadable."""
    try:
        handle = open_regular(path, follow=True)
    except (OSError, IrregularFileError):
        return False
    with os.fdopen(handle, "rb") as file, suppress(OSError):
        return file.read(len(_PEM_START)) == _PEM_START
    return False


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """One process at a time that changes a list or a file in ``folder``; waits for the others.

    The lock is a file that only those who may write the folder can open,
    `storage_locks.open_lock`; it is there while it is held and gone at the end.

    Raises:
        StorageError: the folder is not there or cannot be written, or another one holds it too
            long.
    """
    path = folder / _FOLDER_LOCK
    handle = _hold_named(path, folder)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _hold_named(path: Path, folder: Path) -> int:
    """A handle of ``path``, locked, while ``path`` is still its name."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            handle = open_lock(path)
        except (OSError, IrregularFileError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(
                f"cannot write into {folder}: {reason}; it must be a folder that is there and that "
                "you can read and write; make it, or correct the path"
            ) from error
        try:
            hold_lock(handle, folder, max(0.0, end - time.monotonic()))
            if os.fstat(handle).st_nlink:
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one that held it has removed it meanwhile
