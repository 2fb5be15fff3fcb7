"""Small bundles made from the hand-made quantised graphs, and what to compare them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from graph_cases import CLASSES, make_case
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle, add_task, create_bundle
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.patchfile.pack import Release, Signer
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.executor import run_integer
from patchdeploy.quantize.model import QuantizedBase, flatten_variant, unflatten_variant
from patchdeploy.quantize.runtimes import arithmetic_of

RESOLUTIONS = (16, 24)
LABELS = tuple(f"class {k}" for k in range(CLASSES))
KEY = SigningKey.from_seed(b"a test key of the bundle cases..")
KILLED = """
import os, sys
from pathlib import Path
from bundle_cases import make_patch
from patchdeploy import bundle
path, step = Path(sys.argv[1]), int(sys.argv[2])
real, counted = {}, 0
def at(name):
    def call(*arguments, **options):
        global counted
        counted += 1
        if counted == step:
            os.kill(os.getpid(), 9)
        return real[name](*arguments, **options)
    return call
for name in ("fsync", "replace", "unlink"):
    real[name] = getattr(os, name)
    setattr(os, name, at(name))
bundle.add_task(path, make_patch(task="first", seed=33)[1], replace_existing=True)
bundle.create_bundle(path.parent / "new", make_patch()[0], resolutions=(16,), formats=("onnx",))
print("done")
"""
"""A program that writes to a bundle and is killed before its step-th call that a disk sees."""

FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}


def make_patch(
    name: str = "conv_stack",
    task: str = "first",
    seed: int = 1,
    resolutions: Sequence[int] = RESOLUTIONS,
    share_head: bool = True,
    patch_owned: Sequence[str] = (),
) -> tuple[QuantizedBase, PatchFile]:
    """A base and a random task over it; other seeds give other tasks over the same base."""
    base, variants = make_case(name, resolutions, seed, patch_owned, share_head)
    values = {px: flatten_variant(base, variant) for px, variant in variants.items()}
    return base, PatchFile(task, LABELS, make_coding_table(base).sha256, values, {"top1": 0.5})


def make_bundle(
    path: Path,
    name: str = "conv_stack",
    tasks: Sequence[str] = ("first", "second"),
    formats: Sequence[str] = ("tflite", "onnx"),
    resolutions: Sequence[int] = RESOLUTIONS,
    signed: bool = False,
) -> Bundle:
    """A bundle of case ``name`` whose tasks differ in every value that a patch sets.

    Args:
        signed: by `KEY`, which the bundle pins; and with a self-test of random thumbnails.
    """
    base, _ = make_patch(name, resolutions=resolutions)
    trusted = TrustedKeys((KEY.public,), threshold=1) if signed else None
    bundle = create_bundle(path, base, resolutions=resolutions, formats=formats, trusted=trusted)
    for seed, task in enumerate(tasks, 1):
        patch = make_patch(name, task, seed, resolutions)[1]
        if not signed:
            bundle = add_task(path, patch)
            continue
        thumbnails = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), np.uint8)
        release = Release(sequence=1, signers=(Signer(KEY, 0),))
        bundle = add_task(path, patch, release=release, thumbnails=thumbnails)
    return bundle


def reference_logits(
    bundle: Bundle, runtime: str, task: str, px: int, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """What the NumPy executor says, in the arithmetic of ``runtime`` here."""
    base = bundle.reference()
    variant = unflatten_variant(base, bundle.patch(task).values[px], task, px)
    result = run_integer(base, variant, images, arithmetic_of(FORMATS[runtime]))
    return result.logits[:, : len(bundle.task(task).classes)]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder`` but the lock, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
