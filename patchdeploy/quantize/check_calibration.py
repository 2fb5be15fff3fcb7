"""Whether calibration images, and the ranges that they gave, can stand for what a task will see.

In: pixels, ranges. Out: nothing, a log line, or a typed error. A picture of a single colour, or the
same picture again and again, leaves most activations far below what real images reach: int8 then
cuts them, and scores are wrong without any sign of it (docs/design.md, "Calibration images").
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import ThinCalibrationError
from patchdeploy.graph import Graph, Operator
from patchdeploy.quantize.calibrate import needs_range
from patchdeploy.quantize.ranges import Range

LOGGER = logging.getLogger("patchdeploy.export")
LEAST_PICTURES = 2
"""Different pictures, without those of a single colour, below which nothing is exported."""
FEW_PICTURES = 32
"""Below which export says so."""


def count_pictures(images: NDArray[np.uint8]) -> int:
    """How many different pictures are among ``images``, uint8 [N, H, W, 3], without those whose
    pixels are all the same.
    """
    flat = images.reshape(len(images), -1, images.shape[-1])
    varied = (flat != flat[:, :1]).any(axis=(1, 2))
    return len({hashlib.sha256(one.tobytes()).digest() for one in images[varied]})


def check_pictures(task: str, images: NDArray[np.uint8]) -> None:
    """Check that ``images`` are enough to show ranges; a few are said in the log.

    Raises:
        ThinCalibrationError: fewer than `LEAST_PICTURES` different pictures.
    """
    found = count_pictures(images)
    if found < LEAST_PICTURES:
        raise ThinCalibrationError(
            f"task {task!r}: {len(images)} calibration images hold {found} different pictures, "
            "those of a single colour not counted; activation ranges come from them and need at "
            f"least {LEAST_PICTURES} (64 to 512 are usual); pass the task's training images"
        )
    if found < FEW_PICTURES:
        LOGGER.warning(
            "task %r: %d different calibration images; ranges from fewer than %d may cut what "
            "other images reach (64 to 512 are usual)",
            task,
            found,
            FEW_PICTURES,
        )


def check_ranges(task: str, graph: Graph, ranges: Mapping[str, Range]) -> None:
    """Say in the log which values never changed on any calibration image: their range is a point,
    so whatever else a later image gives there is cut.
    """
    producers: dict[str, Operator] = {op.output: op for op in graph.operators}
    constant = [
        value
        for value, (low, high) in ranges.items()
        if low == high and needs_range(graph, producers.get(value), value)
    ]
    if constant:
        LOGGER.warning(
            "task %r: %d of %d values are the same at every point of every calibration image (%r "
            "first); if other images change them, they are cut; look at the patch, or pass more "
            "images",
            task,
            len(constant),
            len(ranges),
            constant[0],
        )
