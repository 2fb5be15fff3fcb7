"""The bundle that the demo app's tests run on, and the app's own where `make demo` has left none.

In: the embedded base, images that ship in Python packages. Out, in a folder: ``bundle`` (two tasks
at two resolutions, one with a cascade), and what the tests install: another task, a newer and an
expired version, and a store that was filled over another base. Training is short: it shows that
things run, not what they reach. The key is made for each run and forgotten: nobody can add to it.

    python android_demo/make_bundle.py --out out/android
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from pathlib import Path

import torch

from patchdeploy.base import Base
from patchdeploy.bundle import Bundle, open_bundle, remove_task
from patchdeploy.data import load_packaged, split
from patchdeploy.evaluate import sample
from patchdeploy.export import Signing, export_bundle
from patchdeploy.fit_cascade import CascadeConfig, CascadeFit, attach_cascade, fit_cascade
from patchdeploy.patch import Patch
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys
from patchdeploy.runtime.bundle_store import open_store
from patchdeploy.training import TrainConfig, train_patch

RESOLUTIONS = (32, 48)
CASCADE_TASK, CASCADE_TOLERANCE = "fashion", 0.2
LATER_TASK = "faces"
IMAGES = {CASCADE_TASK: 200, "surfaces": 200, LATER_TASK: 60}
EXPIRED = 1_735_689_600  # 2025-01-01
MARK = "MADE"
"""Written last: SHA-256 of this file, so that a changed one makes the bundle again."""


def main() -> int:
    """Make it unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder; replaced")
    out: Path = parser.parse_args().out
    mark = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    if (out / MARK).exists() and (out / MARK).read_text() == mark:
        return 0
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    torch.set_num_threads(1)  # a second one gains nothing at these sizes
    make(out)
    (out / MARK).write_text(mark)
    return 0


def make(out: Path) -> None:
    """Train, export, and write every version."""
    base = Base.embedded()
    data = {task: split(load_packaged(task)[0], (0.5, 0.5), seed=0) for task in IMAGES}
    train = {task: sample(data[task][0], count) for task, count in IMAGES.items()}
    held = {task: data[task][1] for task in IMAGES}
    config = TrainConfig(epochs=2, batch_size=32)
    patches = [
        train_patch(base, images, config, resolutions=RESOLUTIONS, quiet=True)
        for images in train.values()
    ]
    key = SigningKey.new()
    signing = Signing(TrustedKeys((key.public,), threshold=1), (key,))
    bundle = export_bundle(out / "bundle", base, patches, train, signing=signing)
    settings = CascadeConfig(tolerance=CASCADE_TOLERANCE, uncertified=True)
    fit = fit_cascade(bundle, sample(held[CASCADE_TASK], 200), CASCADE_TASK, settings)
    bundle = attach_cascade(bundle, fit, signing)
    (out / "patches").mkdir()
    keep(bundle, LATER_TASK, out / "patches" / f"{LATER_TASK}.pdp")
    remove_task(bundle.path, LATER_TASK)
    write_versions(out, fit, signing)
    write_old_store(out, base, patches[0], signing)


def keep(bundle: Bundle, task: str, path: Path) -> None:
    path.write_bytes(bundle.read(bundle.task(task).file))


def write_versions(out: Path, fit: CascadeFit, signing: Signing) -> None:
    """The same values under higher sequence numbers: one good, one expired."""
    copy = out / "copy"
    shutil.copytree(out / "bundle", copy)
    for name, expires in (("newer", 0), ("expired", EXPIRED)):
        signed = Signing(signing.trusted, signing.keys, expires)
        keep(
            attach_cascade(copy, fit, signed),
            fit.task,
            out / "patches" / f"{fit.task}-{name}.pdp",
        )
    shutil.rmtree(copy)


def write_old_store(out: Path, base: Base, patch: Patch, signing: Signing) -> None:
    """A store as an app with another base (more head rows) has left it."""
    task = patch.task
    other = export_bundle(
        out / "other",
        base,
        [patch],
        {task: sample(load_packaged(task)[0], 32)},
        head_capacity=len(patch.classes) + 6,
        formats=("tflite",),
        signing=signing,
    )
    store = open_store(out / "old_store", open_bundle(other.path))
    store.install(other.read(other.task(task).file))
    shutil.rmtree(other.path)


if __name__ == "__main__":
    sys.exit(main())
