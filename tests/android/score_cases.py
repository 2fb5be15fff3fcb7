"""Scores of the Engine in Kotlin beside those of the Engine in Python, over both runtimes.

In: bundles, random pictures. Out: for each task and resolution, both languages' scores. Versions of
a runtime differ: the JVM has TensorFlow Lite's C API and ONNX Runtime of its own build.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jvm import Patchkit
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.runtime import Engine
from patchdeploy.runtime.self_test import score_codes

IMAGES, WIDTH, HEIGHT = 20, 40, 30
MOST_LSB = {"litert": 1, "onnxruntime": 0}
"""Of a score, between the two versions. The mean is known to add in another order in TensorFlow
2.21 (tests/converters/test_tflite_runtimes.py); a score is a sum of means."""

Scores = NDArray[np.float32]


def both_scores(
    kotlin: Patchkit, bundle: Bundle, runtime: str, seed: int
) -> Iterator[tuple[str, Scores, Scores, int]]:
    """(case, Python's scores, Kotlin's, the largest difference in LSB) by task and resolution."""
    rng = np.random.default_rng(seed)
    with Engine.open(bundle, runtime) as engine:
        for task, entry in bundle.manifest.tasks.items():
            for px in entry.resolutions:
                images = rng.integers(0, 256, (IMAGES, HEIGHT, WIDTH, 3), np.uint8)
                ours = np.stack([one.scores for one in engine.classify(list(images), task, px)])
                answer = kotlin.ask(
                    "engine",
                    images.tobytes(),
                    bundle=str(bundle.path),
                    runtime=runtime,
                    threads=1 + px % 2,
                    task=task,
                    px=px,
                    width=WIDTH,
                    height=HEIGHT,
                )
                if "found" not in answer:
                    raise RuntimeError(f"{bundle.path.name}, {task} at {px} px: {answer}")
                theirs = np.array([bits for _, bits in answer["found"]], np.int32).view(np.float32)
                values, table = engine.patch_values(task, px)
                codes = [score_codes(one, values, table).astype(int) for one in (ours, theirs)]
                worst = int(np.abs(codes[0] - codes[1]).max())
                yield f"{bundle.path.name}, {task} at {px} px", ours, theirs, worst
