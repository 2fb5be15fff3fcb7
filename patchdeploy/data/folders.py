"""The images of a folder: the one rule that training, calibration, verify and run follow.

In: a folder. Out: the paths of the images below it, in order, and a count of what was passed over.
Why: a person's folder has hidden files, thumbnails of a file server, links, notes and formats that
no decoder here reads; each command must see the same images in it, and say what it leaves out.

The rule: regular files with a suffix of `readable_suffixes`, in folders of any depth. Names that
begin with a dot and the folders of `SYSTEM_NAMES` are passed over. Links are followed; a folder is
read once for each class folder, and never from inside itself.
"""

from __future__ import annotations

import logging
import os
import stat
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from patchdeploy.data.formats import promised_suffixes, readable_suffixes
from patchdeploy.errors import DataError

LOGGER = logging.getLogger("patchdeploy.data")

SYSTEM_NAMES = frozenset(
    ("@eadir", "@recycle", "@tmp", "#recycle", "#snapshot", "__macosx", "$recycle.bin")
    + ("lost+found", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini")
)
"""What file servers and systems leave in a folder, in lower case."""
_HIDDEN, _LOOP = "hidden or of the system", "links to a folder that is read already"
_BROKEN, _SPECIAL = "links that lead nowhere", "pipes or devices"
_NO_SUFFIX = "without a usual suffix"
_LONGEST_SUFFIX = 10
REASONS_SHOWN = 10


@dataclass(frozen=True)
class FolderImages:
    """What lies in a folder.

    Attributes:
        root: the folder.
        loose: images directly in it.
        groups: images below each of its folders (links to folders too), by the folder's name; a
            folder without images has an empty tuple.
        passed_over: how many files and folders were passed over, by reason or suffix.
    """

    root: Path
    loose: tuple[Path, ...]
    groups: dict[str, tuple[Path, ...]]
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All images, sorted."""
        return tuple(
            sorted((*self.loose, *(one for group in self.groups.values() for one in group)))
        )

    def say_passed_over(self) -> None:
        """Log how many files and folders were passed over, if any."""
        if not self.passed_over:
            return
        counted = self.passed_over.most_common()
        more = sum(count for _, count in counted[REASONS_SHOWN:])
        words = [f"{count} {reason}" for reason, count in counted[:REASONS_SHOWN]]
        LOGGER.warning(
            "%s: passed over %s", self.root, ", ".join(words) + (f", {more} more" if more else "")
        )


def _suffix_reason(suffix: str) -> str:
    if suffix in promised_suffixes():
        return f"{suffix} (no decoder is installed)"
    return suffix if suffix.isprintable() and 0 < len(suffix) <= _LONGEST_SUFFIX else _NO_SUFFIX


def find_images(root: Path | str) -> FolderImages:
    """The images of a folder.

    Raises:
        DataError: it is no folder, or a folder in it cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(f"folder {root} {state}; images are read from a folder; correct the path")
    walk = _Walk(_identity(root))
    loose: list[Path] = []
    folders: list[Path] = []
    for entry in walk.entries(root):
        if _is_folder(entry):
            folders.append(Path(entry.path))
        elif walk.is_image(entry):
            loose.append(Path(entry.path))
    groups = {folder.name: tuple(sorted(walk.below(folder))) for folder in sorted(folders)}
    return FolderImages(root, tuple(sorted(loose)), groups, walk.passed_over)


def folder_name(root: Path) -> str:
    """What a folder calls its data set, also where it is given as "."; composed (NFC)."""
    named = Path(os.path.abspath(root)).name  # noqa: PTH100 - resolve() follows links
    return unicodedata.normalize("NFC", named)


def _identity(path: Path | str) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - of a name, without a Path for each file
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle, or into what may not be looked at
        return False


class _Walk:
    """One look through a folder; counts what it passes over."""

    def __init__(self, root: tuple[int, int]) -> None:
        self.root = root
        self.passed_over: Counter[str] = Counter()

    def entries(self, folder: Path) -> Iterator[os.DirEntry[str]]:
        """What is not hidden in a folder, sorted by name."""
        try:
            with os.scandir(folder) as found:
                listed = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"folder {folder} cannot be read: {error.strerror or error}; every folder below "
                "the one that is named must be; correct its rights or move it away"
            ) from error
        for entry in listed:
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                self.passed_over[_HIDDEN] += 1
            else:
                yield entry

    def is_image(self, entry: os.DirEntry[str]) -> bool:
        """Whether a name that is no folder is an image; if not, it is counted."""
        suffix = Path(entry.name).suffix.lower()
        try:
            is_regular = stat.S_ISREG(entry.stat().st_mode)
        except OSError:
            self.passed_over[_BROKEN] += 1
            return False
        if is_regular and suffix in readable_suffixes():
            return True
        self.passed_over[_suffix_reason(suffix) if is_regular else _SPECIAL] += 1
        return False

    def below(self, top: Path) -> list[Path]:
        """Images in ``top`` and its folders. Links come last: a folder has its own name first."""
        images: list[Path] = []
        seen = {self.root}
        waiting, links = deque([top]), deque[Path]()
        while waiting or links:
            folder = waiting.popleft() if waiting else links.popleft()
            identity = _identity(folder)
            if identity in seen:
                self.passed_over[_LOOP] += 1
                continue
            seen.add(identity)
            for entry in self.entries(folder):
                if _is_folder(entry):
                    (links if entry.is_symlink() else waiting).append(Path(entry.path))
                elif self.is_image(entry):
                    images.append(Path(entry.path))
        return images
