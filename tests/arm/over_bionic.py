"""The APK's own arm64 library over Android's C library (unidbg), every score compared.

In: a bundle and the images of `compare_scores.make_images`. Out: counts. android_demo/arm-check
runs the library out of org.bytedeco:tensorflow-lite's android-arm64 jar: the APK's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from compare_scores import compare_scores, executor_scores
from machine import QUIETLY, REPOSITORY
from processors import PROCESSORS, make_android_root

from patchdeploy.bundle import open_bundle
from patchdeploy.slots import overlay, select_view

MODULE = REPOSITORY / "android_demo/arm-check"
RUNTIME = "litert"
LIBRARY = re.compile(r"^(\d+\.\d+\.\d+) ([0-9a-f]{64})$", re.MULTILINE)
"""What arm-check says of the library: version and hash."""


def missing() -> str | None:
    """What this machine lacks, in words."""
    lacking = [name for name in ("java", "mvn") if shutil.which(name) is None]
    return (
        f"it needs JDK 17 and Maven, and there is no {' and no '.join(lacking)}"
        if lacking
        else None
    )


def compare(bundle: Path, work: Path) -> dict[str, Any]:
    """Every task and resolution, against LiteRT on x86-64 and the executor."""
    lacking = missing()
    if lacking is not None:
        sys.exit(f"the android part of make arm cannot run here: {lacking}")
    maven = ["mvn", "-B", "-ntp", "-q", "package"]
    subprocess.run([*QUIETLY, *maven], cwd=MODULE, check=True)
    images, root = work / "images.npz", work / "android"
    make_android_root(PROCESSORS[0], root)
    jobs = _write_jobs(bundle, images, root)
    command = ["java", "-Xss16m", "-jar", MODULE / "target/arm-check.jar", root, root / "jobs"]
    said = subprocess.run(
        [*QUIETLY, *map(str, command)], check=True, capture_output=True, text=True
    ).stdout
    (library,) = LIBRARY.findall(said)  # among the runtime's own lines
    rows = open_bundle(bundle).manifest.layout.head_capacity
    scores = {
        f"{RUNTIME}.{key}": np.fromfile(place, "<f4").reshape(-1, rows)[:, :classes]
        for key, (place, classes) in jobs.items()
    }
    np.savez(work / "bionic.npz", **scores)
    compared = compare_scores(
        bundle, work / "bionic.npz", work / "x86-64.npz", executor_scores(bundle, images)
    )
    return {"version": library[0], "sha256": library[1], "scores": compared[RUNTIME]}


def _write_jobs(path: Path, images: Path, folder: Path) -> dict[str, tuple[Path, int]]:
    """A line for each model; by "TASK.PX" where its scores will be, and of how many classes."""
    bundle, asked = open_bundle(path), np.load(images)
    base, table = bundle.base("tflite")
    found, lines = {}, []
    for key in asked.files:
        task, px = key.rsplit(".", 1)
        model = overlay(base, table, {int(px): bundle.patch(task, int(px)).values[int(px)]})
        files = [folder / f"{key}.{suffix}" for suffix in ("tflite", "images", "scores")]
        files[0].write_bytes(select_view(model, table, int(px)))
        files[1].write_bytes(np.ascontiguousarray(asked[key]).tobytes())
        lines.append("\t".join([str(files[0]), px, *map(str, files[1:])]))
        found[key] = files[2], len(bundle.task(task).classes)
    (folder / "jobs").write_text("\n".join(lines))
    return found
