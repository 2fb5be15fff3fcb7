"""Folders of small images for the tests of the data stage."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise_image(seed: int, height: int = 12, width: int = 10) -> np.ndarray:
    """uint8 [H, W, 3], another for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise_folder(root: Path, counts: dict[str, int]) -> Path:
    """A folder per class; image ``index`` of the sorted set is ``noise_image(index)``."""
    index = 0
    for name in sorted(counts):
        (root / name).mkdir(parents=True)
        for file in sorted(f"{position}.png" for position in range(counts[name])):
            Image.fromarray(noise_image(index)).save(root / name / file)
            index += 1
    return root
