"""Labelled images: a data set from a folder per class, a torchvision data set, or any iterable.

In: files, data sets of others, (image, label) pairs. Out: `ImageDataset`, images and integer
labels that stay in step, and its stratified parts. Why: whatever trains, calibrates or verifies
takes this one type.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data.folders import FolderImages, find_images, folder_name
from patchdeploy.data.formats import readable_suffixes
from patchdeploy.data.labels import (
    as_labels,
    compose_name,
    compose_names,
    read_mapped,
    read_pairs,
)
from patchdeploy.data.load import LoadConfig, find_broken, load_resized
from patchdeploy.data.pixels import Labels, Pixels, Preprocessing
from patchdeploy.data.sources import ImageFiles, Images, as_images, image_name, select_images
from patchdeploy.errors import DataError

LOGGER = logging.getLogger("patchdeploy.data")
NAMES_SHOWN = 10


@dataclass(frozen=True)
class Skipped:
    """The images that ``on_broken="skip"`` left out: how many, and the names of the first ten."""

    count: int = 0
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = self.count - len(self.names)
        return ", ".join(self.names) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images.

    Attributes:
        name: the task's name, unless another is given where it is trained.
        images: one array uint8 [N, H, W, 3] (which may be memory-mapped), `ImageFiles`,
            `MapImages`, or a list of what `image_pixels` takes; becomes pixels or `ImageFiles`.
        labels: int64 [N], positions in ``classes``. Any whole numbers, one per image, or rows with
            one 1 each become that.
        classes: their names, composed (NFC).
        load: how ``at`` decodes and resizes.
        skipped: what was left out of the whole set because no decoder reads it.
    """

    name: str
    images: Images
    labels: Labels
    classes: tuple[str, ...]
    load: LoadConfig = field(default_factory=LoadConfig)
    skipped: Skipped = Skipped()
    _resized: dict[tuple[int, Preprocessing], Pixels] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )
    """Of these images alone: no argument, so that a copy with other images has none."""
    _positions: NDArray[np.int64] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", as_images(self.images, self.name))
        object.__setattr__(self, "classes", compose_names(self.classes, self.name))
        labels = as_labels(self.labels, self.name, len(self.classes))
        object.__setattr__(self, "labels", labels)
        if len(self.images) != len(self.labels):
            raise DataError(
                f"{self.name}: {len(self.images)} images but {len(self.labels)} labels; there must "
                "be one label per image; correct the list"
            )
        outside = (self.labels < 0) | (self.labels >= len(self.classes))
        if outside.any():
            raise DataError(
                f"{self.name}: label {int(self.labels[outside][0])}; labels must be 0 to "
                f"{len(self.classes) - 1}, one per class; correct the labels or add the class"
            )

    @classmethod
    def from_torchvision(
        cls,
        dataset: Any,
        name: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        load: LoadConfig | None = None,
    ) -> ImageDataset:
        """A map-style data set of (image, integer label): torchvision's, a Subset, one of yours.

        Images are read when they are needed. Labels come from the data set's list of them
        (``targets``, ``labels``) where it agrees with its items, else every item is read once.

        Args:
            dataset: has ``len()`` and ``dataset[i]``; an image is a Pillow image, or uint8 in
                [H, W], [H, W, C] (numpy) or [C, H, W] (torch). Leave ToTensor out of its transform.
            name: by default the name of its type.
            classes: by default its ``classes``, else the labels as text.

        Raises:
            UnreadableImageError: an image that cannot be read, unless ``load`` says to skip it.
            DataError: items, labels or classes that do not fit together.
        """
        name, load = name or type(dataset).__name__, load or LoadConfig()
        found = read_mapped(dataset, name, classes, load)
        made = cls(name, found.images, found.labels, found.classes, load)
        return without_broken(made, found.unread)

    @classmethod
    def from_iterable(
        cls,
        pairs: Iterable[tuple[Any, int | str]],
        name: str,
        *,
        classes: Sequence[str] | None = None,
        load: LoadConfig | None = None,
    ) -> ImageDataset:
        """Any iterable of (image, label), read once to its end.

        Args:
            pairs: an image is a path, or what `from_torchvision` takes; a label is a position in
                ``classes`` or a class name. If every image is a path, files are decoded when they
                are needed; else pixels are kept in memory.
            classes: by default the sorted names that occur, or the labels as text.

        Raises:
            UnreadableImageError: a file that cannot be read, unless ``load`` says to skip it.
            DataError: images, labels or classes that do not fit together.
        """
        load = load or LoadConfig()
        found = read_pairs(pairs, name, classes, load)
        made = cls(name, found.images, found.labels, found.classes, load)
        return without_broken(made, found.unread)

    def labels_as(self, classes: Sequence[str]) -> Labels | None:
        """The labels as positions in ``classes``, matched by name; None where they are others.

        Names are composed (NFC) before they are compared. Where one occurs twice (ImageNet has two
        cranes), the classes must be the same in the same order.
        """
        classes = [compose_name(name) for name in classes]
        if list(self.classes) == classes:
            return self.labels
        if sorted(self.classes) != sorted(classes) or len(set(classes)) < len(classes):
            return None
        order = np.array([classes.index(name) for name in self.classes], np.int64)
        mapped: Labels = order[self.labels]
        return mapped

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> ImageDataset:
        """The images at ``indices``, in that order, with the same classes."""
        chosen = np.asarray(indices, np.int64)
        images = select_images(self.images, chosen)
        positions = None if self._positions is None else self._positions[chosen]
        labels = self.labels[chosen]
        return replace(self, images=images, labels=labels, _positions=positions)

    def position(self, index: int) -> int:
        """Where the image stood in the set that was split; ``index`` where none was."""
        return index if self._positions is None else int(self._positions[index])

    def at(self, size_px: int, preprocessing: Preprocessing) -> Pixels:
        """All images resized: uint8 [N, size_px, size_px, 3], read-only, computed once.

        With ``load.cache`` the array is memory-mapped: take batches of it, never a copy of it all.

        Raises:
            UnreadableImageError: an image that cannot be decoded, with its name.
            StorageError: the cache cannot be written.
        """
        key = (size_px, preprocessing)
        if key not in self._resized:
            self._resized[key] = load_resized(
                self.images, size_px, preprocessing, self.load, self.name
            )
        return self._resized[key]

    def image_name(self, index: int) -> str:
        """The image's file, or its position in the data set."""
        return image_name(self.images, index, self.name)


