"""Scenes for a detector: real objects pasted on crops of real photographs, with boxes and labels.

In: labelled images of single objects (garments, digits, ...) and photographs. Out: `Scene`, one
per index, each drawn from the seed and its index alone, so that the first scenes of a longer list
are those of a shorter one. Why: no data set with boxes ships in a Python package, and a detector
whose feature extractor is to be re-purposed must first be trained on something (paper, 5.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from patchdeploy.data.decode import load_image
from patchdeploy.data.packaged import package_file
from patchdeploy.data.pixels import Pixels
from patchdeploy.data.sets import ImageDataset
from patchdeploy.errors import ConfigError, DataError

PHOTOGRAPHS = (  # none of them is a photograph of the packaged set "surfaces"
    ("skimage", "scikit-image", "data/astronaut.png"),
    ("skimage", "scikit-image", "data/camera.png"),
    ("skimage", "scikit-image", "data/coffee.png"),
    ("skimage", "scikit-image", "data/motorcycle_left.png"),
    ("skimage", "scikit-image", "data/rocket.jpg"),
    ("sklearn", "scikit-learn", "datasets/images/china.jpg"),
    ("sklearn", "scikit-learn", "datasets/images/flower.jpg"),
)
DARK = 16  # of 255: a backdrop whose median is below it is cut away
OPAQUE = 64  # of 255: the light from which a pixel in front of a dark backdrop hides what is behind
INSIDE = 128  # of 255: the opacity from which a pixel counts for the box
MOST_COVERED = 0.1  # of the smaller of two boxes of a scene, by the other
TRIES = 20  # places and objects that are tried before a scene does without one more object

RGBA = NDArray[np.uint8]


class Scene(NamedTuple):
    """One picture and what is on it.

    Attributes:
        image: uint8 [size_px, size_px, 3] RGB.
        boxes: float32 [k, 4], left, top, right, bottom in px; right and bottom are exclusive, so
            that width = right - left; 0 <= left < right <= size_px. k is at least 1.
        labels: int64 [k], positions in `scene_classes`; a detector that keeps 0 for the background
            adds 1.
    """

    image: Pixels
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def scene_classes(sources: Sequence[ImageDataset]) -> tuple[str, ...]:
    """What the labels of `compose_scenes` mean: the classes of the sources, one after another."""
    return tuple(f"{source.name}/{name}" for source in sources for name in source.classes)


def compose_scenes(
    count: int,
    size_px: int,
    seed: int,
    sources: Sequence[ImageDataset],
    *,
    photographs: Sequence[Pixels] | None = None,
    objects: tuple[int, int] = (1, 3),
    side_fraction: tuple[float, float] = (0.25, 0.6),
) -> list[Scene]:
    """``count`` scenes, each with 1 to 3 objects at random places and sizes.

    Every source is as likely as any other, and so is every image of it. An object in front of a
    dark backdrop (Fashion-MNIST, MNIST) is cut out and tinted; any other is pasted as a rectangle.
    Boxes are tight; two of them share at most a tenth of the smaller one.

    Args:
        sources: data sets of single objects; pass their training parts for scenes to train on and
            their test parts for scenes to test on.
        photographs: what lies behind; by default ``load_photographs("train")``.
        objects: least and most objects that are tried; fewer where no free place is found.
        side_fraction: least and most length of an object's longer side, as a share of ``size_px``.

    Raises:
        DataError: no source or no photograph, or a source whose images show nothing.
        ConfigError: a count, size or range that is out of bounds.
        MissingExtraError: the default photographs are not installed.
    """
    _check(count, size_px, sources, photographs, objects, side_fraction)
    behind = load_photographs("train") if photographs is None else photographs
    sheet = _Sheet(sources, size_px, objects, side_fraction)
    return [_compose(sheet, behind, np.random.default_rng([seed, index])) for index in range(count)]


def load_photographs(part: Literal["train", "test"]) -> list[Pixels]:
    """Seven photographs, uint8 [H, W, 3]: their left 60 % to train, their right 30 % to test.

    Raises:
        ConfigError: another part.
        MissingExtraError: scikit-image or scikit-learn is not installed (extra ``demo``).
    """
    if part not in ("train", "test"):
        raise ConfigError(f"photographs part={part!r}; it must be train or test; correct it")
    photos = [load_image(package_file(*where)) for where in PHOTOGRAPHS]
    if part == "train":
        return [photo[:, : int(0.6 * photo.shape[1])] for photo in photos]
    return [photo[:, photo.shape[1] - int(0.3 * photo.shape[1]) :] for photo in photos]


class _Sheet:
    """The objects to draw from, and how large they may become."""

    def __init__(
        self,
        sources: Sequence[ImageDataset],
        size_px: int,
        objects: tuple[int, int],
        side_fraction: tuple[float, float],
    ) -> None:
        self.sources, self.size_px = tuple(sources), size_px
        self.objects, self.side_fraction = objects, side_fraction
        self.dark = [_has_dark_backdrop(source) for source in sources]
        sizes = [len(source.classes) for source in sources]
        self.first_label = np.cumsum([0, *sizes])[:-1]

    def draw(self, generator: np.random.Generator) -> tuple[RGBA, int]:
        """An object, uint8 [h, w, 4], cropped to what is seen of it, and its label."""
        which = int(generator.integers(len(self.sources)))
        source = self.sources[which]
        index = int(generator.integers(len(source)))
        cut = _cut_out(source.images[index], self.dark[which], generator)
        low, high = (fraction * self.size_px for fraction in self.side_fraction)
        side_px = round(float(generator.uniform(low, high)))
        return _fit(cut, side_px), int(self.first_label[which] + source.labels[index])


def _compose(sheet: _Sheet, behind: Sequence[Pixels], generator: np.random.Generator) -> Scene:
    canvas = _background(behind, sheet.size_px, generator)
    wanted = int(generator.integers(sheet.objects[0], sheet.objects[1] + 1))
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []
    for _ in range(wanted * TRIES):
        if len(boxes) == wanted:
            break
        cut, label = sheet.draw(generator)
        high, wide = cut.shape[:2]
        if not cut.size or max(high, wide) > sheet.size_px:
            continue
        left = int(generator.integers(sheet.size_px - wide + 1))
        top = int(generator.integers(sheet.size_px - high + 1))
        box = (left, top, left + wide, top + high)
        if all(covered_share(box, other) <= MOST_COVERED for other in boxes):
            _paste(canvas, cut, left, top)
            boxes.append(box)
            labels.append(label)
    if not boxes:
        names = ", ".join(source.name for source in sheet.sources)
        raise DataError(
            f"no object was seen in {wanted * TRIES} images of {names}; an object must be brighter "
            f"than {OPAQUE * INSIDE // 255} of 255 in front of a dark backdrop; leave blank images "
            "out"
        )
    return Scene(canvas, np.asarray(boxes, np.float32), np.asarray(labels, np.int64))


def _background(behind: Sequence[Pixels], size_px: int, generator: np.random.Generator) -> Pixels:
    """A square crop of a photograph, at least half as wide as the photograph's shorter side."""
    photo = behind[int(generator.integers(len(behind)))]
    shorter_px = min(photo.shape[:2])
    side_px = int(generator.integers(max(1, shorter_px // 2), shorter_px + 1))
    top = int(generator.integers(photo.shape[0] - side_px + 1))
    left = int(generator.integers(photo.shape[1] - side_px + 1))
    crop = photo[top : top + side_px, left : left + side_px]
    if generator.integers(2):
        crop = crop[:, ::-1]
    image = Image.fromarray(np.ascontiguousarray(crop))
    return np.array(image.resize((size_px, size_px), Image.Resampling.BILINEAR), np.uint8)


def _has_dark_backdrop(source: ImageDataset) -> bool:
    """Whether the median of the outermost pixels of up to 200 images is below `DARK`."""
    edges = []
    for index in np.linspace(0, len(source) - 1, min(len(source), 200)).astype(int):
        image = source.images[index].max(axis=-1)
        edges += [image[0], image[-1], image[:, 0], image[:, -1]]
    return bool(np.median(np.concatenate(edges)) < DARK)


def _cut_out(image: Pixels, dark: bool, generator: np.random.Generator) -> RGBA:
    """uint8 [H, W, 4]: opacity = min(255, 255 * light / OPAQUE), holes up to 2 px closed, tinted by
    0.4 to 1 per channel; on a backdrop that is not dark the whole rectangle, as it is.
    """
    if not dark:
        return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    light = Image.fromarray(image.max(axis=-1))
    closed = light.filter(ImageFilter.MaxFilter(3)).filter(ImageFilter.MinFilter(3))
    opacity = np.minimum(np.asarray(closed, np.float32) * (255 / OPAQUE), 255)
    tinted = image * generator.uniform(0.4, 1.0, 3)
    return np.dstack([tinted, opacity]).round().astype(np.uint8)


def _fit(cut: RGBA, side_px: int) -> RGBA:
    """Cropped, resized to a longer side of ``side_px``, cropped again; empty if nothing is seen."""
    cut = _crop_to_visible(cut)
    if not cut.size:
        return cut
    scale = side_px / max(cut.shape[:2])
    wide, high = (max(1, round(cut.shape[axis] * scale)) for axis in (1, 0))
    resized = Image.fromarray(cut, "RGBA").resize((wide, high), Image.Resampling.BILINEAR)
    return _crop_to_visible(np.array(resized, np.uint8))


def _crop_to_visible(cut: RGBA) -> RGBA:
    seen = cut[..., 3] >= INSIDE
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if not rows.size:
        return cut[:0, :0]
    return cut[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paste(canvas: Pixels, cut: RGBA, left: int, top: int) -> None:
    """canvas = alpha * object + (1 - alpha) * canvas, in place, alpha = opacity / 255."""
    place = canvas[top : top + cut.shape[0], left : left + cut.shape[1]]
    alpha = cut[..., 3:].astype(np.float32) / 255
    place[:] = np.rint(alpha * cut[..., :3] + (1 - alpha) * place).astype(np.uint8)


def covered_share(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection / area of the smaller of two boxes (left, top, right, bottom); in [0, 1]."""
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return float(max(wide, 0) * max(high, 0) / smaller)


def _check(
    count: int,
    size_px: int,
    sources: Sequence[ImageDataset],
    photographs: Sequence[Pixels] | None,
    objects: tuple[int, int],
    side_fraction: tuple[float, float],
) -> None:
    low, high = side_fraction
    checks = (
        (count >= 0, "count", count, "0 or more"),
        (size_px >= 16, "size_px", size_px, "at least 16"),
        (1 <= objects[0] <= objects[1], "objects", objects, "least and most, from 1 up"),
        (0 < low <= high <= 1, "side_fraction", side_fraction, "least and most, in (0, 1]"),
    )
    for good, key, value, rule in checks:
        if not good:
            raise ConfigError(f"scenes {key}={value!r}; it must be {rule}; correct it")
    empty = [source.name for source in sources if not len(source)]
    if not sources or empty:
        raise DataError(
            f"scenes from {len(sources)} sources, of which {len(empty)} are empty; at least 1 "
            "source of images is needed, and each needs an image; pass data sets such as "
            'load_packaged("fashion")[0]'
        )
    if photographs is not None and not len(photographs):
        raise DataError(
            "scenes before 0 photographs; at least 1 is needed; leave photographs out to take "
            "those that ship with scikit-image and scikit-learn"
        )
