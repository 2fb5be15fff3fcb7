"""Pictures in Kotlin and in Python: network inputs, enlarged thumbnails, frames of a camera.

In: a number and a seed. Out: each difference, to the byte.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
from comparison import Comparison
from jvm import Patchkit
from yuv_frames import BAD, Frame, Rng, frame_pixels, random_frame, tight_frame

from patchdeploy.data import Preprocessing, image_pixels, resize_image
from patchdeploy.patchfile.golden import enlarge


def compare_images(comparison: Comparison, kotlin: Patchkit, count: int, seed: int) -> None:
    """Network inputs from pictures of many sizes and forms; enlarged thumbnails."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        image, px, preprocessing = random_picture(rng)
        height, width = image.shape[:2]
        channels = 1 if image.ndim == 2 else image.shape[2]
        fields = {"width": width, "height": height, "channels": channels, "px": px}
        fields["resize"] = preprocessing.resize
        fields["crop_fraction"] = repr(preprocessing.crop_fraction)
        answer = kotlin.ask("resize", image.tobytes(), **fields)
        expected = resize_image(image_pixels(image), px, preprocessing)
        digest = hashlib.sha256(np.ascontiguousarray(expected)).hexdigest()
        comparison.check("images", f"{number} of seed {seed}: {fields}", digest, answer["sha256"])
        thumbnail = rng.integers(0, 256, (1, 8, 8, 3), np.uint8)
        answer = kotlin.ask("enlarge", thumbnail.tobytes(), px=px)
        digest = hashlib.sha256(enlarge(thumbnail, px)).hexdigest()
        comparison.check("thumbnails", f"{px} px", digest, answer["sha256"])


def random_picture(rng: Rng) -> tuple[Any, int, Preprocessing]:
    """Grey, RGB or RGBA of any shape, thin ones too; a side; squash or crop."""
    height, width = (int(np.exp(rng.uniform(0, 6))) for _ in range(2))
    if rng.random() < 0.1:
        height, width = [(1, 500), (700, 2), (64, 64), (1, 1)][rng.integers(4)]
    shape = [(height, width), (height, width, 3), (height, width, 4)][rng.integers(3)]
    image = rng.integers(0, 256, shape, np.uint8)
    if rng.random() < 0.3:
        image[...] = np.where(image > 127, 255, 0)
    resize = "crop" if rng.random() < 0.5 else "squash"
    fraction = float(rng.choice([1.0, 0.875, 0.5, 0.1, rng.uniform(0.1, 1)]))
    px = int(rng.choice([1, 2, 16, 24, 63, 64, 97, 224]))
    return image, px, replace(Preprocessing(), resize=resize, crop_fraction=fraction)  # type: ignore[arg-type]


def compare_frames(comparison: Comparison, kotlin: Patchkit, count: int, seed: int) -> None:
    """A camera's frames as RGB; those that are wrong are refused."""

    def ask(frame: Frame) -> dict[str, Any]:
        return kotlin.ask("yuv", frame.data, **frame.fields())

    rng = np.random.default_rng(seed)
    for number in range(count):
        frame = random_frame(rng)
        pixels = np.ascontiguousarray(frame_pixels(frame))
        expected = {
            "size": [pixels.shape[1], pixels.shape[0]],
            "sha256": hashlib.sha256(pixels).hexdigest(),
        }
        case = f"{number} of seed {seed}: {frame.fields()}"
        comparison.check("frames of a camera", case, expected, ask(frame))
    for case, spoil in BAD.items():
        found = ask(spoil(tight_frame()))
        comparison.check("bad frames", case, {"code": "ConfigException"}, found)
