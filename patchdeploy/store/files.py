"""The few file operations that a patch store is built from, and the two ways they are joined.

In: paths inside one folder, and bytes. Out: bytes, or an `OSError` that the store turns into a
typed error. `DiskFiles` is the real disk; the tests put a simulated one in its place, which loses,
tears and reorders what was not synced, fails the k-th operation, or ends the process there.

Links are never followed and nothing but a regular file is read, so a name in the folder cannot
lead out of it. No operation writes into a file that already has its final name: a reader may have
it mapped.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from patchdeploy.errors import IntegrityError, IrregularFileError
from patchdeploy.storage import read_regular
from patchdeploy.storage_locks import LOCK_SECONDS, hold_lock, open_lock

TEMPORARY_SUFFIX = ".tmp"


class Files(Protocol):
    """What a store asks of a disk. Every operation may raise `OSError`."""

    def make_folder(self, folder: Path) -> None:
        """Make ``folder`` unless it is there; its parent must exist."""

    def lock(self, path: Path) -> AbstractContextManager[None]:
        """Wait until no other process or thread holds ``path``, then hold it for the block.

        Raises:
            StorageError: another one held it for too long.
        """

    def names(self, folder: Path) -> list[str]:
        """The names in ``folder``, in any order."""

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """The whole of a regular file of at most ``limit_bytes``.

        Raises:
            IntegrityError: a link, another kind of file, or a longer one.
        """

    def create(self, path: Path) -> int:
        """Make a new file and return a handle to write it; the name must be free."""

    def write(self, handle: int, data: memoryview) -> int:
        """Write some of ``data``, at least one byte; return how many bytes."""

    def sync(self, handle: int) -> None:
        """Return when what was written is on the disk."""

    def close(self, handle: int) -> None:
        """End the use of a handle."""

    def rename(self, old: Path, new: Path) -> None:
        """Give ``old`` the name ``new``; the file that had that name loses it, in one step."""

    def unlink(self, path: Path) -> None:
        """Remove a name."""

    def sync_folder(self, folder: Path) -> None:
        """Return when the names in ``folder`` are on the disk."""


@dataclass(frozen=True)
class DiskFiles:
    """The real disk, by POSIX calls.

    Attributes:
        lock_seconds: how long a writer waits for another one.
    """

    lock_seconds: float = LOCK_SECONDS

    def make_folder(self, folder: Path) -> None:
        """Make ``folder`` unless it is there."""
        folder.mkdir(exist_ok=True)

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        """Hold ``path`` against Python and JVMs; see `storage_locks.open_lock` for who may."""
        try:
            handle = open_lock(path)
        except IrregularFileError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        try:
            hold_lock(handle, path, self.lock_seconds, record=True)
            yield
        finally:
            os.close(handle)

    def names(self, folder: Path) -> list[str]:
        """The names in ``folder``."""
        return os.listdir(folder)  # noqa: PTH208 - names, not paths

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """The whole of a regular file; see `storage.read_regular`."""
        try:
            return read_regular(path, limit_bytes)
        except IrregularFileError as error:
            found = str(error).partition("; ")[0]
            raise IntegrityError(
                f"{found}; a store holds regular files that patchdeploy wrote; remove it and "
                "install the patch again"
            ) from error

    def create(self, path: Path) -> int:
        """A new file, mode 0644."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(path, flags, 0o644)

    def write(self, handle: int, data: memoryview) -> int:
        """One write."""
        return os.write(handle, data)

    def sync(self, handle: int) -> None:
        """fsync."""
        os.fsync(handle)

    def close(self, handle: int) -> None:
        """close."""
        os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """rename."""
        old.replace(new)

    def unlink(self, path: Path) -> None:
        """unlink."""
        path.unlink()

    def sync_folder(self, folder: Path) -> None:
        """fsync of the directory."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def publish(files: Files, folder: Path, name: str, data: bytes) -> None:
    """Put ``data`` under ``name``: a new file, synced, then renamed in one step.

    The new name is on the disk only after the next `Files.sync_folder`.

    Raises:
        OSError: nothing changed under ``name``.
    """
    temporary = folder / f"{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        _write_new(files, temporary, data)
        files.rename(temporary, folder / name)
    except OSError:
        with suppress(OSError):  # it may never have been made; clean_up removes what stays
            files.unlink(temporary)
        raise


def _write_new(files: Files, path: Path, data: bytes) -> None:
    """Write and sync a new file. A sync that fails is not tried again.

    After a failed fsync the kernel may forget the pages that it could not write, so a second one
    can succeed with nothing on the disk.
    """
    handle = files.create(path)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[files.write(handle, rest) :]
        files.sync(handle)
    finally:
        files.close(handle)