def load_image_folder(root: Path | str, load: LoadConfig | None = None) -> ImageDataset:
    """A folder per class (sorted names are the classes), image files below each, read lazily.

    `data.folders` says which files are images; what is passed over is counted and logged. Names
    are composed (NFC): two folders whose names look the same are one class.

    Args:
        load: workers, cache, what to do about a broken image.

    Raises:
        DataError: no such folder, fewer than two classes, or a class without an image.
    """
    root = Path(root)
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise DataError(
            f"images {root} {state}; a task needs a folder with one folder per class; "
            "correct the path"
        )
    found = find_images(root)
    classes = _paths_by_class(found)
    if len(classes) < 2:
        raise DataError(
            f"{root} holds {len(classes)} class folders; a task needs at least 2; make one folder "
            "per class and put its images into it"
        )
    for name, paths in classes.items():
        if not paths:
            raise DataError(
                f"class folder {root / name} holds no image; each class needs at least 1 of "
                f"{', '.join(readable_suffixes())}; add images or remove the folder"
            )
    if found.loose:
        found.passed_over["images outside of the class folders"] += len(found.loose)
    found.say_passed_over()
    return without_broken(_labelled(root, classes, load))


def load_any_folder(root: Path | str, load: LoadConfig | None = None) -> ImageDataset:
    """Every image of a folder; labelled where each lies in a class folder, else of one class "".

    Raises:
        DataError: no such folder, or no image in it.
    """
    found = find_images(root)
    if not found.paths:
        found.say_passed_over()
        raise DataError(
            f"folder {root} holds no image; it needs at least 1 of "
            f"{', '.join(readable_suffixes())}; correct the path"
        )
    found.say_passed_over()
    classes = {name: paths for name, paths in _paths_by_class(found).items() if paths}
    if found.loose:
        classes = {"": found.paths}
    return without_broken(_labelled(found.root, classes, load))


