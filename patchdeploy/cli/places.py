"""Where a command may write: a folder that is there, and never a private key in a bundle.

In: paths that a person typed. Out: what is there, or an error that says how to go on. A place that
cannot be looked into is a StorageError, never taken for one that is not there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from patchdeploy.bundle.manifest import MANIFEST
from patchdeploy.errors import ConfigError, StorageError

Found = TypeVar("Found")

_START_BYTES = 65_536
_MANIFEST_KEYS = (b'"base_sha256"', b'"converters"')
"""Keys near the start of a bundle's manifest, which is sorted; an app's manifest.json has none."""


def is_there(path: Path) -> bool:
    """Whether anything has this name.

    Raises:
        StorageError: it cannot be looked at.
    """
    return _look(path, path.exists)


def is_file(path: Path) -> bool:
    """Whether ``path`` is a regular file.

    Raises:
        StorageError: it cannot be looked at.
    """
    return _look(path, path.is_file)


def is_folder(path: Path) -> bool:
    """Whether ``path`` is a folder.

    Raises:
        StorageError: it cannot be looked at.
    """
    return _look(path, path.is_dir)


def _look(path: Path, ask: Callable[[], Found]) -> Found:
    """What ``ask`` says of ``path``; a fault of the disk gets its type here alone."""
    try:
        return ask()
    except OSError as error:
        raise StorageError(
            f"cannot look at {path}: {error.strerror or error}; every folder above it must let you "
            "in; correct the path or the folders' rights"
        ) from error


def check_folder_of(file: Path) -> None:
    """Check that the folder that ``file`` is to be written into is there: none is made for it.

    Raises:
        StorageError: it is not, or cannot be looked at.
    """
    folder = file.parent
    if not is_folder(folder):
        raise StorageError(
            f"cannot write {file}: {folder} is not a folder that is there; a file goes into one "
            "that is; make the folder, or correct the path"
        )


def resolve(path: Path) -> Path:
    """``path`` without links, whether or not it is there.

    Raises:
        ConfigError: links that lead in a circle.
    """
    try:
        return path.resolve()
    except RuntimeError as error:
        raise ConfigError(
            f"{path} leads in a circle of links; it must lead to a file; correct the path"
        ) from error


def check_outside_bundles(file: Path) -> None:
    """Check that ``file``, a private key, is in no bundle: bundles are copied to every device.

    Raises:
        ConfigError: a folder above ``file`` is a bundle.
        StorageError: a folder above it cannot be looked into.
    """
    for folder in resolve(file).parents:
        if _is_bundle(folder):
            raise ConfigError(
                f"key file {file} would lie in bundle {folder}; a bundle is copied to every "
                "device, and a private key to none; choose a folder outside of it"
            )


def _is_bundle(folder: Path) -> bool:
    """Whether its manifest is patchdeploy's, even if cut short; others call files so, too."""
    path = folder / MANIFEST
    if not _look(path, path.is_file):
        return False
    start = _look(path, lambda: _read_start(path))
    return all(key in start for key in _MANIFEST_KEYS)


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_START_BYTES)
