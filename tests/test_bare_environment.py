"""Running a bundle needs cryptography, NumPy, Pillow, safetensors, one runtime, and nothing else.

Each test makes a fresh virtual environment with these packages alone, installs patchdeploy into
it without its other dependencies, and runs a bundle there. It needs a package index.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundle_cases import make_bundle
from graph_cases import random_images

from patchdeploy.runtime import Engine

ROOT = Path(__file__).resolve().parent.parent
UNREACHABLE = (
    "dns error",
    "Could not connect",
    "Connection refused",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "error sending request",
    "network is unreachable",
)
PROGRAM = """
import importlib.util, json, sys
import numpy as np
from PIL import Image
from patchdeploy.runtime import Engine
bundle, image, modes = sys.argv[1], sys.argv[2], sys.argv[4:]
answers = []
for mode in modes:
    with Engine.open(bundle, sys.argv[3], mode=mode) as engine:
        engine.swap_to("second", 24)
        prediction = engine.classify(image)
        answers.append([prediction.label, [float(score) for score in prediction.scores]])
loaded = {name.partition(".")[0] for name in sys.modules}
heavy = {"torch", "torchvision", "onnx", "onnx_graphsurgeon", "tensorflow", "matplotlib"}
print(json.dumps({
    "answers": answers,
    "loaded": sorted(heavy & loaded),
    "installed": [name for name in sorted(heavy) if importlib.util.find_spec(name)],
}))
"""


def find_uv() -> str | None:
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.exists() else shutil.which("uv")


def run(*command: str | Path, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, env=environment
    )
    if done.returncode and any(one.lower() in done.stderr.lower() for one in UNREACHABLE):
        pytest.skip(f"no package index can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_environment(folder: Path, runtime: str) -> Path:
    """A virtual environment with patchdeploy and what running needs; returns its Python."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("patchdeploy", "converters"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    python = folder / "venv" / "bin" / "python"
    uv = find_uv()
    if uv is not None:
        run(uv, "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
        install = [uv, "pip", "install", "--quiet", "--python", python]
    else:
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        install = [python, "-m", "pip", "install", "--quiet"]
    run(*install, "cryptography", "numpy", "pillow", "safetensors", runtime, cwd=folder)
    run(*install, "--no-deps", source, cwd=folder)
    return python


@pytest.mark.parametrize(
    ("package", "runtime", "modes"),
    [
        ("onnxruntime>=1.29", "onnxruntime", ["resident", "per_run"]),
        ("ai-edge-litert>=2.0", "litert", ["resident"]),
    ],
)
def test_a_bundle_runs_where_only_one_runtime_is_installed(tmp_path, package, runtime, modes):
    from PIL import Image

    bundle = make_bundle(tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "reference")  # as an app ships it
    Image.fromarray(random_images(1, 40)[0]).save(tmp_path / "image.png")
    python = make_environment(tmp_path, package)
    arguments = (tmp_path / "bundle", tmp_path / "image.png", runtime, *modes)
    found = json.loads(run(python, "-W", "error", "-c", PROGRAM, *arguments, cwd=tmp_path))
    assert found["loaded"] == []
    assert found["installed"] == []
    with Engine.open(bundle, runtime) as engine:
        expected = engine.classify(tmp_path / "image.png", "second", 24)
    for label, scores in found["answers"]:
        assert label == expected.label
        assert np.array_equal(np.array(scores, np.float32), expected.scores)
