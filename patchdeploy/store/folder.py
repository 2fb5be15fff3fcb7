"""The folder of a patch store: its names, what lies under them, and how STATE is replaced.

In: a path and the `Files` that reach it. Out: bytes compared with their names, the state as STATE
or its copy has it, and a commit that leaves the old state or the new one.

    <folder>/lock          held while anything is written; readers cannot open it
    <folder>/STATE         what is active, what was, floors and keys; replaced in one step
    <folder>/STATE.copy    the same bytes: what counts where STATE is lost or damaged
    <folder>/<sha256>.pdp  patch files, named by their own hash, never written into
    <folder>/<hex>.tmp     a file that is being written; after a crash, clean_up removes it
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from patchdeploy.errors import FileFormatError, IntegrityError, StorageError
from patchdeploy.patchfile import MAX_FILE_BYTES
from patchdeploy.storage import sha256_hex
from patchdeploy.store.files import TEMPORARY_SUFFIX, Files, publish
from patchdeploy.store.state import MAX_STATE_BYTES, StoreState

LOGGER = logging.getLogger("patchdeploy.store")
LOCK = "lock"
STATE = "STATE"
COPY = "STATE.copy"
PATCH_SUFFIX = ".pdp"
MISSING = "missing"
"""What `StoreFolder.look` says where there is no STATE."""
_RECORDS = (COPY, STATE)
"""In the order in which they are written: a reader of STATE never sees what may be taken back."""

_PATCH_NAME = re.compile(rf"([0-9a-f]{{64}})\{PATCH_SUFFIX}")
_TEMPORARY_NAME = re.compile(rf"[0-9a-f]{{16}}\{TEMPORARY_SUFFIX}")


def patch_name(sha256: str) -> str:
    """The name of the patch file with this hash (64 hexadecimal digits)."""
    return f"{sha256}{PATCH_SUFFIX}"


@dataclass(frozen=True)
class Seen:
    """What a folder says of its state.

    Attributes:
        state: of STATE or, where that is lost or damaged, of its copy; None: both are.
        problem: what is wrong with STATE; None: nothing.
    """

    state: StoreState | None
    problem: str | None = None


@dataclass(frozen=True)
class StoreFolder:
    """A folder and the disk it is on.

    Attributes:
        path: its parent must exist.
        files: the disk.
    """

    path: Path
    files: Files

    @contextmanager
    def disk(self, action: str) -> Iterator[None]:
        """A block whose `OSError` becomes a `StorageError` that says what could not be done."""
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(
                f"cannot {action} in store {self.path}: {error.strerror or error}; free space, "
                "correct the folder's rights or choose another; the state before this stays"
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if need be, with its lock held."""
        self.files.make_folder(self.path)
        with self.files.lock(self.path / LOCK):
            yield

    def is_store(self) -> bool:
        """Whether the folder is there and has a file in it that only a store makes."""
        try:
            names = self.files.names(self.path)
        except FileNotFoundError:
            return False
        return any(
            name in _RECORDS or _PATCH_NAME.fullmatch(name) or _TEMPORARY_NAME.fullmatch(name)
            for name in names
        )

    def look(self) -> Seen:
        """The state as STATE has it, or its copy."""
        state = self._read_state(STATE)
        if isinstance(state, StoreState):
            return Seen(state)
        copy = self._read_state(COPY)
        return Seen(copy if isinstance(copy, StoreState) else None, state)

    def has_copy_of(self, state: StoreState) -> bool:
        """Whether the copy of STATE is there and holds ``state``."""
        return self._read_state(COPY) == state

    def _read_state(self, name: str) -> StoreState | str:
        """A state, or what is wrong with its file."""
        try:
            return StoreState.from_bytes(self.files.read(self.path / name, MAX_STATE_BYTES))
        except FileNotFoundError:
            return MISSING
        except (IntegrityError, FileFormatError) as error:
            return str(error)

    def patches(self) -> frozenset[str]:
        """The hashes that files of the folder have as names; none where there is no folder."""
        try:
            names = self.files.names(self.path)
        except FileNotFoundError:
            return frozenset()
        return frozenset(match[1] for match in map(_PATCH_NAME.fullmatch, names) if match)

    def temporaries(self) -> list[str]:
        """The names that a writer gave to files it never finished."""
        return [name for name in self.files.names(self.path) if _TEMPORARY_NAME.fullmatch(name)]

    def read_patch(self, sha256: str) -> bytes:
        """The bytes of one patch file, read once and compared with its name.

        Raises:
            FileNotFoundError: it is not there.
            IntegrityError: it is not the one that its name says.
        """
        path = self.path / patch_name(sha256)
        data = self.files.read(path, MAX_FILE_BYTES)
        found = sha256_hex(data)
        if found != sha256:
            raise IntegrityError(
                f"patch file {path} has SHA-256 {found}; its name is the hash that it must have; "
                "install the patch again"
            )
        return data

    def is_whole(self, sha256: str) -> bool:
        """Whether the patch file with this name is there and is what its name says."""
        try:
            self.read_patch(sha256)
        except (FileNotFoundError, IntegrityError):
            return False
        return True

    def put_patch(self, sha256: str, data: bytes) -> None:
        """A new patch file, on the disk; what had its name stays for those who have it open."""
        publish(self.files, self.path, patch_name(sha256), data)
        self.sync()

    def remove(self, names: list[str]) -> list[str]:
        """Remove files, and wait until they are gone from the disk.

        Returns:
            Those that are gone. A folder, which no store makes, stays; a warning is logged.
        """
        gone = []
        for name in names:
            try:
                self.files.unlink(self.path / name)
            except IsADirectoryError:
                LOGGER.warning("%s stays: it is a folder; no store made it", self.path / name)
                continue
            gone.append(name)
        self.sync()
        return gone

    def sync(self) -> None:
        """Return when every name in the folder is on the disk."""
        self.files.sync_folder(self.path)

    def sync_parent(self) -> None:
        """Return when the folder itself is on the disk."""
        self.files.sync_folder(self.path.parent)

    def commit(self, state: StoreState, before: StoreState | None) -> None:
        """Replace STATE and its copy. The patch files that they name must be on the disk already.

        Args:
            before: what is put back where a part of this is visible and the rest fails.

        Raises:
            OSError: ``before`` is in force.
            StorageError: it could not be put back: the disk fails for good.
        """
        data, written = state.to_bytes(), list[str]()
        try:
            for name in _RECORDS:
                publish(self.files, self.path, name, data)
                written.append(name)
            self.sync()
        except OSError as error:
            if before is not None and written:
                self._put_back(before, written, error)
            raise

    def _put_back(self, before: StoreState, written: list[str], cause: OSError) -> None:
        try:
            for name in reversed(written):
                publish(self.files, self.path, name, before.to_bytes())
        except OSError as error:
            if STATE not in written:
                return  # readers see ``before``; the next writer sees to the copy
            raise StorageError(
                f"cannot write STATE of store {self.path}: {cause.strerror or cause}, and then "
                f"{error.strerror or error}; the disk must keep what it is given; replace it; the "
                "store is whole, in the state before this or after it"
            ) from error
