"""A disk that forgets what it was not told to keep, and one that fails on demand.

`SimulatedDisk` keeps two things apart: what programs see (the page cache) and what survives the
power (the durable state). Its rules are those that a journalling file system promises, and no
more:

- Written bytes survive after the file's sync. Before, any of its 32-byte sectors may be there or
  not, in any order; a missing one reads as zeros, or the file ends before it.
- A name that was made, renamed or removed survives after the folder's sync. Before, each such step
  may have happened or not, in any order. A rename is one step.
- After a sync of a file that failed, the cache shows the bytes and the disk has forgotten that it
  still has to write them (Linux, PostgreSQL's fsync of 2018): a second sync succeeds and does
  nothing.
- After a sync of the folder that failed, the next one that succeeds covers everything (the
  journal's own order).
"""

from __future__ import annotations

import errno
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from patchdeploy.errors import IntegrityError
from patchdeploy.store.files import Files

SECTOR_BYTES = 32
LARGEST_WRITE_BYTES = 300
"""A write takes no more, so that a file takes several and each can fail."""
PARENT = Path("/disk")
FOLDER = PARENT / "store"


@dataclass
class Inode:
    """One file: what programs see, what the disk has, and the sectors it still has to write."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class NameStep:
    """A name gets an inode (or loses it: None), and an old name goes away with that."""

    name: str | None
    inode: int | None
    gone: str | None = None


class SimulatedDisk:
    """One folder. ``after_step`` is called after each operation that changes anything."""

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {}
        self.seen: dict[str, int] = {}
        self.durable: dict[str, int] = {}
        self.pending: list[NameStep] = []
        self.folder_seen = False
        self.folder_durable = False
        self.after_step: Callable[[], None] = lambda: None

    def crashed(self, rng: random.Random) -> SimulatedDisk:
        """What is there when the power comes back; one of the many ways it can be."""
        after = SimulatedDisk()
        if not (self.folder_durable or (self.folder_seen and rng.random() < 0.5)):
            return after
        names = dict(self.durable)
        share = rng.choice((0.0, rng.random(), 1.0))
        for step in self.pending:
            if rng.random() < share:
                _apply(step, names)
        after.folder_seen = after.folder_durable = True
        for number in set(names.values()):
            content = _surviving(self.inodes[number], rng)
            after.inodes[number] = Inode(bytearray(content), content)
        after.seen, after.durable = dict(names), dict(names)
        return after

    def image(self) -> tuple[tuple[str, bytes], ...]:
        """The files, to tell states apart; temporary files go by their content alone."""
        return tuple(
            sorted(
                ("tmp" if name.endswith(".tmp") else name, bytes(self.inodes[number].seen))
                for name, number in self.seen.items()
            )
        )

    def copied(self) -> SimulatedDisk:
        """The same disk, apart."""
        other = SimulatedDisk()
        other.inodes = {
            number: Inode(bytearray(inode.seen), inode.durable, set(inode.dirty))
            for number, inode in self.inodes.items()
        }
        other.seen, other.durable = dict(self.seen), dict(self.durable)
        other.pending = list(self.pending)
        other.folder_seen, other.folder_durable = self.folder_seen, self.folder_durable
        return other

    def keep_everything(self) -> None:
        """All that is seen is durable."""
        self.folder_durable = self.folder_seen
        self.durable, self.pending = dict(self.seen), []
        for inode in self.inodes.values():
            inode.durable, inode.dirty = bytes(inode.seen), set()

    def fail_sync(self, handle: int) -> None:
        """What a sync that fails leaves: clean pages that are not on the disk."""
        self.inodes[handle].dirty.clear()

    # Files

    def make_folder(self, folder: Path) -> None:
        if not self.folder_seen:
            self.folder_seen = True
            self.after_step()

    @contextmanager
    def lock(self, path: Path) -> Iterator[None]:
        yield

    def names(self, folder: Path) -> list[str]:
        if not self.folder_seen:
            raise FileNotFoundError(errno.ENOENT, "no folder")
        return list(self.seen)

    def read(self, path: Path, limit_bytes: int) -> bytes:
        if path.name not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no file")
        data = bytes(self.inodes[self.seen[path.name]].seen)
        if len(data) > limit_bytes:
            raise IntegrityError(f"{path} is too long; keep to {limit_bytes} bytes; shorten it")
        return data

    def create(self, path: Path) -> int:
        if path.name in self.seen:
            raise FileExistsError(errno.EEXIST, "there")
        number = max(self.inodes, default=0) + 1
        self.inodes[number] = Inode()
        self._step(NameStep(path.name, number))
        return number

    def write(self, handle: int, data: memoryview) -> int:
        inode, part = self.inodes[handle], data[:LARGEST_WRITE_BYTES]
        first = len(inode.seen)
        inode.seen += part
        inode.dirty |= set(range(first // SECTOR_BYTES, -(-len(inode.seen) // SECTOR_BYTES)))
        self.after_step()
        return len(part)

    def sync(self, handle: int) -> None:
        inode = self.inodes[handle]
        inode.durable = _with_sectors(inode, inode.dirty, len(inode.seen))
        inode.dirty.clear()
        self.after_step()

    def close(self, handle: int) -> None:
        pass

    def rename(self, old: Path, new: Path) -> None:
        self._step(NameStep(new.name, self.seen[old.name], gone=old.name))

    def unlink(self, path: Path) -> None:
        if path.name not in self.seen:
            raise FileNotFoundError(errno.ENOENT, "no file")
        self._step(NameStep(None, None, gone=path.name))

    def sync_folder(self, folder: Path) -> None:
        if folder == PARENT:
            self.folder_durable = self.folder_seen
        else:
            self.durable, self.pending = dict(self.seen), []
        self.after_step()

    def _step(self, step: NameStep) -> None:
        _apply(step, self.seen)
        self.pending.append(step)
        self.after_step()


def _apply(step: NameStep, names: dict[str, int]) -> None:
    if step.gone is not None:
        names.pop(step.gone, None)
    if step.name is not None and step.inode is not None:
        names[step.name] = step.inode


def _with_sectors(inode: Inode, sectors: set[int], length: int) -> bytes:
    """The durable bytes with these sectors written, cut or filled with zeros to ``length``."""
    data = bytearray(inode.durable[:length].ljust(length, b"\0"))
    for sector in sectors:
        run = slice(sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, length))
        data[run] = inode.seen[run]
    return bytes(data)


def _surviving(inode: Inode, rng: random.Random) -> bytes:
    if not inode.dirty:
        return inode.durable
    share = rng.choice((0.0, rng.random(), 1.0))
    kept = {sector for sector in inode.dirty if rng.random() < share}
    lengths = (len(inode.durable), len(inode.seen), rng.randint(0, len(inode.seen)))
    return _with_sectors(inode, kept, max(len(inode.durable), rng.choice(lengths)))


Kind = Literal["once", "for good"]


class FaultyFiles:
    """The operations of ``files``, counted; the k-th fails, or every one from the k-th on.

    A write that fails has written half of its bytes; a sync that fails has forgotten them.
    """

    def __init__(
        self, files: Files, at: int | None = None, kind: Kind = "once", code: int = errno.EIO
    ) -> None:
        self.files, self.at, self.kind, self.code = files, at, kind, code
        self.count = 0

    def _fails(self) -> bool:
        self.count += 1
        late = self.at is not None and self.count > self.at
        return self.count == self.at or (late and self.kind == "for good")

    def _step(self) -> None:
        if self._fails():
            raise OSError(self.code, os.strerror(self.code))

    def make_folder(self, folder: Path) -> None:
        self._step()
        self.files.make_folder(folder)

    def lock(self, path: Path) -> AbstractContextManager[None]:
        self._step()
        return self.files.lock(path)

    def names(self, folder: Path) -> list[str]:
        self._step()
        return self.files.names(folder)

    def read(self, path: Path, limit_bytes: int) -> bytes:
        self._step()
        return self.files.read(path, limit_bytes)

    def create(self, path: Path) -> int:
        self._step()
        return self.files.create(path)

    def write(self, handle: int, data: memoryview) -> int:
        if self._fails():
            if len(data) > 1:
                self.files.write(handle, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))
        return self.files.write(handle, data)

    def sync(self, handle: int) -> None:
        if self._fails():
            if isinstance(self.files, SimulatedDisk):
                self.files.fail_sync(handle)
            raise OSError(self.code, os.strerror(self.code))
        self.files.sync(handle)

    def close(self, handle: int) -> None:
        self.files.close(handle)
        self._step()

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        self.files.rename(old, new)

    def unlink(self, path: Path) -> None:
        self._step()
        self.files.unlink(path)

    def sync_folder(self, folder: Path) -> None:
        self._step()
        self.files.sync_folder(folder)


class KillingFiles(FaultyFiles):
    """The process ends before the k-th operation: no `finally`, no buffer is flushed."""

    def _fails(self) -> bool:
        if super()._fails():
            os.kill(os.getpid(), signal.SIGKILL)
        return False
