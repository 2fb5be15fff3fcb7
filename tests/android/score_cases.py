"""Scores of LiteRT on the JVM beside those of LiteRT in Python.

In: bundles, random images. Out: for each task and resolution, both languages' scores. The versions
differ: the JVM has TensorFlow Lite's C API of its own build, Python has ai-edge-litert.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from jvm import Patchkit
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.runtime.litert import LiteRTBackend
from patchdeploy.runtime.self_test import score_codes

IMAGES = 20
MOST_LSB = 1
"""Of a score, between the two versions. The mean is known to add in another order in TensorFlow
2.21 (tests/converters/test_tflite_runtimes.py); a score is a sum of means."""

Scores = NDArray[np.float32]


def both_scores(
    kotlin: Patchkit, bundle: Bundle, policy: dict[str, Any], seed: int
) -> Iterator[tuple[str, Scores, Scores, int]]:
    """(case, Python's scores, Kotlin's, the largest difference in LSB) by task and resolution."""
    rng = np.random.default_rng(seed)
    backend = LiteRTBackend(bundle, threads=1)
    manifest = bundle.manifest
    files = manifest.converters["tflite"]
    for task, entry in manifest.tasks.items():
        for px in entry.resolutions:
            images = rng.integers(0, 256, (IMAGES, px, px, 3), np.uint8)
            patch = bundle.patch(task)
            values = patch.values[px]
            ours = backend.load(values, px).run(images)[:, : len(entry.classes)]
            answer = kotlin.ask(
                "scores",
                images.tobytes(),
                base=str(bundle.path / files.file),
                slots=str(bundle.path / files.slots),
                table=str(bundle.path / manifest.coding),
                patch=str(bundle.path / entry.file),
                policy=policy,
                px=px,
                threads=1 + px % 2,
            )
            if "found" not in answer:
                raise RuntimeError(f"{bundle.path.name}, {task} at {px} px: {answer}")
            theirs = np.array(answer["found"], np.int32).view(np.float32)
            table = bundle.coding_table
            codes = [score_codes(one, values, table).astype(np.int32) for one in (ours, theirs)]
            worst = int(np.abs(codes[0] - codes[1]).max())
            yield f"{bundle.path.name}, {task} at {px} px", ours, theirs, worst
