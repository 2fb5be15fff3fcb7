"""Private memory of a process that holds K tasks ready to run.

In: a bundle, or whole model files. Out: bytes by holder and K. Every holder is a process of its
own that imports the same packages, loads task after task and runs each once; the figure is its
private bytes at K less those before the first. Whole models are files of their own, so that the
page cache shares nothing that it would not share on a phone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from subjects import Subject

from patchdeploy.measure import Memory, probe_memory

ENGINE_MARKS = """
import json
import numpy as np
import onnxruntime, ai_edge_litert.interpreter
from patchdeploy.runtime import Engine
from patchdeploy.bundle import open_bundle
path, runtime, mode, counts = arguments[0], arguments[1], arguments[2], json.loads(arguments[3])
mark("start")
engine = Engine.open(open_bundle(path, verify_hashes=False), runtime, mode=mode)
px = engine.bundle.manifest.resolutions[0]
image = np.zeros((1, px, px, 3), np.uint8)
for k, task in enumerate(engine.tasks[: counts[-1]], 1):
    engine.logits(image, task)
    if k in counts:
        mark(str(k))
"""
FILES_MARKS = """
import json, sys
import numpy as np
import onnxruntime
from ai_edge_litert.interpreter import Interpreter
sys.path[:0] = [arguments[0], arguments[0] + "/peers"]
from runners import open_session
runtime, ours = arguments[1], arguments[2] == "ours"
counts, files = map(json.loads, arguments[3:5])
mark("start")
held = []
for k, file in enumerate(files, 1):
    if runtime == "litert":
        model = Interpreter(model_path=file, num_threads=1)
        model.allocate_tensors()
        model.invoke()
    else:
        model = open_session(file, 1, ours)
        one = model.get_inputs()[0]
        shape = [1 if type(n) is not int else n for n in one.shape]
        if ours:
            shape = [1, *[int(arguments[5])] * 2, 3]
        dtype = np.uint8 if ours else np.float32
        model.run(None, {one.name: np.zeros(shape, dtype)})
    held.append(model)
    if k in counts:
        mark(str(k))
"""


def measure_memory(
    subject: Subject,
    bundle: Path,
    runtime: str,
    files: dict[str, list[Path]],
    counts: Sequence[int],
    scratch: Path,
) -> dict[str, dict[str, int]]:
    """Private bytes over those at the start, by holder and K."""
    wanted = json.dumps(list(counts))
    probes = {
        "patchdeploy, resident": probe_memory(
            ENGINE_MARKS, [str(bundle), runtime, "resident", wanted]
        )
    }
    if runtime == "onnxruntime":
        probes["patchdeploy, per run"] = probe_memory(
            ENGINE_MARKS, [str(bundle), runtime, "per_run", wanted]
        )
    for name, paths in files.items():
        copies = copy_files(paths, counts[-1], scratch)
        probes[name] = probe_memory(
            FILES_MARKS,
            [
                str(Path(__file__).resolve().parent),
                runtime,
                "ours" if name.startswith("patchdeploy") else "peer",
                wanted,
                json.dumps([str(path) for path in copies]),
                str(subject.px),
            ],
        )
        for path in copies:
            path.unlink()
    return {name: grown(marks, counts) for name, marks in probes.items()}


def copy_files(paths: Sequence[Path], count: int, scratch: Path) -> list[Path]:
    """``count`` files of their own, so that no pages are shared by accident."""
    copies = []
    for k in range(count):
        source = paths[k % len(paths)]
        copy = scratch / f"copy_{k}{source.suffix}"
        copy.write_bytes(source.read_bytes())
        copies.append(copy)
    return copies


def grown(marks: dict[str, Memory], counts: Sequence[int]) -> dict[str, int]:
    """Private bytes at each K less those at the start."""
    return {str(k): marks[str(k)].private_bytes - marks["start"].private_bytes for k in counts}
