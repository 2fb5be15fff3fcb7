"""Row 23 of the fault table: what an Engine runs is what was signed, and a fork harms nothing.

In: a bundle. Out: base files with one other byte each, every hash of the manifest made right, of
which no Engine may give a score; and processes that fork while their threads classify, whose
children may get an error or the right answer, and never hang.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import hostile_bundles
import numpy as np
from bundle_cases import make_bundle
from case_folders import ROOT
from graph_cases import random_images
from tried import Progress, Told, scaled

from patchdeploy.bundle import open_bundle
from patchdeploy.errors import PatchdeployError, PatchRefusedError
from patchdeploy.runtime import Engine
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
CHANGES, FORK_ROUNDS = 300, 15
FORK_WAYS = (
    ("litert", "resident", 2, 3),
    ("onnxruntime", "resident", 2, 0),
    ("onnxruntime", "resident", 1, 3),
    ("onnxruntime", "per_run", 2, 3),
)
"""Runtime, mode, threads of the runtime, threads that classify."""


def put_base(folder: Path, name: str, model: bytes, table: SlotTable) -> None:
    """Another base file of format ``name``, with every unsigned hash in the bundle right."""
    table = replace(table, base_sha256=sha256_hex(model), base_bytes=len(model))
    manifest = json.loads((folder / "manifest.json").read_text())
    for path, data in ((f"base.{name}", model), (f"base.{name}.slots.json", table.to_json())):
        (folder / path).write_bytes(data)
        manifest["files"][path].update(sha256=sha256_hex(data), bytes=len(data))
    hostile_bundles.write_manifest(folder, manifest)


def try_changed_bases(scale: float, folder: Path, progress: Progress) -> Told:
    """One byte of a base file changed at random places that no slot covers."""
    bundle = make_bundle(folder / "bundle", signed=True)
    count, rng, refused = scaled(CHANGES, scale), np.random.default_rng(0), Counter[str]()
    for part, (runtime, name) in enumerate(FORMATS.items()):
        base, table = bundle.base(name)
        place = Path(shutil.copytree(bundle.path, folder / f"changed {name}"))
        free = np.ones(len(base), bool)
        for slot in table.slots:
            free[slot.offset_bytes : slot.offset_bytes + slot.length_bytes] = False
        for number, offset in enumerate(rng.choice(np.flatnonzero(free), count, replace=False)):
            model = bytearray(base)
            model[offset] ^= 1 << int(rng.integers(8))
            put_base(place, name, bytes(model), table)
            refused[_run_changed(place, runtime, int(offset))] += 1
            progress((part + (number + 1) / count) / len(FORMATS))
    listed = ", ".join(f"{code} {n:,}" for code, n in refused.most_common())
    return Told(
        f"{count:,} base files of each runtime with one bit changed together with the manifest",
        f"no Engine gave a score: {listed}",
        2 * count,
    )


def _run_changed(place: Path, runtime: str, offset: int) -> str:
    try:
        with Engine.open(open_bundle(place), runtime) as engine:
            engine.logits(random_images(1, 24), "first", 24)
    except PatchRefusedError as error:
        return error.code
    except PatchdeployError as error:
        return type(error).__name__
    raise AssertionError(f"{runtime} ran a base file whose byte {offset} was changed")


def try_forks(scale: float, folder: Path, progress: Progress) -> Told:
    """Children that use the engine, open their own, and drop it, each to its usual end."""
    bundle = make_bundle(folder / "bundle")
    rounds = scaled(FORK_ROUNDS, scale)
    for number, way in enumerate(FORK_WAYS, 1):
        command = [sys.executable, ROOT / "tests/fork_program.py", bundle.path, *way, rounds]
        done = subprocess.run(
            [str(one) for one in command], capture_output=True, text=True, timeout=3600
        )
        assert done.stdout.strip() == "[]", f"{way}: {done.stdout}{done.stderr[-2000:]}"
        progress(number / len(FORK_WAYS))
    return Told(
        f"{3 * rounds * len(FORK_WAYS)} forks of processes with an Engine, three quarters of them "
        "while 3 threads classify and swap, on both runtimes",
        "none hung; the parent's Engine is refused in the child, an own one gives the same bits",
        3 * rounds * len(FORK_WAYS),
    )
