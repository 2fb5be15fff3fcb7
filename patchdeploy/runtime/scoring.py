"""Scores of slot values on a set of images: what choosing the coding steps needs, fast.

In: a bundle (tasks or none), images by resolution. Out: a function from slot values to scores. The
first runtime that is installed runs them; without one, the integer executor, which says the same
and takes ten times as long.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.coding.choose_steps import Score
from patchdeploy.errors import MissingExtraError
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import unflatten_variant
from patchdeploy.runtime.backend import Backend
from patchdeploy.runtime.choose import RUNTIME_FORMATS, make_backend
from patchdeploy.slots import PatchValues


def make_scorer(bundle: Bundle, images: Mapping[int, NDArray[np.uint8]], classes: int) -> Score:
    """A function (resolution, slot values) -> float32 [N, classes] on ``images``.

    Args:
        images: by resolution, uint8 [N, px, px, 3].
    """
    backend = _open_backend(bundle)
    base = bundle.reference() if backend is None else None

    def score(resolution: int, values: PatchValues) -> NDArray[np.float32]:
        pixels = images[resolution]
        if backend is not None:
            return backend.load(values, resolution).run(pixels)[:, :classes]
        assert base is not None
        variant = unflatten_variant(base, values, "", resolution)
        return run_integer(base, variant, pixels).logits[:, :classes]

    return score


def _open_backend(bundle: Bundle) -> Backend | None:
    for runtime, format_name in RUNTIME_FORMATS.items():
        if format_name in bundle.formats:
            try:
                return make_backend(bundle, runtime, 1, "resident", None)
            except MissingExtraError:
                continue
    return None
