"""One image as uint8 RGB, and the one value that says how a network wants it.

In: an image file, a Pillow image, a numpy array or a torch tensor. Out: ``Pixels`` (uint8 RGB,
[H, W, 3], 0..255), resized squares, normalised batches, ``Preprocessing``. Why: training,
calibration and the run-time Engine must decode and resize with the very same functions, and none
of it may need torch: everything here is numpy and Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from patchdeploy.errors import ConfigError, DataError, UnreadableImageError
from patchdeploy.errors_keys import refuse_unknown_keys

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
LEAST_CROP_FRACTION = 0.1
"""A smaller centre would be cut out of an image of more than ten times the side."""
LARGEST_INPUT_PX = 65_535
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises on damaged bytes."""


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
        mean, std, fraction = self.mean, self.std, self.crop_fraction
        sound_std = _are_numbers(std, 3) and min(std) > 0
        sound_fraction = _are_numbers([fraction], 1) and LEAST_CROP_FRACTION <= fraction <= 1
        sound_size = type(self.input_size) is int and 0 < self.input_size <= LARGEST_INPUT_PX
        checks = (
            (_are_numbers(mean, 3), "mean", mean, "three finite numbers"),
            (sound_std, "std", std, "three positive finite numbers"),
            (sound_size, "input_size", self.input_size, f"pixels, 1 to {LARGEST_INPUT_PX}"),
            (self.channel_order in ("RGB", "BGR"), "channel_order", self.channel_order, "RGB, BGR"),
            (self.resize in ("squash", "crop"), "resize", self.resize, "squash or crop"),
            (sound_fraction, "crop_fraction", fraction, f"in [{LEAST_CROP_FRACTION}, 1]"),
        )
        for good, key, value, rule in checks:
            if not good:
                raise ConfigError(
                    f"preprocessing {key}={value!r:.80}; it must be {rule}; correct it"
                )

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        values = asdict(self)
        return {**values, "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of ``to_json``.

        Raises:
            ConfigError: a key that is not a field, or a value outside its rule.
        """
        refuse_unknown_keys(values, [one.name for one in fields(cls)], "unknown preprocessing key")
        triples: dict[str, Any] = {
            key: tuple(float(one) for one in values[key])
            for key in ("mean", "std")
            if _are_numbers(values.get(key), 3)  # else refused as it is
        }
        return cls(**{**values, **triples})


def _are_numbers(values: Any, count: int) -> bool:
    """Whether ``values`` is a list or tuple of ``count`` finite numbers; true is none."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(one, int | float | np.integer | np.floating) for one in values)
        and not any(isinstance(one, bool) for one in values)
        and all(abs(one) <= _LARGEST_FLOAT32 for one in values)  # NaN is not, either
    )


def load_image(path: Path | str) -> Pixels:
    """Decode one image file to uint8 [H, W, 3] RGB, as `image_pixels` does.

    Raises:
        UnreadableImageError: missing, truncated, or not an image.
    """
    try:
        with Image.open(path) as opened:
            return _decode(opened)
    except DECODER_ERRORS as error:
        raise UnreadableImageError(
            f"cannot read image {path}: {error}; it must be a whole file in a format that Pillow "
            "decodes; convert it again or remove it"
        ) from error


def image_pixels(image: Any, what: str) -> Pixels:
    """Any usual image in memory as uint8 [H, W, 3] RGB.

    EXIF orientation is applied, transparency is laid over white, 16-bit samples of Pillow images
    keep their upper 8 bits, grey and palette images become RGB.

    Args:
        image: a Pillow image; a numpy array uint8 [H, W] or [H, W, C]; a torch tensor uint8 [H, W]
            or [C, H, W] (any device); C is 1 (grey), 3 (RGB) or 4 (RGBA).
        what: its name in an error.

    Raises:
        DataError: another type, dtype or shape.
    """
    if isinstance(image, Image.Image):
        return _decode(image)
    is_tensor = hasattr(image, "detach") and hasattr(image, "cpu")
    array = image.detach().cpu().numpy() if is_tensor else image
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    _check_array(array, is_tensor, what)
    if array.ndim == 2 or array.shape[2] == 1:
        return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2)
    if array.shape[2] == 4:
        return _decode(Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(array)


def _decode(image: Image.Image) -> Pixels:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        samples = np.asarray(image, np.float64)
        upper = samples / 256.0 if image.mode != "F" else samples
        return np.repeat(np.clip(upper, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if "A" in image.getbands() or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return np.array(image.convert("RGB"), np.uint8)


def _check_array(array: Any, is_tensor: bool, what: str) -> None:
    layout = "[H, W] or [C, H, W]" if is_tensor else "[H, W] or [H, W, C]"
    rule = (
        "it must be a Pillow image, a numpy array uint8 [H, W] or [H, W, C], or a torch tensor "
        "uint8 [H, W] or [C, H, W]"
    )
    if not isinstance(array, np.ndarray):
        raise DataError(f"{what} is a {type(array).__name__}; {rule}; convert it")
    if array.dtype != np.uint8:
        raise DataError(
            f"{what} holds {array.dtype} values; {rule}; leave ToTensor and Normalize out of the "
            "data set's transform (patchdeploy scales and normalises by itself), or convert it"
        )
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shaped or 0 in array.shape:
        shown = array.transpose(2, 0, 1) if is_tensor and array.ndim == 3 else array
        raise DataError(
            f"{what} has shape {list(shown.shape)}; it must be {layout} with 1, 3 or 4 channels "
            "and no side of 0; convert it"
        )


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
