"""Write bundle_vectors.json: a small signed bundle of both formats, and the scores of its tasks.

Run it by hand when a format changes, and read the difference. Two tasks at two resolutions; the
first one carries a cascade whose first stage answers some of the images, none of them by a hair.
``updates`` are patches for a store: a newer first task, and a task that the bundle does not have.
Scores are int32, the bits of float32: of the integer executor, in the arithmetic of each runtime.
"""

import base64
import json
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from bundle_cases import KEY, make_bundle, make_patch, reference_logits
from cascade_cases import with_cascade

from patchdeploy.bundle import Bundle
from patchdeploy.cascade import CascadeRule, Stage, confidence
from patchdeploy.data import resize_image
from patchdeploy.patchfile.pack import Release, Signer, pack_patch
from patchdeploy.runtime.self_test import score_codes

PATH = Path(__file__).with_name("bundle_vectors.json")
CASE, SIDES, IMAGES, WIDTH, HEIGHT = "branches", (16, 24), 8, 40, 30
GAP = 8
"""Codes between the margins on either side of the threshold: runtimes differ by 1 a score."""
FORMATS = {"tflite": "litert", "onnx": "onnxruntime"}


def images() -> np.ndarray:
    """uint8 [IMAGES, HEIGHT, WIDTH, 3] RGB: a colour each, with noise."""
    rng = np.random.default_rng(7)
    noise = rng.integers(-20, 21, (IMAGES, HEIGHT, WIDTH, 3))
    return np.clip(rng.integers(0, 256, (IMAGES, 1, 1, 3)) + noise, 0, 255).astype(np.uint8)


def scores_of(bundle: Bundle, runtime: str, task: str, px: int) -> list[list[int]]:
    """By image and class."""
    inputs = np.stack([resize_image(one, px, bundle.manifest.preprocessing) for one in images()])
    scores = reference_logits(bundle, runtime, task, px, inputs)
    return scores.astype("<f4").view("<i4").tolist()


def margins(bundle: Bundle, runtime: str) -> list[int]:
    """Of the first task at the smallest side, by image."""
    scores = np.array(scores_of(bundle, runtime, "first", SIDES[0]), np.int32).view(np.float32)
    codes = score_codes(scores, bundle.patch("first").values[SIDES[0]], bundle.coding_table)
    return confidence("margin", codes, 0).tolist()


def make_rule(bundle: Bundle) -> CascadeRule:
    """A threshold in the middle of the widest gap between the margins of two images."""
    found = sorted(margins(bundle, "litert"))
    width, low = max((high - low, low) for low, high in pairwise(found))
    assert width >= GAP, found
    return CascadeRule("margin", (Stage(SIDES[0], low + width // 2, 0), Stage(SIDES[1], 0, 0)))


def updates(bundle: Bundle) -> dict[str, str]:
    """By task, a patch file of sequence 5."""
    release = Release(5, signers=(Signer(KEY, 0),))
    found = {}
    for task, seed in (("first", 7), ("third", 8)):
        patch = make_patch(CASE, task, seed, SIDES)[1]
        packed = pack_patch(patch, bundle.coding_table, bundle.base_files(), release=release)
        found[task] = text(packed.data)
    return found


def text(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()


def make_bundle_vectors(folder: Path) -> dict:
    """Everything that the file holds."""
    made = make_bundle(folder / "bundle", CASE, resolutions=SIDES, signed=True)
    rule = make_rule(made)
    bundle = with_cascade(made, "first", rule, 2)
    return {
        "about": "a bundle, and the scores of its tasks; keys are test keys",
        "files": {
            str(path.relative_to(bundle.path)): text(path.read_bytes())
            for path in sorted(bundle.path.rglob("*"))
            if path.is_file() and path.name != ".lock"
        },
        "updates": updates(bundle),
        "images": {
            "width": WIDTH,
            "height": HEIGHT,
            "rgb": [text(one.tobytes()) for one in images()],
        },
        "stages": {
            name: [SIDES[0] if one >= rule.stages[0].threshold else SIDES[1] for one in of]
            for name, of in ((name, margins(bundle, runtime)) for name, runtime in FORMATS.items())
        },
        "scores": {
            name: {
                task: {str(px): scores_of(bundle, runtime, task, px) for px in SIDES}
                for task in bundle.tasks
            }
            for name, runtime in FORMATS.items()
        },
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made_in:
        document = make_bundle_vectors(Path(made_in))
        PATH.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
