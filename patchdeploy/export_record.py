"""How far a task's int8 is from its float network: measured at export, and kept in the bundle.

In: a task's decoded values, its calibration images, its float scores. Out: a `FloatRecord`: float
scores on thumbnails, and int8 against float on a few of the images. `verify` compares with the
first without labels and without the float network, and shows the second.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.bundle.float_scores import FloatRecord, compare_scores
from patchdeploy.data import ImageDataset
from patchdeploy.lower import FloatScores
from patchdeploy.patchfile.golden import enlarge
from patchdeploy.patchfile.pack import make_thumbnails
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.calibrate import spread
from patchdeploy.runtime.scoring import make_scorer

MEASURED_IMAGES = 8
"""Calibration images, at most, that int8 is measured on, and as many thumbnails."""

ScoreFloat = Callable[[int, NDArray[np.uint8]], FloatScores]
"""(resolution, uint8 [n, px, px, 3]) -> the task's float scores."""


def measure_task(
    bundle: Bundle,
    patch_file: PatchFile,
    calibration: ImageDataset,
    score_float: ScoreFloat,
    progress: Callable[[str], None] | None = None,
) -> FloatRecord:
    """Measure ``patch_file`` over the base of ``bundle``, before it is added.

    Raises:
        LoweringMismatchError: module and graph do not agree on these images.
    """
    preprocessing, sides = bundle.manifest.preprocessing, sorted(patch_file.values)
    chosen = spread(calibration, MEASURED_IMAGES)
    thumbnails = make_thumbnails(chosen.at(max(sides), preprocessing))
    pictures = {
        px: np.concatenate([enlarge(thumbnails, px), chosen.at(px, preprocessing)]) for px in sides
    }
    score_int8 = make_scorer(bundle, pictures, len(patch_file.classes))
    few = len(thumbnails)
    module, graph, measured, kept = {}, {}, {}, {}
    for px in sides:
        both, found = score_float(px, pictures[px]), score_int8(px, patch_file.values[px])
        module[px], graph[px] = both.module[:few], both.graph[:few]
        kept[px] = compare_scores(both.module[:few], found[:few])
        measured[px] = compare_scores(both.module[few:], found[few:])
        if progress is not None:
            note = "; LOW: int8 answers otherwise than float" if measured[px].is_unlike else ""
            progress(f"{patch_file.task} at {px} px, int8 against float: {measured[px]}{note}")
    return FloatRecord(thumbnails, module, graph, measured, kept)
