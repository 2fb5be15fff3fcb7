"""An image as an app has it, made into the network's input.

In: a path, the bytes of a file, an open file, a Pillow image, an array or a tensor, of any size.
Out: uint8 [px, px, 3] RGB, the same as training and calibration see.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchdeploy.data import (
    OneImage,
    Pixels,
    Preprocessing,
    find_images,
    image_pixels,
    is_file_like,
    readable_suffixes,
    resize_image,
)
from patchdeploy.errors import DataError

__all__ = ["OneImage", "Pixels", "check_batch", "image_paths", "prepare_image", "split_batch"]


def split_batch(images: Any) -> tuple[list[Any], bool]:
    """(the images, whether ``images`` is a single one).

    A list, another iterable, or an array or tensor of 4 dimensions are several; anything else is
    one.

    Raises:
        DataError: a mapping, whose keys would be taken for images.
    """
    if isinstance(images, Mapping):
        raise DataError(
            f"images are a {type(images).__name__}; one image or a list of images is classified; "
            "give its values"
        )
    is_array = hasattr(images, "ndim") and hasattr(images, "shape")
    if is_array and images.ndim != 4:
        return [images], True
    if is_file_like(images) or hasattr(images, "getbands") or not hasattr(images, "__iter__"):
        return [images], True
    return list(images), False


def prepare_image(image: Any, resolution: int, preprocessing: Preprocessing) -> Pixels:
    """uint8 [px, px, 3] of one image of any size, in any form that `image_pixels` takes.

    Raises:
        DataError: it cannot be read, or is no image.
    """
    return resize_image(image_pixels(image, "the image"), resolution, preprocessing)


def check_batch(images: Pixels, resolution: int) -> None:
    """Check that ``images`` are uint8 [N, px, px, 3].

    Raises:
        DataError: they are not.
    """
    px = resolution
    if not isinstance(images, np.ndarray):
        raise DataError(
            f"images are a {type(images).__name__}; at {px} px they must be a numpy array uint8 "
            f"[N, {px}, {px}, 3] RGB; convert them, or use classify, which takes any image"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (px, px, 3):
        raise DataError(
            f"images are {images.dtype} {images.shape}; at {px} px they must be uint8 "
            f"[N, {px}, {px}, 3] RGB; resize them, or use classify, which does"
        )


def image_paths(folder: str | Path) -> list[Path]:
    """Every image file below ``folder``, sorted; `data.folders` has the rule.

    Raises:
        DataError: no such folder, or no image in it.
    """
    found = find_images(folder)
    found.say_passed_over()
    if not found.paths:
        raise DataError(
            f"folder {folder} holds no image; it needs at least 1 of "
            f"{', '.join(readable_suffixes())}; correct the path"
        )
    return list(found.paths)
