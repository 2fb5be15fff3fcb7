"""The images of a folder: one rule, and everything that is passed over is counted and said."""

import logging
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from patchdeploy.data import find_images, load_any_folder, load_image_folder, readable_suffixes
from patchdeploy.data.formats import FORMATS
from patchdeploy.errors import DataError, EmptyCalibrationError
from patchdeploy.named import open_calibration
from patchdeploy.runtime.images import image_paths
from patchdeploy.verify.images import images_for_tasks


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "PNG")


def make_folder(root: Path) -> None:
    """Six images of two classes, and what else lies in people's folders."""
    put(*(root / name / f"{k}.png" for name in ("cat", "dog") for k in range(2)))
    put(root / "cat/deep/album.png/3.JPG", root / "dog/4.jfif")
    put(root / "cat/.ipynb_checkpoints/0-checkpoint.png", root / ".Trash-1000/files/x.png")
    put(root / "dog/@eaDir/0.png/thumb.jpg", root / "__MACOSX/cat/x.png", root / "@eaDir/x.png")
    (root / "cat/._0.png").write_bytes(b"\0\5\x16\7")
    (root / "cat/Thumbs.db").touch()
    (root / "dog/notes.txt").touch()
    (root / "dog/raw.cr2").touch()
    (root / "dog/shape.svg").touch()
    os.mkfifo(root / "cat/pipe.png")
    (root / "cat/gone.png").symlink_to(root / "nowhere.png")
    (root / "cat/again").symlink_to(root)
    (root / "cat/self").symlink_to(root / "cat/self")


IMAGES = ["cat/0.png", "cat/1.png", "cat/deep/album.png/3.JPG", "dog/0.png", "dog/1.png"]
IMAGES += ["dog/4.jfif"]


def test_every_command_sees_the_same_images(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    make_folder(root)
    ways = [
        load_image_folder(root).images.paths,
        load_any_folder(root).images.paths,
        open_calibration(str(root)).images.paths,
        images_for_tasks(root, None)("any", 8).images.paths,
        image_paths(root),
        find_images(root).paths,
    ]
    for paths in ways:
        assert [str(path.relative_to(root)) for path in paths] == IMAGES
    for dataset in (load_image_folder(root), open_calibration(str(root))):
        assert dataset.classes == ("cat", "dog")
        assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_what_is_passed_over_is_counted_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "photos"
    make_folder(root)
    found = find_images(root)
    assert found.passed_over == {
        "hidden or of the system": 7,
        ".txt": 1,
        ".cr2": 1,
        ".svg": 1,
        "pipes or devices": 1,
        "links that lead nowhere": 2,
        "links to a folder that is read already": 1,
    }
    with caplog.at_level(logging.WARNING):
        found.say_passed_over()
    (said,) = (one.getMessage() for one in caplog.records)
    assert said.startswith(f"{root}: passed over 7 hidden or of the system, 2 links that lead ")


def test_a_suffix_without_a_decoder_is_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "b.heic").touch()
    (tmp_path / "c.\x1b[31mred").touch()
    without = tuple(one for one in readable_suffixes() if one != ".heic")
    monkeypatch.setattr("patchdeploy.data.folders.readable_suffixes", lambda: without)
    found = find_images(tmp_path)
    assert found.passed_over == {
        ".heic (no decoder is installed)": 1,
        "without a usual suffix": 1,
    }


def test_every_promised_suffix_that_has_a_decoder_is_read(tmp_path: Path) -> None:
    suffixes = readable_suffixes()
    for suffix in (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff"):
        assert suffix in suffixes
    for suffix in (".webp", ".avif", ".jp2", ".pgm", ".ppm", ".pbm", ".tga"):
        kind = next(one for one in FORMATS.values() if suffix in one.suffixes)
        assert (suffix in suffixes) is kind.is_readable
    for suffix in suffixes:
        (tmp_path / f"a{suffix.upper()}").touch()
    assert len(find_images(tmp_path).paths) == len(suffixes)


def test_links_to_folders_are_followed_for_each_class(tmp_path: Path) -> None:
    put(*(tmp_path / "more/new" / f"{k}.png" for k in range(5)))
    put(tmp_path / "photos/a/x.png", tmp_path / "photos/b/x.png")
    (tmp_path / "more/new/back").symlink_to(tmp_path / "more")
    (tmp_path / "photos/a/batch2").symlink_to(tmp_path / "more")
    (tmp_path / "photos/c").symlink_to(tmp_path / "more/new")
    for dataset in (load_image_folder(tmp_path / "photos"), load_any_folder(tmp_path / "photos")):
        counts = [int((dataset.labels == k).sum()) for k in range(3)]
        assert (dataset.classes, counts) == (("a", "b", "c"), [6, 1, 5])


def test_links_between_folders_do_not_multiply(tmp_path: Path) -> None:
    names = [tmp_path / "x" / f"f{k}" for k in range(12)]
    put(*(name / "a.png" for name in names))
    for name in names:
        for other in names:
            (name / f"to_{other.name}").symlink_to(other)
    assert len(find_images(tmp_path).paths) == 12
    # A folder has its own name before that of a link to it.
    assert all("to_" not in str(path) for path in find_images(tmp_path).paths)


def test_folders_whose_names_look_the_same_are_one_class(tmp_path: Path) -> None:
    put(tmp_path / "caf\u00e9/0.png", tmp_path / "cafe\u0301/1.png", tmp_path / "tea/0.png")
    dataset = load_image_folder(tmp_path)
    assert dataset.classes == ("caf\u00e9", "tea")
    assert dataset.labels.tolist() == [0, 0, 1]


def test_a_folder_that_is_named_by_a_dot_still_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "photos/a/0.png", tmp_path / "photos/b/0.png")
    monkeypatch.chdir(tmp_path / "photos")
    assert load_image_folder(".").name == "photos"


def test_loose_images_have_no_class_and_are_no_class(tmp_path: Path) -> None:
    put(tmp_path / "a/0.png", tmp_path / "b/0.png", tmp_path / "loose.png")
    assert open_calibration(str(tmp_path)).classes == ("",)
    assert load_image_folder(tmp_path).classes == ("a", "b")


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a/0.png", tmp_path / "b/0.png")
    (tmp_path / "b").chmod(0)
    try:
        if os.access(tmp_path / "b", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(DataError, match=r"b cannot be read: Permission denied"):
            find_images(tmp_path)
    finally:
        (tmp_path / "b").chmod(0o755)


def test_a_folder_of_no_image_says_what_it_needs(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s.png"))
    needs = f"it needs at least 1 of {', '.join(readable_suffixes())}; correct the path"
    for look in (load_any_folder, image_paths):
        with pytest.raises(DataError) as caught:
            look(tmp_path)
        assert str(caught.value) == f"folder {tmp_path} holds no image; {needs}"
    with pytest.raises(EmptyCalibrationError) as caught:
        open_calibration(str(tmp_path))
    assert str(caught.value) == (
        f"calibration images: folder {tmp_path} holds no image; {needs}; activation ranges need at "
        "least 1 image (64 to 512 are usual) of a folder of training images"
    )
    listener.close()
