"""The idx files of MNIST and its like: read as they are published, refused when damaged."""

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from patchdeploy.data import load_idx
from patchdeploy.data.idx import read_idx
from patchdeploy.errors import ConfigError, DataError, FileFormatError

GREY = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0], np.uint8)


def idx_bytes(values: np.ndarray) -> bytes:
    """As the format's page describes it: 0, 0, type 8, dimensions; big-endian sides; values."""
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


def idx_folder(root: Path, suffix: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    pack = gzip.compress if suffix else bytes
    for prefix, part in (("train", slice(None)), ("t10k", slice(3))):
        images, labels = idx_bytes(GREY[part]), idx_bytes(LABELS[part])
        (root / f"{prefix}-images-idx3-ubyte{suffix}").write_bytes(pack(images))
        (root / f"{prefix}-labels-idx1-ubyte{suffix}").write_bytes(pack(labels))
    return root


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_both_parts_are_read_plain_or_compressed(tmp_path: Path, suffix: str) -> None:
    root = idx_folder(tmp_path / "letters", suffix)
    train, test = load_idx(root, "train"), load_idx(root, "test", classes=("x", "y", "z"))
    assert (train.name, train.classes, test.classes) == (
        "letters",
        ("0", "1", "2"),
        ("x", "y", "z"),
    )
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 2, 1, 2, 0], [0, 2, 1])
    for channel in range(3):
        np.testing.assert_array_equal(train.images[..., channel], GREY)
        np.testing.assert_array_equal(test.images[..., channel], GREY[:3])


def test_names_with_a_dot_before_idx_are_found_too(tmp_path: Path) -> None:
    for path in list(idx_folder(tmp_path).iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert len(load_idx(tmp_path, "train")) == 5


@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6)),
    st.booleans(),
)
def test_every_array_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, values: np.ndarray, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / ("a.gz" if packed else "a")
    path.write_bytes(gzip.compress(idx_bytes(values)) if packed else idx_bytes(values))
    read = read_idx(path, values.ndim)
    np.testing.assert_array_equal(read, values)
    assert read.shape == values.shape


def test_a_missing_file_and_another_part_say_what_is_needed(tmp_path: Path) -> None:
    (idx_folder(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        load_idx(tmp_path, "test")
    assert str(caught.value) == (
        f"{tmp_path} holds neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz; both "
        "parts of an idx data set are two files, images and labels; copy them there or correct the "
        "folder"
    )
    with pytest.raises(ConfigError) as wrong:
        load_idx(tmp_path, "validation")  # type: ignore[arg-type]
    assert str(wrong.value) == "idx part='validation'; it must be train or test; correct it"


WHOLE = idx_bytes(GREY)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"",
            "begins with nothing; an idx file of uint8 with 3 dimensions begins with 00 00 08 03 "
            "and has 16 bytes of header; copy the right file again",
        ),
        (
            idx_bytes(LABELS),
            "begins with 00 00 08 01; an idx file of uint8 with 3 dimensions begins with 00 00 08 "
            "03 and has 16 bytes of header; copy the right file again",
        ),
        (
            WHOLE[:13],
            "begins with 00 00 08 03; an idx file of uint8 with 3 dimensions begins with 00 00 08 "
            "03 and has 16 bytes of header; copy the right file again",
        ),
        (
            WHOLE[:-1],
            "holds 59 values; its header says [5, 4, 3], which is 60; copy it again",
        ),
        (
            WHOLE + b"x",
            "holds more than 60 values; its header says [5, 4, 3], which is 60; copy it again",
        ),
        (
            bytes((0, 0, 8, 3)) + b"\xff" * 12,  # a size that no memory holds
            "says that it holds [4294967295, 4294967295, 4294967295], which is "
            f"{(2**32 - 1) ** 3} values; at most 2147483648 are read; split it, or copy the right "
            "file again",
        ),
    ],
)
def test_a_damaged_file_is_refused_before_memory_is_taken(
    tmp_path: Path, data: bytes, message: str
) -> None:
    path = idx_folder(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        load_idx(tmp_path, "train")
    assert str(caught.value) == f"{path} {message}"


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_archive_is_refused(tmp_path: Path, kept: float) -> None:
    path = idx_folder(tmp_path, ".gz") / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(FileFormatError) as caught:
        load_idx(tmp_path, "train")
    assert str(caught.value).startswith(f"cannot read {path}: Compressed file ended")
    assert str(caught.value).endswith("; it must be a whole idx file, plain or gzip; copy it again")


def test_an_archive_is_not_inflated_beyond_what_its_header_says(tmp_path: Path) -> None:
    path = idx_folder(tmp_path, ".gz") / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(WHOLE + bytes(64 << 20), 1))
    assert path.stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(FileFormatError) as caught:
        load_idx(tmp_path, "train")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(caught.value) == (
        f"{path} holds more than 60 values; its header says [5, 4, 3], which is 60; copy it again"
    )
    assert peak < 4 << 20  # gzip inflates parts of at most 128 kB


def test_an_archive_of_the_right_length_with_another_sum_is_refused(tmp_path: Path) -> None:
    path = idx_folder(tmp_path, ".gz") / "train-images-idx3-ubyte.gz"
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 1
    path.write_bytes(whole)
    with pytest.raises(FileFormatError, match="CRC check failed"):
        load_idx(tmp_path, "train")


def test_labels_of_another_part_do_not_fit(tmp_path: Path) -> None:
    root = idx_folder(tmp_path / "set")
    (root / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    with pytest.raises(DataError) as caught:
        load_idx(root, "test")
    assert str(caught.value) == (
        "set: 3 images but 5 labels; there must be one label per image; correct the list"
    )
