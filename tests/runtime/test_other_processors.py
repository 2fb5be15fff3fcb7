"""A processor without VNNI, emulated: the Engine is right there, and the bare file is not.

qemu-user emulates AVX2 and no AVX512 and no VNNI, so this is the other kind of processor wherever
the tests run on one with VNNI. `tests/run_emulated.py` runs whole test files so (an hour of it).
"""

import json
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
from bundle_cases import make_bundle, reference_logits
from graph_cases import random_images

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
PROGRAM = """
import json, sys
import numpy as np
import onnxruntime
from patchdeploy.bundle import open_bundle, patched
from patchdeploy.runtime import Engine
from patchdeploy.runtime.ort_kernels import SIGNED, UNSIGNED, choose_kernels, is_exact
from patchdeploy.verify.bare import _count_wrong, unsigned_kernels

path, folder = sys.argv[1:]
images, expected = np.load(folder + "/images.npy"), np.load(folder + "/scores.npy")
found = {"kernels": choose_kernels(onnxruntime), "signed": is_exact(onnxruntime, SIGNED)}
for mode in ("resident", "per_run"):
    with Engine.open(path, "onnxruntime", mode=mode) as engine:
        found[mode] = engine.logits(images, "second", 24).tobytes() == expected.tobytes()
model = patched(open_bundle(path), "second", "onnx", 24)
found["wrong"] = _count_wrong(model, images, expected) > 0
found["wrong_unsigned"] = _count_wrong(unsigned_kernels(model), images, expected)
print(json.dumps(found))
"""


@pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64",
    reason="no qemu-x86_64 here (Debian: apt-get install qemu-user), or no x86-64",
)
def test_an_engine_on_an_emulated_processor_without_vnni_gives_the_same_bits(tmp_path):
    bundle = make_bundle(tmp_path / "b")
    images = random_images(3, 24)
    expected = reference_logits(bundle, "onnxruntime", "second", 24, images)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "scores.npy", expected)
    command = [QEMU, "-cpu", "Haswell", sys.executable, "-c", PROGRAM, bundle.path, tmp_path]
    done = subprocess.run([str(one) for one in command], capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert json.loads(done.stdout) == {
        "kernels": "unsigned",
        "signed": False,
        "resident": True,
        "per_run": True,
        "wrong": True,
        "wrong_unsigned": 0,
    }
