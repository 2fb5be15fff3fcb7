"""Scores of two machines and of the executor, compared in steps of the head's output.

In: .npz files of `on_arm.py`. Out: counts by runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle, open_bundle
from patchdeploy.data import load_packaged
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import unflatten_variant
from patchdeploy.quantize.runtimes import arithmetic_of
from patchdeploy.runtime import RUNTIME_FORMATS
from patchdeploy.verify.images import synthetic_images

REAL = 24
"""Test images of each task, evenly through its set."""

Scores = Mapping[str, NDArray[np.float32]]


def make_images(path: Path, out: Path) -> Path:
    """uint8 [N, px, px, 3] by "TASK.PX": real, synthetic, and four extremes; the file's name."""
    bundle = open_bundle(path)
    found = {}
    for task in bundle.tasks:
        _, test = load_packaged(task)
        real = test.subset(np.linspace(0, len(test) - 1, REAL).astype(int))
        for px in bundle.task(task).resolutions:
            preprocessing = bundle.manifest.preprocessing
            parts = [one.at(px, preprocessing) for one in (real, synthetic_images(px))]
            found[f"{task}.{px}"] = np.concatenate([*parts, _extremes(px)])
    np.savez_compressed(out, **found)
    return out


def _extremes(px: int) -> NDArray[np.uint8]:
    """Black, white, noise and a chessboard of single pixels."""
    board = (np.indices((px, px)).sum(0) % 2 * 255).astype(np.uint8)
    noise = np.random.default_rng(1).integers(0, 256, (px, px, 3), np.uint8)
    flat = [np.full((px, px, 3), value, np.uint8) for value in (0, 255)]
    return np.stack([*flat, noise, np.repeat(board[..., None], 3, axis=2)])


def executor_scores(path: Path, images: Path) -> Scores:
    """The executor's, as arm64 rounds, by "RUNTIME.TASK.PX"."""
    bundle, asked = open_bundle(path), np.load(images)
    base, found = bundle.reference(), {}
    for runtime, format_name in RUNTIME_FORMATS.items():
        for key in asked.files:
            task, px = key.rsplit(".", 1)
            variant = unflatten_variant(base, bundle.patch(task).values[int(px)], task, int(px))
            result = run_integer(base, variant, asked[key], arithmetic_of(format_name, "arm64"))
            found[f"{runtime}.{key}"] = result.logits[:, : len(bundle.task(task).classes)]
    return found


def compare_scores(path: Path, there: Path, here: Path, executor: Scores) -> dict[str, Any]:
    """By runtime: how many scores, how many equal those of x86-64 and the executor's to the bit."""
    bundle, arm, x86 = open_bundle(path), np.load(there), np.load(here)
    found = {}
    for runtime in RUNTIME_FORMATS:
        keys = [key for key in arm.files if key.startswith(f"{runtime}.")]
        if not keys:
            continue
        others: dict[str, Scores] = {"x86-64": x86, "executor": executor}
        found[runtime] = {
            "scores": sum(arm[key].size for key in keys),
            "images": sum(len(arm[key]) for key in keys),
            **{name: _count(bundle, keys, arm, other) for name, other in others.items()},
        }
    return found


def _count(bundle: Bundle, keys: list[str], arm: Scores, other: Scores) -> dict[str, int]:
    gaps = [np.abs(arm[key] - other[key]) / _step(bundle, key) for key in keys]
    best = [arm[key].argmax(1) == other[key].argmax(1) for key in keys]
    return {
        "equal": int(sum((arm[key] == other[key]).sum() for key in keys)),
        "equal_top1": int(sum(one.sum() for one in best)),
        "largest_lsb": int(max(np.rint(gap).max() for gap in gaps)),
    }


def _step(bundle: Bundle, key: str) -> float:
    """One LSB of the head's output."""
    _, task, px = key.split(".")
    values = bundle.patch(task, int(px)).values[int(px)]
    return float(values.activation_scale[bundle.manifest.layout.head_output])