def _paths_by_class(found: FolderImages) -> dict[str, tuple[Path, ...]]:
    """Paths of each class folder, sorted by the class's name."""
    classes: dict[str, tuple[Path, ...]] = {}
    for name, paths in found.groups.items():
        classes[compose_name(name)] = tuple(sorted((*classes.get(compose_name(name), ()), *paths)))
    return dict(sorted(classes.items()))


def _labelled(
    root: Path, classes: Mapping[str, Sequence[Path]], load: LoadConfig | None
) -> ImageDataset:
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    images = ImageFiles([path for paths in classes.values() for path in paths])
    return ImageDataset(folder_name(root), images, labels, tuple(classes), load or LoadConfig())


def without_broken(dataset: ImageDataset, broken: Sequence[int] | None = None) -> ImageDataset:
    """Without the images that no decoder reads, where ``dataset.load`` says to skip them.

    They are counted in ``skipped``, and a warning is logged.

    Args:
        broken: their indices where they are known; None: decode every image once.

    Raises:
        DataError: a class loses all its images.
    """
    if dataset.load.on_broken == "error":
        return dataset
    if broken is None:
        broken = find_broken(dataset.images, dataset.load, dataset.name)
    if not broken:
        return dataset
    first = tuple(dataset.image_name(index) for index in broken[:NAMES_SHOWN])
    skipped = Skipped(len(broken), first)
    kept = np.setdiff1d(np.arange(len(dataset)), broken)
    lost = sorted(set(dataset.labels.tolist()) - set(dataset.labels[kept].tolist()))
    if lost:
        raise DataError(
            f"{dataset.name}: no image of class {dataset.classes[lost[0]]!r} can be read; each "
            f"class needs at least 1; the unreadable ones are {skipped}; convert them again or "
            "remove the class"
        )
    LOGGER.warning(
        "%s: skipped %d of %d images that no decoder reads: %s",
        dataset.name,
        skipped.count,
        len(dataset),
        skipped,
    )
    return replace(dataset.subset(kept), skipped=skipped)


def check_classes(dataset: ImageDataset) -> None:
    """Raise unless there are at least two classes and each has an image.

    Raises:
        DataError: naming the class, or the only one.
    """
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"{dataset.name}: {len(dataset)} images of {np.count_nonzero(counts)} classes; "
            "training needs images of at least 2 classes; add some"
        )
    if (counts == 0).any():
        missing = [dataset.classes[i] for i in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{dataset.name}: class {missing[0]!r} has no image ({len(missing)} of "
            f"{len(counts)} classes have none); each class needs at least 1; add images or leave "
            "the class out"
        )


def split(
    dataset: ImageDataset, fractions: tuple[float, float] = (0.9, 0.1), seed: int = 0
) -> tuple[ImageDataset, ImageDataset]:
    """Split into two disjoint parts, stratified: each class with 2 images is in both parts.

    Raises:
        DataError: the fractions are not positive with a sum of at most 1.
    """
    if min(fractions) <= 0 or sum(fractions) > 1 + 1e-9:
        raise DataError(
            f"split fractions {fractions}; both must be positive with a sum of at most 1; "
            "use for instance (0.9, 0.1)"
        )
    generator = np.random.default_rng(seed)
    parts: tuple[list[int], list[int]] = ([], [])
    for label in range(len(dataset.classes)):
        members = generator.permutation(np.flatnonzero(dataset.labels == label))
        second = round(len(members) * fractions[1])
        second = min(max(second, 1), len(members) - 1) if len(members) > 1 else 0
        first = min(max(round(len(members) * fractions[0]), 1), len(members) - second)
        parts[0].extend(members[:first].tolist())
        parts[1].extend(members[first : first + second].tolist())
    first_part, second_part = (np.asarray(sorted(part), np.int64) for part in parts)
    return (
        replace(dataset.subset(first_part), _positions=first_part),
        replace(dataset.subset(second_part), _positions=second_part),
    )
