"""What calibration images do to int8 scores: one colour, noise, one picture, a few, many.

In: packaged images, the embedded base. Out: a line for each set of images: the root mean square
error of the int8 logits against the float network's, and equal top-1, on 128 test images.

    python benchmarks/calibration.py [--dataset fashion] [--px 32]
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray

from patchdeploy.base import Base
from patchdeploy.data import load_packaged
from patchdeploy.export import Exporter, spread
from patchdeploy.floatnet import FloatRunner
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.variant import quantize_variant
from patchdeploy.training import TrainConfig, train_patch

COUNTS = (1, 2, 4, 8, 16, 32, 64, 256)


def list_sets(real: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """By name, uint8 [N, px, px, 3]."""
    shape = real.shape[1:]
    colours = {"black": (0,), "grey": (128,), "white": (255,), "black, grey, white": (0, 128, 255)}
    sets = {name: np.stack([np.full(shape, v, np.uint8) for v in c]) for name, c in colours.items()}
    sets["noise, 8"] = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    for count in COUNTS:
        sets[f"real, {count}"] = real[np.linspace(0, len(real) - 1, count).astype(int)]
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="fashion", help="a packaged set of images")
    parser.add_argument("--px", type=int, default=32)
    arguments = parser.parse_args()
    base, px = Base.embedded(), arguments.px
    train, test = load_packaged(arguments.dataset)
    train = train.subset(range(400))
    held = test.subset(range(100))
    patch = train_patch(
        base, train, TrainConfig(epochs=2), resolutions=[px], validation=held, quiet=True
    )
    exporter = Exporter.prepare(base, head_capacity=len(patch.classes))
    network = exporter.fold(patch, px)
    images = spread(test, 128).at(px, base.preprocessing)
    expected = np.asarray(FloatRunner(network)(images)).reshape(len(images), -1)
    for name, pixels in list_sets(spread(train, 256).at(px, base.preprocessing)).items():
        ranges = calibrate(network, pixels)
        variant = quantize_variant(exporter.quantized, network, ranges, patch.task, px)
        found = run_integer(exporter.quantized, variant, images).logits
        error = 100 * np.linalg.norm(found - expected) / np.linalg.norm(expected)
        same = 100 * (found.argmax(1) == expected.argmax(1)).mean()
        print(f"{name:20} error {error:5.1f} %, same top-1 {same:5.1f} %", flush=True)


if __name__ == "__main__":
    main()
