"""Files that are either the old ones or the new ones, never half written; reading without trust.

In: bytes and a path. Out: the file, written to a temporary name, synced and renamed, or a
StorageError with nothing changed; where the very last step fails, one that says the file is new.

`write_inside` and `unlink_inside` touch nothing through a link.

A file of another's making is read with `read_regular` (a path of one's own), `read_inside` (a name
inside a folder of another's making) or, where not all of it is wanted, `open_regular`: they open
regular files alone, never wait for a pipe or a device, and read no more than they may.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from patchdeploy.errors import IrregularFileError, StorageError
from patchdeploy.storage_temporary import new_file

_GROWTH_BYTES = 65_536
"""How much a file may grow while it is read; a file of /proc has length 0 and content."""
_PIECE_BYTES = 1 << 20
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


def hash_inside(folder: Path, name: str, limit_bytes: int) -> tuple[str, int]:
    """SHA-256 and length of what `read_inside` would give, without holding it in memory.

    Raises:
        IrregularFileError, OSError: as `read_inside`.
    """
    path, digest, length = Path(folder) / name, hashlib.sha256(), 0
    with open(_open_inside(Path(folder), name), "rb") as file:
        most = _check_length(file.fileno(), path, limit_bytes)
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            length += len(piece)
            _check_growth(length, most, path)
    return digest.hexdigest(), length


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
            raise irregular(path, _link_words(path, folder)) from error
        if error.errno == errno.ENXIO:  # a socket
            raise irregular(path, "not a regular file") from error
        raise
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    raise irregular(path, "not a regular file")


def _link_words(path: Path, folder: int | None) -> str:
    try:
        return f"a link to {os.readlink(path, dir_fd=folder)}"
    except OSError:
        return "reached by links that lead in a circle"


def _open_inside(folder: Path, name: str) -> int:
    if os.open not in os.supports_dir_fd:  # pragma: no cover - Windows
        for part in name.split("/")[:-1]:
            folder = folder / part
            if folder.is_symlink():
                raise irregular(folder, "a link")
        return open_regular(folder / name.rpartition("/")[2])
    handle = _enter(folder, name)
    try:
        return open_regular(Path(name.rpartition("/")[2]), folder=handle)
    finally:
        os.close(handle)


def _enter(folder: Path, name: str, makes: bool = False) -> int:
    """A handle of the folder that ``name`` lies in, reached from ``folder`` without a link."""
    handle = os.open(folder, _FOLDER)
    for part in name.split("/")[:-1]:
        try:
            if makes:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=handle)
            inner = os.open(part, _FOLDER | _NO_LINK, dir_fd=handle)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                found = f"below {part!r}, which is a link or no folder"
                raise irregular(folder / name, found) from error
            raise
        finally:
            os.close(handle)
        handle = inner
    return handle


def _read_handle(handle: int, path: Path, limit_bytes: int) -> bytes:
    """All that ``handle`` reads, which is closed."""
    with open(handle, "rb") as file:
        most = _check_length(handle, path, limit_bytes)
        data = file.read(most + 1)
    _check_growth(len(data), most, path)
    return data


def _check_length(handle: int, path: Path, limit_bytes: int) -> int:
    """The most bytes that may come of ``handle``."""
    length = os.fstat(handle).st_size
    if length > limit_bytes:
        raise irregular(path, f"{length} bytes long, and at most {limit_bytes} are allowed")
    return min(limit_bytes, length + _GROWTH_BYTES)


def _check_growth(length: int, most: int, path: Path) -> None:
    if length > most:
        raise irregular(path, f"longer than {most} bytes, and grows while it is read")


def irregular(path: Path, what: str) -> IrregularFileError:
    """The error where ``path`` is ``what`` and must be a regular file."""
    return IrregularFileError(
        f"{path} is {what}; it must be a regular file; put the file itself in its place"
    )


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that after any fault the file is the old one or the new one.

    Temporary name in the same directory, write, fsync, rename, fsync of the directory. The new
    file has the rights that the process's umask leaves, and none that the old one had not.

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
    with _unwritable(path, expected_bytes):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, _FOLDER)
    try:
        with _replacing(folder, path, expected_bytes) as file:
            yield file
    finally:
        os.close(folder)


def write_inside(folder: Path, name: str, data: bytes) -> None:
    """`write_atomic` to ``folder``/``name`` where no part of ``name`` but the last may be a link.

    A link in the file's own place is replaced, not followed. Folders that are missing are made.

    Raises:
        IrregularFileError: a part of ``name`` is a link or no folder; nothing was written.
        StorageError: as `write_atomic`.
    """
    path = Path(folder) / name
    with _unwritable(path, len(data)):
        handle = _enter(Path(folder), name, makes=True)
    try:
        with _replacing(handle, path, len(data)) as file:
            file.write(data)
    finally:
        os.close(handle)


def check_inside(folder: Path, name: str) -> None:
    """Check that `write_inside` and `unlink_inside` would reach the place of ``name``.

    Raises:
        IrregularFileError: a part of ``name`` but the last is a link or no folder.
        OSError: the place cannot be looked at. A folder that is missing is none.
    """
    with suppress(FileNotFoundError):
        os.close(_enter(Path(folder), name))


def unlink_inside(folder: Path, name: str) -> None:
    """Remove ``folder``/``name`` if it is there; no part of ``name`` but the last may be a link.

    A link in the file's own place is removed, not what it leads to.

    Raises:
        IrregularFileError: a part of ``name`` is a link or no folder; nothing was removed.
        OSError: it cannot be removed.
    """
    with suppress(FileNotFoundError):
        handle = _enter(Path(folder), name)
        try:
            os.unlink(name.rpartition("/")[2], dir_fd=handle)
        finally:
            os.close(handle)


@contextmanager
def _replacing(folder: int, path: Path, expected_bytes: int) -> Iterator[BinaryIO]:
    """A file to write that takes the name of ``path`` in ``folder`` when the block ends well."""
    temporary: str | None = None
    try:
        with _unwritable(path, expected_bytes):
            descriptor, temporary = new_file(folder)
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                _keep_rights(descriptor, folder, path.name)
                os.fsync(descriptor)
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            temporary = None
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
    _sync_name(folder, path, expected_bytes)


@contextmanager
def _unwritable(path: Path, expected_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path} ({expected_bytes} bytes): {error.strerror or error}; "
            "free space or choose another place; what was there is unchanged"
        ) from error


def _keep_rights(handle: int, folder: int, name: str) -> None:
    """Take from the new file the rights that the old one of that name does not give."""
    with suppress(FileNotFoundError):
        old = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISREG(old.st_mode):
            new = stat.S_IMODE(os.fstat(handle).st_mode)
            os.fchmod(handle, new & stat.S_IMODE(old.st_mode))


def _sync_name(folder: int, path: Path, expected_bytes: int) -> None:
    """The last step of a file that has its name already: a fault here takes nothing back."""
    try:
        os.fsync(folder)
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
