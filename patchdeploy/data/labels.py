"""Images with their labels out of what others made: map-style data sets, iterables of pairs.

In: ``dataset[i] -> (image, label)``, or pairs of (image, label). Out: `Labelled`, images that are
decoded on access where that can be, int64 labels, class names. Why: a user has a data set already
and must not have to copy it into folders.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchdeploy.data.decode import image_pixels, load_image
from patchdeploy.data.load import LoadConfig
from patchdeploy.data.pixels import Labels, Pixels
from patchdeploy.data.sources import ImageFiles, Images, MapImages, is_subset
from patchdeploy.errors import DataError, UnreadableImageError

MOST_CLASSES = 65_536
"""Of a patch: docs/patch-format.md."""


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
    names = compose_names(names, name) if names else _class_names(labels, name)
    return Labelled(images, np.asarray(labels, np.int64), names, unread)


def read_pairs(
    pairs: Iterable[tuple[Any, int | str]],
    name: str,
    classes: Sequence[str] | None,
    load: LoadConfig,
) -> Labelled:
    """Pairs of (image, label), to the end; see ``ImageDataset.from_iterable``."""
    found: list[Path | Pixels | None] = []
    given: list[int | str] = []
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) < 2:
            raise DataError(
                f"item {index} of {name} is a {type(pair).__name__}; each item must be "
                "(image, label); pair them, for instance with zip"
            )
        found.append(_path_or_pixels(pair[0], f"image {index} of {name}", load))
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
            if _integer_label(images.item(index)[1], "") != listed[index]:
                return None
        except UnreadableImageError:
            continue
        except DataError:
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
                return [int(one) for one in as_labels(listed, attribute)]
            except DataError:
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
        return int(as_labels([label], what)[0])
    except DataError as error:
        raise DataError(
            f"{what} has the label {label!r}; a label must be an integer from 0 up; give the data "
            "set a target_transform, or use ImageDataset.from_iterable, which takes class names"
        ) from error


def as_labels(labels: Any, name: str, classes: int | None = None) -> Labels:
    """int64 [N] of whole numbers of any type: [N], [N, 1], or rows [N, C] with one 1 each.

    Args:
        classes: how many there are, which rows must have as many columns as; None: any.

    Raises:
        DataError: fractions, text, probabilities, or a number that no int64 holds.
    """
    rule = "labels must be whole numbers, one per image, or rows with one 1 each; convert them"
    try:
        array = np.asarray(labels.detach().cpu() if hasattr(labels, "detach") else labels)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{name}: labels are no array ({error}); {rule}") from error
    if array.ndim == 3 and array.shape[0] == 1:  # one row, given as a list of one
        array = array[0]
    if array.ndim == 2 and array.shape[1] != 1:
        array = _row_positions(array, name, classes, rule)
    whole = array.reshape(-1) if array.ndim == 2 else array
    if whole.ndim != 1 or whole.dtype.kind not in "biuf":
        raise DataError(f"{name}: labels are {array.dtype} {list(array.shape)}; {rule}")
    with np.errstate(invalid="ignore"):
        found: Labels = whole.astype(np.int64)
    wrong = np.flatnonzero(found != whole)
    if len(wrong):
        raise DataError(f"{name}: label {whole[wrong[0]]} of image {wrong[0]}; {rule}")
    return found


def _row_positions(array: Any, name: str, classes: int | None, rule: str) -> Labels:
    is_one_hot = array.dtype.kind in "biuf" and ((array == 0) | (array == 1)).all()
    if not is_one_hot or not (array.sum(axis=1) == 1).all():
        raise DataError(f"{name}: labels are rows of {array.shape[1]} values; {rule}")
    if classes not in (None, array.shape[1]):
        raise DataError(
            f"{name}: labels are rows of {array.shape[1]} values for {classes} classes; a row has "
            "a value for each class; correct the labels or the classes"
        )
    found: Labels = array.argmax(axis=1).astype(np.int64)
    return found


def compose_name(name: Any) -> str:
    """A class's name in Unicode's composed form (NFC), which file systems do not agree on."""
    return unicodedata.normalize("NFC", str(name))


def compose_names(names: Sequence[Any], dataset: str) -> tuple[str, ...]:
    """`compose_name` of each.

    Raises:
        DataError: two names that differ become the same.
    """
    given = [str(one) for one in names]
    composed = tuple(compose_name(one) for one in given)
    first: dict[str, str] = {}
    for one, name in zip(given, composed, strict=True):
        if first.setdefault(name, one) != one:
            raise DataError(
                f"{dataset}: class {name!r} occurs in composed and in decomposed form (accents as "
                "parts of letters, and as characters that follow them); names must differ to the "
                "eye; give both the same label"
            )
    return composed


def _class_names(labels: Sequence[int], name: str) -> tuple[str, ...]:
    largest = max(labels, default=-1)
    if largest >= MOST_CLASSES:
        raise DataError(
            f"{name}: label {largest} without class names; whole numbers are positions from 0 to "
            f"{MOST_CLASSES - 1}, the most classes that a patch has; give classes, or use "
            "ImageDataset.from_iterable with labels as text, which numbers those that occur"
        )
    return tuple(str(label) for label in range(largest + 1))


def _number_labels(
    given: Sequence[int | str], classes: Sequence[str] | None, name: str
) -> tuple[tuple[str, ...], Labels]:
    """Class names, and int64 labels; text labels are looked up among the names."""
    chosen = None if classes is None else compose_names(classes, name)
    if any(isinstance(label, str) for label in given):
        texts = [compose_name(label) if isinstance(label, str) else label for label in given]
        names = chosen or tuple(sorted({str(label) for label in texts}))
        where = {one: index for index, one in enumerate(names)}
        for label in texts:
            if label not in where:
                raise DataError(
                    f"{name}: label {label!r} is no class; the classes are "
                    f"{', '.join(names[:10])}; correct it or add the class"
                )
        return names, np.asarray([where[str(label)] for label in texts], np.int64)
    labels = [_integer_label(one, f"image {i} of {name}") for i, one in enumerate(given)]
    return chosen or _class_names(labels, name), np.asarray(labels, np.int64)


def _path_or_pixels(image: Any, what: str, load: LoadConfig) -> Path | Pixels | None:
    """A path as it is, anything else decoded; None: it cannot be, and is to be skipped."""
    if isinstance(image, str | Path):
        return Path(image)
    try:
        return image_pixels(image, what)
    except UnreadableImageError:
        if load.on_broken == "error":
            raise
        return None


def _decode_paths(
    found: Sequence[Path | Pixels | None], load: LoadConfig
) -> tuple[list[Pixels], tuple[int, ...]]:
    """Pixels where paths and pixels are mixed; a broken file leaves an empty image behind."""
    pixels: list[Pixels] = []
    broken: list[int] = []
    for index, one in enumerate(found):
        if isinstance(one, Path):
            try:
                one = load_image(one)
            except UnreadableImageError:
                if load.on_broken == "error":
                    raise
                one = None
        if one is None:
            broken.append(index)
            one = np.zeros((1, 1, 3), np.uint8)
        pixels.append(one)
    return pixels, tuple(broken)
