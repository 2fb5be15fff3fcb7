"""Runs .tflite files in a Python of its own: RUNTIME IN.npz KERNELS=OUT.npz ...

IN holds ``<case>/model`` (uint8) and ``<case>/<signature>`` (images, uint8 [N, px, px, 3]);
OUT gets ``<case>/<signature>/<output name>`` [N, ...]. RUNTIME is tflite_runtime, tensorflow or
litert, KERNELS default, builtin or reference. Needs numpy and the runtime, nothing else.
"""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

MODULES = {
    "tflite_runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow.lite.python.interpreter",
    "litert": "ai_edge_litert.interpreter",
}
RESOLVERS = {
    "default": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}


def run_models(module: Any, kernels: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every output of every signature, each image on its own, on one thread."""
    results = {}
    for name in given:
        case, signature = name.split("/")
        if signature == "model":
            continue
        interpreter = module.Interpreter(
            model_content=given[f"{case}/model"].tobytes(),
            num_threads=1,
            experimental_op_resolver_type=getattr(module.OpResolverType, RESOLVERS[kernels]),
        )
        run = interpreter.get_signature_runner(signature)
        outputs = [run(image=image[None]) for image in given[name]]
        for key in outputs[0]:
            results[f"{name}/{key}"] = np.concatenate([output[key] for output in outputs])
    return results


def main(runtime: str, source: str, *jobs: str) -> None:
    module = importlib.import_module(MODULES[runtime])
    with np.load(source) as arrays:
        given = {name: arrays[name] for name in arrays.files}
    for job in jobs:
        kernels, target = job.split("=", 1)
        with Path(target).open("wb") as file:
            np.savez(file, **run_models(module, kernels, given))


if __name__ == "__main__":
    main(*sys.argv[1:])
