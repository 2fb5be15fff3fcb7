"""How far the scores of a self-test are apart in the two machines' arithmetics, by the executor.

In: a demo bundle; the odd networks of the tests, with many patches each; a few deep ones of random
weights. Out: by group and format, the scores compared, how many differ and by how many LSB at most.
Nothing is emulated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from graph_cases import GRAPH_CASES, make_case, random_images
from lower_cases import CLASSES, lowered
from numpy.typing import NDArray

from patchdeploy.bundle import open_bundle
from patchdeploy.fold import fold_patch
from patchdeploy.patchfile.golden import enlarge
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant, unflatten_variant
from patchdeploy.quantize.runtimes import MACHINES
from patchdeploy.quantize.variant import quantize_variant

Run = tuple[str, QuantizedBase, QuantizedVariant, NDArray[np.uint8]]

SEEDS = 50
SIDES = (16, 24)
IMAGES = 8
DEEP = ("mobilenet_v2_0.35", "mobilenet_v3_small", "shufflenet_v2_x1_0", "mnasnet1_0")
"""Of torchvision: residual sums, squeeze and excite, neither, and the widest residual sums."""
DEEP_SIDE = 64


def measure_gaps(bundle: Path) -> dict[str, dict[str, Any]]:
    """By group, then format: {"scores", "different", "largest_lsb"}."""
    found: dict[str, dict[str, Any]] = {}
    for group, *run in [*_demo_runs(bundle), *_odd_runs(), *_deep_runs()]:
        for format_name in MACHINES["arm64"]:
            x86, arm = (
                run_integer(*run, MACHINES[machine][format_name]).codes.astype(int)
                for machine in ("x86-64", "arm64")
            )
            counts = found.setdefault(group, {}).setdefault(
                format_name, {"scores": 0, "different": 0, "largest_lsb": 0}
            )
            gap = np.abs(x86 - arm)
            counts["scores"] += gap.size
            counts["different"] += int(np.count_nonzero(gap))
            counts["largest_lsb"] = max(counts["largest_lsb"], int(gap.max()))
    return found


def _demo_runs(path: Path) -> Iterator[Run]:
    """Each packaged task at each resolution, on the pictures of its self-test."""
    bundle = open_bundle(path)
    base = bundle.reference()
    for task in bundle.tasks:
        patch = bundle.patch(task)
        assert patch.golden is not None
        for px, values in patch.values.items():
            images = enlarge(patch.golden.thumbnails, px)
            yield "packaged tasks", base, unflatten_variant(base, values, task, px), images


def _odd_runs() -> Iterator[Run]:
    """The hand-made networks of tests/graph_cases.py, each with many random patches."""
    for name in GRAPH_CASES:
        for seed in range(SEEDS):
            base, variants = make_case(name, SIDES, seed)
            for px, variant in variants.items():
                yield name, base, variant, random_images(IMAGES, px, seed)


def _deep_runs() -> Iterator[Run]:
    """Networks of random weights, each folded, calibrated and quantised as an export does it."""
    for name in DEEP:
        graph, images = lowered(name), random_images(IMAGES, DEEP_SIDE, 3)
        base, network = quantize_base(graph, CLASSES), fold_patch(graph, None)
        ranges = calibrate(network, images, "minmax")
        yield name, base, quantize_variant(base, network, ranges, "task", DEEP_SIDE), images
