"""Files that are either the old ones or the new ones, never half written; reading without trust.

In: bytes and a path. Out: the file, written to a temporary name, synced and renamed, or a
StorageError with nothing changed; where the very last step fails, one that says the file is new.

A file of another's making is read with `read_regular` (a path of one's own), `read_inside` (a name
inside a folder of another's making) or, where not all of it is wanted, `open_regular`: they open
regular files alone, never wait for a pipe or a device, and read no more than they may.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from patchdeploy.errors import IrregularFileError, StorageError

LOCK_SECONDS = 60.0
"""How long a writer waits for another one, by default."""
_LOOK_SECONDS = 0.005
_GROWTH_BYTES = 65_536
"""How much a file may grow while it is read; a file of /proc has length 0 and content."""
_READ = os.O_RDONLY
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):  # each where the system has it
    _READ |= getattr(os, _flag, 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)


def sha256_hex(data: bytes | memoryview) -> str:
    """SHA-256 of ``data``, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def read_regular(path: Path, limit_bytes: int, *, follow: bool = False) -> bytes:
    """The whole of a regular file; its length is looked at before a byte of it is read.

    Use this for every file that another may have made. It never waits for a pipe or a device.

    Args:
        limit_bytes: the longest that the file may be.
        follow: ``path`` may be a link (a person's own path); what it leads to must be regular.

    Raises:
        IrregularFileError: a link, a pipe, a device, a folder, or a longer file.
        OSError: it is not there or cannot be read; the caller says what that means.
    """
    return _read_handle(open_regular(path, follow=follow), path, limit_bytes)


def read_inside(folder: Path, name: str, limit_bytes: int) -> bytes:
    """`read_regular` of ``folder``/``name`` where no part of ``name`` may be a link.

    ``folder`` itself may be reached by links: the caller named it. So nothing outside of it is
    opened, whatever the folder holds.

    Args:
        name: parts joined by "/", none of them "." or "..".

    Raises:
        IrregularFileError, OSError: as `read_regular`; also where a part is a link or no folder.
    """
    return _read_handle(_open_inside(Path(folder), name), Path(folder) / name, limit_bytes)


def open_regular(path: Path, *, follow: bool = False, folder: int | None = None) -> int:
    """A handle to read a regular file, opened without waiting; the caller closes it.

    Args:
        follow: ``path`` may be a link; what it leads to must be regular.
        folder: a handle of the folder that ``path`` is relative to.

    Raises:
        IrregularFileError: a link, a pipe, a device or a folder.
        OSError: it is not there or cannot be opened.
    """
    try:
        handle = os.open(path, _READ if follow else _READ | _NO_LINK, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _irregular(path, "a link, or reached by links in a circle") from error
        if error.errno == errno.ENXIO:  # a socket
            raise _irregular(path, "not a regular file") from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise _irregular(path, "not a regular file")


def _open_inside(folder: Path, name: str) -> int:
    *folders, last = name.split("/")
    if os.open not in os.supports_dir_fd:  # pragma: no cover - Windows
        for part in folders:
            folder = folder / part
            if folder.is_symlink():
                raise _irregular(folder, "a link")
        return open_regular(folder / last)
    handle = os.open(folder, _FOLDER)
    try:
        for part in folders:
            inner = _open_folder(part, handle, folder / name)
            os.close(handle)
            handle = inner
        return open_regular(Path(last), folder=handle)
    finally:
        os.close(handle)


def _open_folder(part: str, parent: int, place: Path) -> int:
    try:
        return os.open(part, _FOLDER | _NO_LINK, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise _irregular(place, f"below {part!r}, which is a link or no folder") from error
        raise


def _read_handle(handle: int, path: Path, limit_bytes: int) -> bytes:
    """All that ``handle`` reads, which is closed."""
    with os.fdopen(handle, "rb") as file:
        length = os.fstat(handle).st_size
        if length > limit_bytes:
            raise _irregular(path, f"{length} bytes long, and at most {limit_bytes} are allowed")
        most = min(limit_bytes, length + _GROWTH_BYTES)
        data = file.read(most + 1)
    if len(data) > most:
        raise _irregular(path, f"longer than {most} bytes, and grows while it is read")
    return data


def _irregular(path: Path, what: str) -> IrregularFileError:
    return IrregularFileError(
        f"{path} is {what}; it must be a regular file; put the file itself in its place"
    )


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


def open_lock(path: Path) -> int:
    """A handle of the lock file ``path``, made if need be; the caller closes it.

    flock needs a handle and no right to write, so whoever may open a lock file may hold it. Only
    those who may write its folder may open this one; rights that an older version gave are taken
    back.

    Raises:
        IrregularFileError: a link, a pipe, a device or a folder has the name.
        OSError: it cannot be opened.
    """
    flags = _READ | os.O_RDWR | os.O_CREAT | _NO_LINK  # O_RDONLY, in _READ, is 0
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _irregular(path, "a link, or not a regular file") from error
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _irregular(path, "not a regular file")
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
