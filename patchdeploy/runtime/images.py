"""An image as an app has it, made into the network's input.

In: a path, a Pillow image or an array, of any size. Out: uint8 [px, px, 3] RGB.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdeploy.data import IMAGE_SUFFIXES, Preprocessing, load_image, resize_image
from patchdeploy.errors import DataError

Pixels = NDArray[np.uint8]
OneImage = str | Path | Image.Image


def is_one_image(image: Any) -> bool:
    """Whether ``image`` is one (a path, a Pillow image, an array of 3 dimensions), or several."""
    return isinstance(image, str | Path | Image.Image) or (
        isinstance(image, np.ndarray) and image.ndim == 3
    )


def prepare_image(image: Any, resolution: int, preprocessing: Preprocessing) -> Pixels:
    """uint8 [px, px, 3] of one image of any size: a path, a Pillow image, uint8 [H, W, 3] RGB.

    Raises:
        DataError: it cannot be read, or is not uint8 RGB.
    """
    if isinstance(image, str | Path):
        pixels = load_image(image)
    elif isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB"), np.uint8)
    else:
        pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise DataError(
            f"image is {pixels.dtype} {pixels.shape}; it must be uint8 [H, W, 3] RGB; convert it"
        )
    return resize_image(pixels, resolution, preprocessing)


def check_batch(images: Pixels, resolution: int) -> None:
    """Check that ``images`` are uint8 [N, px, px, 3].

    Raises:
        DataError: they are not.
    """
    px = resolution
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (px, px, 3):
        raise DataError(
            f"images are {images.dtype} {images.shape}; at {px} px they must be uint8 "
            f"[N, {px}, {px}, 3] RGB; resize them, or use classify, which does"
        )


def image_paths(folder: str | Path) -> list[Path]:
    """Every image file below ``folder``, sorted.

    Raises:
        DataError: no such folder, or no image in it.
    """
    paths = sorted(
        path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
    )
    if not paths:
        raise DataError(
            f"folder {folder} holds no image; it needs at least 1 of "
            f"{', '.join(IMAGE_SUFFIXES)}; correct the path"
        )
    return paths
