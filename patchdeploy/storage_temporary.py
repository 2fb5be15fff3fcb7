"""What is written before it has its name: temporary files and staging folders, and their leftovers.

In: a folder. Out: a new file or folder in it that is locked until its writer closes it or dies. The
name says that this module made it and the lock that its writer lives, so what killed writers have
left is found and removed by the next one, and nothing else is.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\.patchdeploy-[0-9a-f]{16}\.tmp")
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_WAITS_NOT = getattr(os, "O_NONBLOCK", 0)
_CLOSES = getattr(os, "O_CLOEXEC", 0)
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CLOSES


def new_file(folder: int) -> tuple[int, str]:
    """A handle and the name of a new file in ``folder``; it is locked while it is written.

    So `remove_leftovers` can tell it from what a writer that was killed has left.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _CLOSES
    while True:
        name = _temporary_name()
        handle = os.open(name, flags, 0o666, dir_fd=folder)
        if _lock(handle) is not False and os.fstat(handle).st_nlink:
            return handle, name
        os.close(handle)  # another process took it for a leftover before it was locked


def _temporary_name() -> str:
    return f".patchdeploy-{secrets.token_hex(8)}.tmp"


@contextmanager
def staged_folder(path: Path, name: str) -> Iterator[Path]:
    """A place beside ``path`` that takes its name at the end, or is gone with all it holds.

    What writers that were killed have left beside ``path`` goes first.

    Args:
        name: of the place in the folder that is staged.

    Raises:
        OSError: it cannot be made or renamed; nothing is at ``path`` that was not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    handle, staging = _new_folder(path.parent)
    try:
        yield staging / name
        (staging / name).replace(path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def try_folder(parent: Path) -> None:
    """Make a folder in ``parent`` and remove it.

    Raises:
        OSError: it cannot be made.
    """
    handle, path = _new_folder(parent)
    path.rmdir()
    os.close(handle)


def _new_folder(parent: Path) -> tuple[int, Path]:
    """A handle, locked, and the path of a new folder; as `_new_file`."""
    while True:
        path = parent / _temporary_name()
        path.mkdir(0o700)
        with suppress(FileNotFoundError):
            handle = os.open(path, _FOLDER)
            if _lock(handle) is not False and path.exists():
                return handle, path
            os.close(handle)


def remove_leftovers(folder: Path) -> tuple[str, ...]:
    """Remove the temporary files and folders that killed writers have left in ``folder``.

    Each is locked while its writer lives, so those of other writers that are at work stay. The
    names are those that this module makes, and no one else.

    Returns:
        The names that were removed, sorted. What cannot be removed stays, and is no error.
    """
    removed: list[str] = []
    with suppress(OSError):
        handle = os.open(folder, _FOLDER)
        try:
            for name in sorted(os.listdir(handle)):  # noqa: PTH208 - of a handle
                if _TEMPORARY.fullmatch(name) and _remove_dead(handle, name):
                    removed.append(name)
        finally:
            os.close(handle)
    return tuple(removed)


def _remove_dead(folder: int, name: str) -> bool:
    """Remove ``name`` unless a living writer holds it."""
    try:
        handle = os.open(name, os.O_RDONLY | _WAITS_NOT | _NO_LINK | _CLOSES, dir_fd=folder)
    except OSError:  # gone meanwhile, a link, or another user's
        return False
    try:
        if not _lock(handle):
            return False
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _lock(handle: int) -> bool | None:
    """Whether ``handle`` could be locked; None where the system or the disk has no locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True
