"""The bundle of bundle_vectors.json, which Kotlin reads too: Python's Engine gives its scores."""

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from patchdeploy.bundle import open_bundle
from patchdeploy.runtime import Engine
from patchdeploy.runtime.bundle_store import open_store

VECTORS = json.loads(Path(__file__).with_name("bundle_vectors.json").read_bytes())
RUNTIMES = {"tflite": "litert", "onnx": "onnxruntime"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors") / "bundle"
    for path, data in VECTORS["files"].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(base64.b64decode(data))
    return open_bundle(folder)


def images():
    of = VECTORS["images"]
    shape = (of["height"], of["width"], 3)
    return [np.frombuffer(base64.b64decode(one), np.uint8).reshape(shape) for one in of["rgb"]]


@pytest.mark.parametrize("format_name", sorted(RUNTIMES))
def test_the_engine_gives_the_scores_and_stages_that_the_file_holds(bundle, format_name):
    with Engine.open(bundle, RUNTIMES[format_name]) as engine:
        for task, by_side in VECTORS["scores"][format_name].items():
            for px, expected in by_side.items():
                found = [one.scores for one in engine.classify(images(), task, int(px))]
                assert np.array(found).view(np.int32).tolist() == expected
        answers = engine.classify(images(), "first", cascade=True)
        assert [one.resolution for one in answers] == VECTORS["stages"][format_name]
        assert len(set(VECTORS["stages"][format_name])) == 2


@pytest.mark.parametrize("format_name", sorted(RUNTIMES))
def test_the_updates_can_be_installed(bundle, tmp_path, format_name):
    store = open_store(tmp_path / "store", bundle, RUNTIMES[format_name])
    for task, data in VECTORS["updates"].items():
        installed = store.install(base64.b64decode(data))
        assert (installed.task, installed.sequence, installed.changed) == (task, 5, True)
