"""A Keras file of another's making: only what lies in it is read, and what a MobileNetV2 has."""

import os
import resource
from pathlib import Path

import pytest
from keras_cases import HOSTILE, write_hostile_file, write_keras_file

from patchdeploy.base.keras import read_mobilenet_v2
from patchdeploy.errors import CheckpointError

pytest.importorskip("h5py", reason="h5py (extra keras) is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keras")


WORDS = {
    "external values": "the values of Conv1/kernel are no floats in this file (type float32, or ",
    "virtual values": "the values of Conv1/kernel are no floats in this file (type float32, or ",
    "external model": "model_weights is a link; its arrays must be in the file itself",
    "huge kernel": "the Keras file has an array (1073741824, 1024) where width 1.0 has (3, 3, 3, ",
    "huge head": "dense/kernel has 2147483648 classes; a head has 1 to 65536",
    "empty kernel": "Conv1/kernel of (3, 3, 3, 32) takes 3456 bytes, of which 0 are in the file",
    "no bias": "the Keras file has no dense/bias of its own",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_no_keras_wrote_is_refused(name: str, folder: Path) -> None:
    path = write_hostile_file(name, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        read_mobilenet_v2(path)
    assert WORDS.get(name, "") in str(caught.value)
    # The network has 9 MB of weights; an array of a bomb has gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_half_precision_is_read(tmp_path: Path) -> None:
    write_keras_file(tmp_path / "half.h5", "f2")
    module, preprocessing = read_mobilenet_v2(tmp_path / "half.h5")
    assert preprocessing.input_size == 96
    assert module.get_submodule("classifier.1").out_features == 3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"<!doctype html>", "an HTML page"),
        (b"", "an empty file"),
    ],
)
def test_what_lies_in_the_place_of_a_keras_file_is_named(
    tmp_path: Path, content: bytes, what: str
) -> None:
    (tmp_path / "model.h5").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"cannot be read as HDF5 \({what}"):
        read_mobilenet_v2(tmp_path / "model.h5")


def test_a_pipe_is_no_keras_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.h5")
    with pytest.raises(CheckpointError, match="it must be a regular file"):
        read_mobilenet_v2(tmp_path / "model.h5")
    with pytest.raises(CheckpointError, match="No such file or directory"):
        read_mobilenet_v2(tmp_path / "none.h5")
