"""What each machine is asked: every score of a bundle on both runtimes, then `verify`.

``on_arm.py BUNDLE IMAGES OUT``: IMAGES is a .npz of uint8 [N, px, px, 3] by "TASK.PX"; OUT.npz
takes float32 [N, classes] by "RUNTIME.TASK.PX", OUT.json the machine and the report. Under qemu and
without it the same file runs.
"""

from __future__ import annotations

import json
import platform
import sys
from importlib.metadata import version

import numpy as np

from patchdeploy.runtime import RUNTIME_FORMATS, Engine
from patchdeploy.verify import verify_bundle


def main(bundle: str, images: str, out: str) -> None:
    asked = np.load(images)
    scores = {}
    for runtime in RUNTIME_FORMATS:
        with Engine.open(bundle, runtime) as engine:
            for key in asked.files:
                task, px = key.rsplit(".", 1)
                scores[f"{runtime}.{key}"] = engine.logits(asked[key], task, int(px))
    np.savez(f"{out}.npz", **scores)
    found = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "ai-edge-litert": version("ai-edge-litert"),
        "onnxruntime": version("onnxruntime"),
        "verify": verify_bundle(bundle).to_json(),
    }
    with open(f"{out}.json", "w") as file:  # noqa: PTH123
        json.dump(found, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
