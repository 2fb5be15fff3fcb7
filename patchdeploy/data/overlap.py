"""Images that are in two data sets, by content: what is tested must not have been trained on.

In: two data sets. Out: pairs of positions, and a warning that names files. Each image is read and
hashed at most once; of files only those whose length occurs on both sides are read at all.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from patchdeploy.data.pixels import Pixels
from patchdeploy.data.sets import NAMES_SHOWN, ImageDataset
from patchdeploy.data.sources import image_paths, pixels_digest
from patchdeploy.errors import IrregularFileError, UnreadableImageError
from patchdeploy.storage import open_regular

LOGGER = logging.getLogger("patchdeploy.data")


class OverlapWarning(UserWarning):
    """The same images are in the training and in the test set."""


def overlapping(first: ImageDataset, second: ImageDataset) -> list[tuple[int, int]]:
    """Pairs (index in first, index in second) of images with the same pixels, by SHA-256.

    Decodes every image; an image of ``second`` is paired with the last of its equals in ``first``.
    """
    return _pairs(_pixel_digests(first), _pixel_digests(second))


def warn_overlap(
    train: ImageDataset, test: ImageDataset, part: str = "test"
) -> list[tuple[int, int]]:
    """Warn (`OverlapWarning`) if images of ``test`` are in ``train`` too; the pairs of positions.

    Where both sets come from files, equal means the same bytes, whatever the names (the same
    picture saved anew is found by `overlapping` alone); else it means the same pixels.

    Args:
        part: what the second set is for, as the warning says it: "test" or "validation".

    Raises:
        UnreadableImageError: a file that cannot be read.
    """
    files = image_paths(train.images), image_paths(test.images)
    found = _same_files(*files) if all(files) else overlapping(train, test)
    if found:
        named = [
            f"{test.image_name(j)} (in training {train.image_name(i)})"
            for i, j in found[:NAMES_SHOWN]
        ]
        more = f" and {len(found) - NAMES_SHOWN} more" if len(found) > NAMES_SHOWN else ""
        warnings.warn(
            f"{len(found)} of {len(test)} {part} images of {test.name!r} are training images of "
            f"{train.name!r} too: {', '.join(named)}{more}; accuracy on them says nothing about "
            "new images; take them out of one of the sets",
            OverlapWarning,
            stacklevel=2,
        )
    return found


def distinct_images(dataset: ImageDataset) -> ImageDataset:
    """``dataset`` without the images whose pixels an earlier one has; decodes every image."""
    kept = distinct_places(dataset)
    return dataset if len(kept) == len(dataset) else dataset.subset(kept)


def distinct_places(dataset: ImageDataset) -> list[int]:
    """Positions of the images of `distinct_images`, ascending."""
    places = {digest: index for index, digest in reversed([*enumerate(_pixel_digests(dataset))])}
    return sorted(places.values())


def without_copies(dataset: ImageDataset) -> ImageDataset:
    """`distinct_images`, with a warning where there are copies: a test counts independent images,
    and a copy in another split would be one that has been seen."""
    kept = distinct_images(dataset)
    if len(kept) < len(dataset):
        LOGGER.warning(
            "%s: %d of %d images have the pixels of another one; each counts once",
            dataset.name,
            len(dataset) - len(kept),
            len(dataset),
        )
    return kept


def _pixel_digests(dataset: ImageDataset) -> list[bytes]:
    images = cast(Sequence[Pixels], dataset.images)
    return [pixels_digest(images[index]) for index in range(len(images))]


def _same_files(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[int, int]]:
    lengths = [[_read(path, length_only=True) for path in paths] for paths in (first, second)]
    shared = set(lengths[0]) & set(lengths[1])
    digests = (
        [_read(path) if length in shared else b"" for path, length in zip(paths, of, strict=True)]
        for paths, of in zip((first, second), lengths, strict=True)
    )
    return _pairs(*digests)


def _pairs(first: Sequence[bytes], second: Sequence[bytes]) -> list[tuple[int, int]]:
    where = {digest: index for index, digest in enumerate(first) if digest}
    return [(where[digest], index) for index, digest in enumerate(second) if digest in where]


def _read(path: Path, length_only: bool = False) -> bytes:
    """The file's length as text, or the SHA-256 of its bytes."""
    try:
        if length_only:
            return str(path.stat().st_size).encode()
        with open(path, "rb", opener=_open_file) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, IrregularFileError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnreadableImageError(
            f"cannot read image {path}: {reason}; both sets must be there to be compared; restore "
            "the file or leave it out"
        ) from error


def _open_file(name: str, flags: int) -> int:
    return open_regular(Path(name), follow=True)
