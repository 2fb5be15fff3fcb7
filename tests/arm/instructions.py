"""Which instructions for int8 products each runtime really ran on an emulated processor.

In: an `Arm` and a bundle. Out: by runtime, how many of each were translated in one inference. qemu
writes what it translates into a pipe, and only counts are kept.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path

from machine import QUIETLY, REPOSITORY, Arm

from patchdeploy.bundle import open_bundle
from patchdeploy.runtime import RUNTIME_FORMATS

PRODUCT = re.compile(r"\b(smlal2?|smull2?|sdot|udot|usdot|smmla|usmmla|ummla)\b")
PROGRAM = """
import sys
import numpy as np
from patchdeploy.runtime import Engine
bundle, runtime, task, px = sys.argv[1:]
with Engine.open(bundle, runtime) as engine:
    engine.logits(np.zeros((1, int(px), int(px), 3), np.uint8), task, int(px))
"""


def count_products(arm: Arm, bundle: Path, work: Path) -> dict[str, dict[str, int]]:
    """By runtime and instruction: how often it was translated (not how often it ran)."""
    opened = open_bundle(bundle)
    task = opened.tasks[0]
    px = opened.task(task).resolutions[0]
    found = {}
    for runtime in RUNTIME_FORMATS:
        pipe = work / f"{arm.processor.name}.pipe"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        command = arm.command(
            *("-c", PROGRAM, bundle.resolve(), runtime, task, px),
            options=("-d", "in_asm", "-D", str(pipe)),
        )
        process = subprocess.Popen([*QUIETLY, *command], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
        counts: Counter[str] = Counter()
        with pipe.open(errors="replace") as lines:
            for line in lines:
                counts.update(PRODUCT.findall(line))
        if process.wait() != 0:
            raise RuntimeError(f"{runtime} failed on {arm.processor.name}")
        pipe.unlink()
        found[runtime] = dict(sorted(counts.items()))
    return found
