"""Which commit a run was started in, read off the files of the repository.

In: a folder. Out: the commit's hash, or None. git itself is not asked: a repository's own settings
name programs that git runs (core.fsmonitor, filters of .gitattributes, hooks), and a run may be
started in a folder that somebody else has made. So whether files were changed since is not known.
"""

from __future__ import annotations

import re
from pathlib import Path

from patchdeploy.errors import IrregularFileError
from patchdeploy.storage import read_regular

MOST_FOLDERS = 64
"""Folders above the first that are looked into."""
MOST_LINKS = 5
"""Names that stand for names: HEAD stands for a branch."""
_TEXT_BYTES = 4096
_PACKED_BYTES = 16 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"refs/[A-Za-z0-9._/-]{1,200}")


def find_commit(folder: Path) -> str | None:
    """The commit that is checked out in ``folder`` or a folder above it; None outside a repository,
    before its first commit, and where its files say nothing that can be read."""
    folder = folder.absolute()
    for place in (folder, *folder.parents[:MOST_FOLDERS]):
        git = place / ".git"
        if git.is_dir():
            return _resolve(git, git)
        if git.is_file():
            return _find_in_work_tree(git)
    return None


def _find_in_work_tree(file: Path) -> str | None:
    """A work tree's ``.git`` names a folder, whose ``commondir`` names the repository's."""
    text = _read(file, _TEXT_BYTES)
    if text is None or not text.startswith("gitdir: "):
        return None
    git = file.parent / text.removeprefix("gitdir: ").strip()
    common = _read(git / "commondir", _TEXT_BYTES)
    return _resolve(git, git if common is None else git / common.strip())


def _resolve(git: Path, common: Path) -> str | None:
    name = "HEAD"
    for _ in range(MOST_LINKS):
        text = _read(git / name, _TEXT_BYTES) or _read(common / name, _TEXT_BYTES)
        text = (text or _find_packed(common, name) or "").strip()
        if _COMMIT.fullmatch(text):
            return text
        name = text.removeprefix("ref: ")
        if _REF.fullmatch(name) is None or ".." in name:
            return None
    return None


def _find_packed(common: Path, name: str) -> str | None:
    """The hash beside ``name`` in ``packed-refs``, a line each."""
    for line in (_read(common / "packed-refs", _PACKED_BYTES) or "").splitlines():
        commit, _, ref = line.partition(" ")
        if ref == name:
            return commit
    return None


def _read(path: Path, most_bytes: int) -> str | None:
    try:
        return read_regular(path, most_bytes).decode(errors="replace")
    except (OSError, ValueError, IrregularFileError):
        return None
