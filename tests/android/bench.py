"""Times of patchkit on the JVM at hand, for a patch of MobileNetV2's size.

In: the jar that `make android` builds. Out: JSON, by runtime: milliseconds of opening the bundle,
of checking and decoding the patch, of laying it over the base, of preparing an image; of a swap to
what is loaded, and of one that loads beside the loading of the same model as a file alone. The
network has MobileNetV2 1.0's structure and random numbers, 10 classes and one resolution; the patch
is coded in steps, as trained ones are.

    python tests/android/bench.py
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "faults")]

import case_folders  # noqa: E402, F401  (adds the folders of the cases)
import numpy as np  # noqa: E402
from graph_cases import make_base, make_variant, mobilenet_v2  # noqa: E402
from jvm import JAR  # noqa: E402

from patchdeploy.bundle import Bundle, add_task, create_bundle  # noqa: E402
from patchdeploy.coding.grid import CodingSteps  # noqa: E402
from patchdeploy.coding.layout import masked_head_rows  # noqa: E402
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys  # noqa: E402
from patchdeploy.patchfile.pack import Release, Signer  # noqa: E402
from patchdeploy.patchfile.values import PatchFile  # noqa: E402
from patchdeploy.quantize.model import flatten_variant  # noqa: E402

PX, CLASSES = 96, 10
SCALE_STEP, BIAS_STEP = 4, -6


def main() -> int:
    """Make the bundle, run the benchmark, print what it prints."""
    key = SigningKey.new()
    trusted = TrustedKeys((key.public,), threshold=1)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        base = make_base(mobilenet_v2(CLASSES), 0)
        bundle = create_bundle(folder / "bundle", base, resolutions=(PX,), trusted=trusted)
        table = bundle.coding_table
        values = flatten_variant(base, make_variant(base, PX, 1))
        values = masked_head_rows(values, CLASSES, table.layout)
        labels = tuple(f"class {k}" for k in range(CLASSES))
        count = len(table.convs)
        bundle = add_task(
            bundle.path,
            PatchFile("task", labels, table.sha256, {PX: values}),
            steps=CodingSteps((SCALE_STEP,) * count, (BIAS_STEP,) * count),
            release=Release(1, signers=(Signer(key, 0),)),
        )
        found = {name: bench(bundle, name) for name in ("litert", "onnxruntime")}
    kernels = int(np.sum([one.rows * one.taps for one in table.convs if one.owned]))
    found["base"] = {"rows": table.layout.rows, "owned_elements": kernels, "classes": CLASSES}
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


def bench(bundle: Bundle, runtime: str) -> dict[str, Any]:
    """What the command prints."""
    command = ["java", "-jar", str(JAR), "bench", str(bundle.path), "task", runtime]
    done: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True).stdout
    )
    return done


if __name__ == "__main__":
    sys.exit(main())
