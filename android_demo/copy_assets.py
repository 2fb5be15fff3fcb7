"""The assets of the demo app: a bundle's files that ship, and sample pictures.

In: bundle folders, of which the first that is there is taken. Out: a folder with ``bundle/`` and
``pictures/<task>-<number>-<label>.png`` from images of packaged sets that no training has seen.
Files that are the same already keep their times.

    python android_demo/copy_assets.py --assets FOLDER --formats tflite -- out/demo/bundle
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from patchdeploy.bundle import Bundle, open_bundle
from patchdeploy.bundle.manifest import MANIFEST
from patchdeploy.data import PACKAGED_NAMES, load_packaged

PICTURES = 4
SHOWN_PX = 256
"""At least: small scans are enlarged without smoothing, so that people see their pixels."""


def main() -> int:
    """Copy from the first bundle that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assets", type=Path, required=True, help="folder to write")
    parser.add_argument("--formats", nargs="+", default=["tflite", "onnx"], help="of base files")
    parser.add_argument("bundles", type=Path, nargs="+", help="the first that is there is taken")
    options = parser.parse_args()
    places = [one for one in options.bundles if (one / MANIFEST).exists()]
    if not places:
        sys.exit(f"no bundle in {', '.join(map(str, options.bundles))}; make demo writes the first")
    bundle = open_bundle(places[0])
    files = {f"bundle/{path}": bundle.read(path) for path in shipping(bundle, options.formats)}
    files[f"bundle/{MANIFEST}"] = (bundle.path / MANIFEST).read_bytes()
    files |= {f"pictures/{name}": data for name, data in pictures(bundle)}
    write(options.assets, files)
    return 0


def shipping(bundle: Bundle, formats: list[str]) -> list[str]:
    """Paths of what an app with runtimes for ``formats`` needs, without the manifest."""
    others = [one for name, one in bundle.manifest.converters.items() if name not in formats]
    left_out = {path for one in others for path in (one.file, one.slots)}
    files = bundle.manifest.files
    return [path for path, one in files.items() if one.ships and path not in left_out]


def pictures(bundle: Bundle) -> list[tuple[str, bytes]]:
    """PNG files of test images, of classes spread over each task that is a packaged set."""
    found = []
    for task in sorted(set(bundle.manifest.tasks) & set(PACKAGED_NAMES)):
        test = load_packaged(task)[1]
        classes = np.linspace(0, len(test.classes) - 1, PICTURES).round().astype(int)
        for number, label in enumerate(sorted(set(classes.tolist()))):
            image = test.images[int(np.flatnonzero(np.asarray(test.labels) == label)[0])]
            name = re.sub(r"[^\w-]", " ", test.classes[label])
            found.append((f"{task}-{number}-{name}.png", to_png(np.asarray(image))))
    return found


def to_png(image: np.ndarray) -> bytes:
    times = -(-SHOWN_PX // max(image.shape[:2])) if max(image.shape[:2]) < 32 else 1
    stored = io.BytesIO()
    Image.fromarray(image.repeat(times, 0).repeat(times, 1)).save(stored, "png", optimize=True)
    return stored.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> None:
    """``files`` and nothing else."""
    for path in [one for one in folder.rglob("*") if one.is_file()]:
        if str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, data in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
