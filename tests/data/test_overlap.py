"""Images that are both trained on and tested on are found by content, and named."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from data_cases import noise_folder, noise_image
from PIL import Image

import patchdeploy.data.overlap
from patchdeploy.data import (
    ImageDataset,
    ImageFiles,
    OverlapWarning,
    load_image_folder,
    load_packaged,
    overlapping,
    warn_overlap,
)
from patchdeploy.errors import UnreadableImageError


def in_memory(seeds: list[int], name: str = "x") -> ImageDataset:
    images = np.stack([noise_image(seed) for seed in seeds])
    return ImageDataset(name, images, np.zeros(len(seeds), np.int64), ("a",))


def test_files_with_the_same_bytes_are_listed_whatever_their_names(tmp_path: Path) -> None:
    train = noise_folder(tmp_path / "train", {"a": 3, "b": 3})
    test = noise_folder(tmp_path / "test", {"a": 1, "b": 1})
    for folder, seed in (("a", 50), ("b", 51)):
        Image.fromarray(noise_image(seed)).save(test / folder / "0.png")
    sets = load_image_folder(train), load_image_folder(test)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_overlap(*sets) == []
    shutil.copy(train / "b" / "1.png", test / "a" / "holiday.png")
    with pytest.warns(OverlapWarning) as caught:
        pairs = warn_overlap(sets[0], load_image_folder(test))
    assert pairs == [(4, 1)]
    assert str(caught[0].message) == (
        f"1 of 3 test images of 'test' are training images of 'train' too: "
        f"{test / 'a' / 'holiday.png'} (in training {train / 'b' / '1.png'}); accuracy on them "
        "says nothing about new images; take them out of one of the sets"
    )
    assert caught[0].filename == __file__


def test_ten_are_named_and_the_rest_counted() -> None:
    train, test = in_memory(list(range(30)), "train"), in_memory([*range(12), 99], "test")
    with pytest.warns(OverlapWarning) as caught:
        pairs = warn_overlap(train, test)
    assert pairs == [(k, k) for k in range(12)]
    names = ", ".join(f"image {k} of test (in training image {k} of train)" for k in range(10))
    assert str(caught[0].message) == (
        f"12 of 13 test images of 'test' are training images of 'train' too: {names} and 2 more; "
        "accuracy on them says nothing about new images; take them out of one of the sets"
    )


def test_files_are_compared_with_pixels_by_pixels(tmp_path: Path) -> None:
    folder = load_image_folder(noise_folder(tmp_path / "set", {"a": 2, "b": 2}))
    with pytest.warns(OverlapWarning, match="1 of 2 test images"):
        assert warn_overlap(folder, in_memory([9, 3])) == [(3, 1)]


def test_the_same_picture_saved_in_another_format_is_found_by_its_pixels(tmp_path: Path) -> None:
    folder = load_image_folder(noise_folder(tmp_path / "set", {"a": 2, "b": 2}))
    Image.fromarray(noise_image(2)).save(tmp_path / "other.bmp")
    other = ImageDataset("y", ImageFiles([tmp_path / "other.bmp"]), np.array([0]), ("a",))
    assert warn_overlap(folder, other) == []
    assert overlapping(folder, other) == [(2, 0)]


def test_only_files_of_a_length_that_both_sets_have_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, contents in {"a": (b"1", b"22", b"333"), "b": (b"4444", b"55", b"22")}.items():
        (tmp_path / name).mkdir()
        for k, content in enumerate(contents):
            (tmp_path / name / f"{k}.png").write_bytes(content)
    sets = [
        ImageDataset(
            name,
            ImageFiles(sorted((tmp_path / name).iterdir())),
            np.zeros(3, np.int64),
            ("x",),
        )
        for name in ("a", "b")
    ]
    read = []
    original = patchdeploy.data.overlap.hashlib.file_digest

    def watched(file, kind):
        read.append(Path(file.name).relative_to(tmp_path).as_posix())
        return original(file, kind)

    monkeypatch.setattr(patchdeploy.data.overlap.hashlib, "file_digest", watched)
    with pytest.warns(OverlapWarning):
        assert warn_overlap(*sets) == [(1, 2)]
    assert sorted(read) == ["a/1.png", "b/1.png", "b/2.png"]


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = load_image_folder(noise_folder(tmp_path / "set", {"a": 2, "b": 2}))
    gone = tmp_path / "set" / "b" / "0.png"
    gone.unlink()
    with pytest.raises(UnreadableImageError) as caught:
        warn_overlap(folder, folder)
    assert str(caught.value) == (
        f"cannot read image {gone}: No such file or directory; both sets must be there to be "
        "compared; restore the file or leave it out"
    )


def test_a_packaged_set_does_not_overlap_itself() -> None:
    train, test = load_packaged("fashion")
    assert warn_overlap(train, test) == []


def test_a_pipe_among_the_files_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "empty.png").touch()  # as long as a pipe says it is
    first = ImageDataset("x", [tmp_path / "a.png", tmp_path / "empty.png"], [0, 0], ("a",))
    second = ImageDataset("y", [tmp_path / "pipe.png"], [0], ("a",))
    with pytest.raises(UnreadableImageError, match=r"pipe\.png is not a regular file"):
        warn_overlap(first, second)
