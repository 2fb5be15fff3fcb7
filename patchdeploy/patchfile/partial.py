"""The file of a download that is not finished yet: an ETag, a newline, the bytes so far.

In: a folder and an address. Out: a `PartialFile`, held by one process at a time. The ETag and the
bytes lie in one file, so the one can never belong to another download than the other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from patchdeploy.errors import DownloadError, StorageError
from patchdeploy.storage import sha256_hex

PARTIAL_SUFFIX = ".part"
_MAX_ETAG_BYTES = 256


@dataclass
class PartialFile:
    """An open file with its lock.

    Attributes:
        path: its name.
        etag: the server's name for the whole file; None where it gave none that is of use.
        body_bytes: how much of the whole file is here.
    """

    path: Path
    etag: str | None
    body_bytes: int
    _handle: int
    _is_gone: bool = False

    def restart(self, etag: str | None) -> None:
        """Throw away what is here; what follows belongs to ``etag``."""
        with _disk(self.path):
            os.ftruncate(self._handle, 0)
            self._write(f"{etag or ''}\n".encode(), 0)
        self.etag, self.body_bytes = etag, 0

    def append(self, chunk: bytes) -> None:
        """Write ``chunk`` behind what is here."""
        with _disk(self.path):
            self._write(chunk, self._body_at + self.body_bytes)
        self.body_bytes += len(chunk)

    def finish(self) -> bytes:
        """The whole body; the file is gone."""
        with _disk(self.path):
            data = os.pread(self._handle, self.body_bytes, self._body_at)
        self.discard()
        if len(data) != self.body_bytes:
            raise StorageError(
                f"{self.path} gave back {len(data)} of {self.body_bytes} bytes; the disk must keep "
                "what it is given; download the file again"
            )
        return data

    def discard(self) -> None:
        """Remove the file's name, once: the next download may have taken it since."""
        if not self._is_gone:
            with _disk(self.path):
                self.path.unlink(missing_ok=True)
            self._is_gone = True

    @property
    def _body_at(self) -> int:
        return len(self.etag or "") + 1

    def _write(self, data: bytes, place: int) -> None:
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._handle, rest, place)
            rest, place = rest[written:], place + written


@contextmanager
def open_partial(folder: Path, url: str) -> Iterator[PartialFile]:
    """The part of a download of ``url``, empty or as an earlier one left it.

    At the end a part that nobody can go on with (no ETag, or no byte) is removed.

    Raises:
        DownloadError: another process holds it.
        StorageError: the folder cannot be written, or the name is a link or no regular file.
    """
    path = folder / f"{sha256_hex(url.encode('utf-8', 'surrogatepass'))[:32]}{PARTIAL_SUFFIX}"
    with _disk(path):
        folder.mkdir(exist_ok=True)
        handle = _open_locked(path)
    try:
        part = _read_start(path, handle)
        try:
            yield part
        finally:
            if part.etag is None or part.body_bytes == 0:
                part.discard()
    finally:
        os.close(handle)


def remove_partials(folder: Path) -> tuple[str, ...]:
    """Remove every part that no process holds; the names that are gone, sorted.

    Raises:
        StorageError: the disk failed.
    """
    removed = []
    with _disk(folder):
        for path in sorted(folder.glob(f"*{PARTIAL_SUFFIX}")):
            try:
                handle = _open_locked(path)
            except DownloadError:  # in use
                continue
            path.unlink(missing_ok=True)
            os.close(handle)
            removed.append(path.name)
    return tuple(removed)


def _open_locked(path: Path) -> int:
    """A handle whose file still has its name once the lock is held."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    while True:
        handle = os.open(path, flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            if status.st_nlink:
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise DownloadError(
                f"another process downloads into {path}; one may do so at a time; wait for it"
            ) from error
        except OSError:
            os.close(handle)
            raise
        os.close(handle)  # a download that ended meanwhile has removed it


def _read_start(path: Path, handle: int) -> PartialFile:
    with _disk(path):
        length = os.fstat(handle).st_size
        etag, newline, _ = os.pread(handle, _MAX_ETAG_BYTES, 0).partition(b"\n")
    if not newline or not etag or not etag.isascii():
        return PartialFile(path, None, 0, handle)
    return PartialFile(path, etag.decode(), length - len(etag) - 1, handle)


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """A block whose `OSError` becomes a `StorageError`."""
    try:
        yield
    except (StorageError, DownloadError):
        raise
    except OSError as error:
        raise StorageError(
            f"cannot keep a download in {path}: {error.strerror or error}; free space, correct the "
            "folder's rights or choose another; nothing was installed"
        ) from error
