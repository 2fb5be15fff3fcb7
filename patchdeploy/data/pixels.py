"""Pixels as a network wants them, and the one value that says how.

In: ``Pixels`` (uint8 RGB, [H, W, 3], 0..255; `data.decode` makes them). Out: resized squares,
normalised batches, ``Preprocessing``. Why: training, calibration and the run-time Engine must
resize with the very same functions, and none of it may need torch: everything here is numpy and
Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdeploy.errors import ConfigError
from patchdeploy.errors_keys import refuse_unknown_keys

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

LEAST_CROP_FRACTION = 0.1
"""A smaller centre would be cut out of an image of more than ten times the side."""
LARGEST_INPUT_PX = 65_535
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
MOST_STRETCH = 16
"""Pixels of the whole image, resized, to one of its centre; of more the centre alone is resized."""


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


def resize_image(image: Pixels, size_px: int, preprocessing: Preprocessing) -> Pixels:
    """Resize uint8 [H, W, 3] to uint8 [size_px, size_px, 3], bilinear (Pillow, antialiased).

    squash ignores the aspect ratio. crop resizes the shorter side to
    round(size_px / crop_fraction) and keeps the centre. Of a thin image (`MOST_STRETCH`) only the
    centre is resized: the same formula from float32 coordinates, so that values may differ by 1,
    and a line of 4000 x 2 px does not become one of 512,000 x 256.
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
    top, left = (high - size_px) // 2, (wide - size_px) // 2
    whole = Image.fromarray(image)
    if wide * high > MOST_STRETCH * size_px**2:
        across, down = width / wide, height / high
        box = (left * across, top * down, (left + size_px) * across, (top + size_px) * down)
        centre = whole.resize((size_px, size_px), Image.Resampling.BILINEAR, box)
        return np.array(centre, np.uint8)
    pixels = np.array(whole.resize((wide, high), Image.Resampling.BILINEAR))
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
