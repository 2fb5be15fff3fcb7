"""Images with their labels out of what others made: map-style data sets, iterables of pairs.

In: ``dataset[i] -> (image, label)``, or pairs of (image, label). Out: `Labelled`, images that are
decoded on access where that can be, int64 labels, class names. Why: a user has a data set already
and must not have to copy it into folders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchdeploy.data.load import LoadConfig
from patchdeploy.data.pixels import Labels, Pixels, image_pixels, load_image
from patchdeploy.data.sources import ImageFiles, Images, MapImages, is_subset
from patchdeploy.errors import DataError, UnreadableImageError


class Labelled(NamedTuple):
    """Images and labels in step.

    Attributes:
        images: decoded on access where that can be.
        labels: int64 [N].
        classes: names; a label is a position in them.
        unread: indices of images that were tried and cannot be read; None: not tried yet.
    """

    images: Images
    labels: Labels
    classes: tuple[str, ...]
    unread: tuple[int, ...] | None


def read_mapped(
    dataset: Any, name: str, classes: Sequence[str] | None, load: LoadConfig
) -> Labelled:
    """A map-style data set; see ``ImageDataset.from_torchvision``."""
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{name} is a {type(dataset).__name__} without len() and [index]; a map-style data "
            "set has both; use ImageDataset.from_iterable for a stream of (image, label)"
        )
    images = MapImages(dataset, name)
    labels, unread = _listed_labels(images), None
    if labels is None:
        labels, unread = _read_labels(images, load)
    names = _listed_classes(dataset) if classes is None else classes
    names = tuple(str(one) for one in names) if names else _class_names(labels)
    return Labelled(images, np.asarray(labels, np.int64), names, unread)


def read_pairs(
    pairs: Iterable[tuple[Any, int | str]],
    name: str,
    classes: Sequence[str] | None,
    load: LoadConfig,
) -> Labelled:
    """Pairs of (image, label), to the end; see ``ImageDataset.from_iterable``."""
    found: list[Path | Pixels] = []
    given: list[int | str] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) < 2:
            raise DataError(
                f"item {index} of {name} is a {type(pair).__name__}; each item must be "
                "(image, label); pair them, for instance with zip"
            )
        is_path = isinstance(pair[0], str | Path)
        what = f"image {index} of {name}"
        found.append(Path(pair[0]) if is_path else image_pixels(pair[0], what))
        given.append(pair[1])
    names, labels = _number_labels(given, classes, name)
    paths = [one for one in found if isinstance(one, Path)]
    if paths and len(paths) == len(found):
        return Labelled(ImageFiles(paths), labels, names, None)
    images, unread = _decode_paths(found, load)
    return Labelled(images, labels, names, unread)


def _listed_labels(images: MapImages) -> list[int] | None:
    """The labels that the data set lists without reading images, if they are those of its items.

    They are compared with the first, the middle and the last item; None: read the items.
    """
    listed = _label_attribute(images.dataset)
    if listed is None:
        return None
    for index in {0, len(listed) // 2, len(listed) - 1} if listed else ():
        try:
            if int(images.item(index)[1]) != listed[index]:
                return None
        except UnreadableImageError:
            continue
        except (TypeError, ValueError):
            return None
    return listed


def _label_attribute(dataset: Any) -> list[int] | None:
    if is_subset(dataset):
        inner = _label_attribute(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    for attribute in ("targets", "labels", "_labels"):
        listed = getattr(dataset, attribute, None)
        if listed is not None and hasattr(listed, "__len__") and len(listed) == len(dataset):
            try:
                return [int(one) for one in listed]
            except (TypeError, ValueError):
                return None
    return None


def _listed_classes(dataset: Any) -> Sequence[str] | None:
    listed: Sequence[str] | None = getattr(dataset, "classes", None)
    return _listed_classes(dataset.dataset) if not listed and is_subset(dataset) else listed


def _read_labels(images: MapImages, load: LoadConfig) -> tuple[list[int], tuple[int, ...]]:
    """Labels from the items themselves, and the indices of those that cannot be read (label 0)."""
    labels: list[int] = []
    broken: list[int] = []
    for index in range(len(images)):
        try:
            label = images.item(index)[1]
        except UnreadableImageError:
            if load.on_broken == "error":
                raise
            broken.append(index)
            labels.append(0)
            continue
        labels.append(_integer_label(label, images.image_name(index)))
    return labels, tuple(broken)


def _integer_label(label: Any, what: str) -> int:
    try:
        if int(label) == label:
            return int(label)
    except (TypeError, ValueError):
        pass
    raise DataError(
        f"{what} has the label {label!r}; a label must be an integer from 0 up; give the data set "
        "a target_transform, or use ImageDataset.from_iterable, which takes class names"
    )


def _class_names(labels: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(label) for label in range(max(labels, default=-1) + 1))


def _number_labels(
    given: Sequence[int | str], classes: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...], Labels]:
    """Class names, and int64 labels; text labels are looked up among the names."""
    if any(isinstance(label, str) for label in given):
        names = sorted({str(label) for label in given}) if classes is None else list(classes)
        where = {one: index for index, one in enumerate(names)}
        for label in given:
            if label not in where:
                raise DataError(
                    f"{name}: label {label!r} is no class; the classes are "
                    f"{', '.join(names[:10])}; correct it or add the class"
                )
        return tuple(names), np.asarray([where[str(label)] for label in given], np.int64)
    labels = [_integer_label(one, f"image {i} of {name}") for i, one in enumerate(given)]
    chosen = _class_names(labels) if classes is None else tuple(str(one) for one in classes)
    return chosen, np.asarray(labels, np.int64)


def _decode_paths(
    found: list[Path | Pixels], load: LoadConfig
) -> tuple[list[Pixels], tuple[int, ...]]:
    """Pixels where paths and pixels are mixed; a broken file leaves an empty image behind."""
    pixels: list[Pixels] = []
    broken: list[int] = []
    for index, one in enumerate(found):
        try:
            pixels.append(load_image(one) if isinstance(one, Path) else one)
        except UnreadableImageError:
            if load.on_broken == "error":
                raise
            broken.append(index)
            pixels.append(np.zeros((1, 1, 3), np.uint8))
    return pixels, tuple(broken)
