"""Workers, progress, the cache on disk, and broken images that are skipped and counted."""

import logging
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import noise_folder, noise_image
from PIL import Image

from patchdeploy.data import (
    ImageDataset,
    LoadConfig,
    Preprocessing,
    Skipped,
    load_image_folder,
    resize_batch,
    without_broken,
)
from patchdeploy.errors import ConfigError, DataError, StorageError, UnreadableImageError
from patchdeploy.training.samples import Samples

SQUASH = Preprocessing()


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("cached", [False, True])
def test_any_number_of_workers_gives_the_pixels_of_the_plain_function(
    tmp_path: Path, workers: int, cached: bool
) -> None:
    root = noise_folder(tmp_path / "set", {"a": 150, "b": 7})  # more than one chunk of 128
    load = LoadConfig(workers, tmp_path / "cache" if cached else None)
    pixels = load_image_folder(root, load).at(9, SQUASH)
    np.testing.assert_array_equal(
        pixels, resize_batch([noise_image(k) for k in range(157)], 9, SQUASH)
    )
    assert pixels.dtype == np.uint8
    assert not pixels.flags.writeable
    assert isinstance(pixels, np.memmap) is cached


def test_progress_ends_at_the_number_of_images_and_never_goes_back(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    load = LoadConfig(progress=lambda done, total: seen.append((done, total)))
    images = np.stack([noise_image(k) for k in range(300)])
    labels = np.zeros(300, np.int64)
    ImageDataset("x", images, labels, ("a",), load).at(8, SQUASH)
    assert seen == [(128, 300), (256, 300), (300, 300)]


def test_a_second_run_reads_the_cache_and_decodes_nothing(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 2})
    load = LoadConfig(cache=tmp_path / "cache")
    first = load_image_folder(root, load).at(9, SQUASH)
    decoded: list[Path] = []
    again = load_image_folder(root, replace(load, progress=lambda *_: decoded.append(root)))
    np.testing.assert_array_equal(again.at(9, SQUASH), first)
    assert decoded == []
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_tells_sizes_ways_of_resizing_and_changed_files_apart(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 2, "b": 2})
    load = LoadConfig(cache=tmp_path / "cache")
    crop = Preprocessing(resize="crop", crop_fraction=0.5)
    variants = [(9, SQUASH), (8, SQUASH), (8, crop), (8, replace(crop, crop_fraction=0.75))]
    for count, (px, settings) in enumerate(variants, start=1):
        pixels = load_image_folder(root, load).at(px, settings)
        expected = resize_batch([noise_image(k) for k in range(4)], px, settings)
        np.testing.assert_array_equal(pixels, expected)
        assert len(list((tmp_path / "cache").iterdir())) == count
    # mean and std do not change the pixels, so the cache serves every network
    load_image_folder(root, load).at(9, Preprocessing(mean=(0.5, 0.5, 0.5)))
    assert len(list((tmp_path / "cache").iterdir())) == 4
    Image.fromarray(noise_image(99)).save(root / "a" / "0.png")
    os.utime(root / "a" / "0.png", ns=(1, 1))  # a file system with a coarse clock
    changed = load_image_folder(root, load).at(9, SQUASH)
    np.testing.assert_array_equal(changed[0], resize_batch([noise_image(99)], 9, SQUASH)[0])


def test_pixels_in_memory_are_cached_by_their_content(tmp_path: Path) -> None:
    load = LoadConfig(cache=tmp_path)
    images = np.stack([noise_image(k) for k in range(4)])
    labels = np.zeros(4, np.int64)
    first = ImageDataset("x", images, labels, ("a",), load).at(6, SQUASH)
    other = images.copy()
    other[3, 0, 0, 0] ^= 255
    second = ImageDataset("x", other, labels, ("a",), load).at(6, SQUASH)
    assert not np.array_equal(first[3], second[3])
    ImageDataset("x", list(images), labels, ("a",), load).at(6, SQUASH)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "damage", ["empty", "truncated", "longer", "text", "bracket", "npz", "another shape"]
)
def test_a_damaged_cache_file_is_written_anew(tmp_path: Path, damage: str) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 2})
    load = LoadConfig(cache=tmp_path / "cache")
    expected = np.array(load_image_folder(root, load).at(9, SQUASH))
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_bytes()
    if damage == "another shape":
        np.save(file, np.zeros((5, 9, 9), np.uint8))
    elif damage == "npz":
        with file.open("wb") as packed:
            np.savez(packed, images=expected)
    else:
        contents = {"empty": b"", "truncated": whole[:-7], "longer": whole + b"x", "text": b"hello"}
        contents["bracket"] = whole.replace(b"}", b" ", 1)  # NumPy's reader raises TokenError
        file.write_bytes(contents[damage])
    np.testing.assert_array_equal(load_image_folder(root, load).at(9, SQUASH), expected)
    assert file.read_bytes() == whole


KILLED = """
import os, signal, sys
from pathlib import Path
from patchdeploy.data import LoadConfig, Preprocessing, load_image_folder
def kill(done, total):
    if done >= 256:
        os.kill(os.getpid(), signal.SIGKILL)
load = LoadConfig(cache=Path(sys.argv[2]), progress=kill)
load_image_folder(sys.argv[1], load).at(9, Preprocessing())
"""


def test_a_run_killed_while_it_writes_the_cache_leaves_no_file_under_its_name(
    tmp_path: Path,
) -> None:
    root = noise_folder(tmp_path / "set", {"a": 150, "b": 150})
    cache = tmp_path / "cache"
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), str(cache)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert left.name.startswith(".")
    pixels = load_image_folder(root, LoadConfig(cache=cache)).at(9, SQUASH)
    np.testing.assert_array_equal(
        pixels, resize_batch([noise_image(k) for k in range(300)], 9, SQUASH)
    )
    assert [path.suffix for path in cache.iterdir()] == [".npy"]


FULL = """
import resource, signal, sys
from pathlib import Path
from patchdeploy.data import LoadConfig, Preprocessing, load_image_folder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
load_image_folder(sys.argv[1], LoadConfig(cache=Path(sys.argv[2]))).at(32, Preprocessing())
"""


def test_a_disk_that_fills_while_the_cache_is_written_is_a_storage_error(tmp_path: Path) -> None:
    root, cache = noise_folder(tmp_path / "set", {"a": 20, "b": 20}), tmp_path / "cache"
    # A file size limit makes the kernel fail a write in the middle, as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(root), str(cache)], capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"patchdeploy.errors.{StorageError.__name__}: cannot write {cache}")
    assert last.endswith(
        f"({40 * 32 * 32 * 3} bytes): File too large; free space or choose another place; what was "
        "there is unchanged"
    )
    assert list(cache.iterdir()) == []


def test_the_cache_is_written_piece_by_piece_so_a_set_may_exceed_memory(tmp_path: Path) -> None:
    small = np.stack([noise_image(k, 8, 8) for k in range(1500)])
    dataset = ImageDataset("x", small, np.zeros(1500, np.int64), ("a",), LoadConfig(cache=tmp_path))
    whole_bytes = 1500 * 64 * 64 * 3
    tracemalloc.start()
    dataset.at(64, SQUASH)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # At most three chunks live at once (the written one, the images of the next, their stack):
    # 3 * 128 / 1500 = 26 % of the whole; half of it leaves room for the interpreter's own.
    assert peak_bytes < whole_bytes / 2


def test_a_memory_mapped_set_is_trained_on_without_being_copied(tmp_path: Path) -> None:
    images = np.stack([noise_image(k, 8, 8) for k in range(300)])
    labels = np.arange(300) % 2
    plain = ImageDataset("x", images, labels, ("a", "b"))
    mapped = replace(plain, load=LoadConfig(cache=tmp_path))
    index, cpu = torch.tensor([7, 299, 0]), torch.device("cpu")
    batches = []
    for dataset in (plain, mapped):
        pixels = dataset.at(64, SQUASH)
        samples = Samples.from_arrays(pixels, labels, SQUASH)
        batches.append(samples.batch(index, cpu))
        assert (samples.inputs.data_ptr() == pixels.ctypes.data) is (dataset is mapped)
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_read_only_array_of_the_right_size_is_used_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.stack([noise_image(k, 8, 8) for k in range(3)]))
    stored = np.load(tmp_path / "x.npy", mmap_mode="r")
    dataset = ImageDataset("x", stored, np.zeros(3, np.int64), ("a",))
    assert dataset.at(8, SQUASH) is stored
    assert dataset.at(8, Preprocessing(resize="crop", crop_fraction=0.5)) is not stored


@pytest.mark.parametrize(
    ("wrong", "rule"), [({"workers": -1}, "0 or more"), ({"on_broken": "hide"}, "error or skip")]
)
def test_a_load_setting_out_of_range_is_a_config_error(wrong: dict, rule: str) -> None:
    ((key, value),) = wrong.items()
    with pytest.raises(ConfigError) as caught:
        LoadConfig(**wrong)
    assert str(caught.value) == f"load {key}={value!r}; it must be {rule}; correct it"


@pytest.mark.parametrize("workers", [0, 3])
def test_a_broken_image_stops_loading_with_its_name_and_leaves_no_cache(
    tmp_path: Path, workers: int
) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 3})
    (root / "b" / "1.png").write_bytes(b"broken")
    dataset = load_image_folder(root, LoadConfig(workers, tmp_path / "cache"))
    with pytest.raises(UnreadableImageError) as caught:
        dataset.at(9, SQUASH)
    assert str(caught.value) == (
        f"cannot read image {root / 'b' / '1.png'}: it is no known image; it must be a whole file "
        "in a format that Pillow decodes; convert it again or remove it"
    )
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("cached", [False, True])
def test_skipping_counts_and_names_the_broken_and_keeps_labels_in_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cached: bool
) -> None:
    root = noise_folder(tmp_path / "set", {"a": 20, "b": 4})
    for k in range(12):
        (root / "a" / f"{k}.png").write_bytes(b"broken")
    truncated = (root / "b" / "2.png").read_bytes()[:100]
    (root / "b" / "2.png").write_bytes(truncated)
    load = LoadConfig(2, tmp_path / "cache" if cached else None, on_broken="skip")
    with caplog.at_level(logging.WARNING):
        dataset = load_image_folder(root, load)
    broken = [*sorted(root / "a" / f"{k}.png" for k in range(12)), root / "b" / "2.png"]
    first = tuple(str(path) for path in broken[:10])
    assert dataset.skipped == Skipped(13, first)
    assert caplog.messages == [
        f"set: skipped 13 of 24 images that no decoder reads: {', '.join(first)} and 3 more"
    ]
    assert np.bincount(dataset.labels).tolist() == [8, 3]
    pixels = dataset.at(9, SQUASH)
    for index, path in enumerate(dataset.images.paths):
        assert dataset.classes[dataset.labels[index]] == path.parent.name
        np.testing.assert_array_equal(pixels[index], resize_batch(dataset.images, 9, SQUASH)[index])
    assert dataset.subset([0]).skipped == dataset.skipped


def test_what_was_found_broken_is_remembered_in_the_cache_until_a_file_changes(
    tmp_path: Path,
) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 3})
    whole = (root / "a" / "1.png").read_bytes()
    (root / "a" / "1.png").write_bytes(b"broken")
    decoded: list[int] = []
    load = LoadConfig(
        0, tmp_path / "cache", "skip", progress=lambda done, total: decoded.append(done)
    )
    assert load_image_folder(root, load).skipped.count == 1
    assert load_image_folder(root, load).skipped.count == 1
    assert decoded == [6]  # the second one looked nothing up in the images
    (root / "a" / "1.png").write_bytes(whole)
    assert load_image_folder(root, load).skipped == Skipped()
    assert decoded == [6, 6]
    for path in (tmp_path / "cache").glob("*checked*.json"):
        path.write_text("{")  # damaged: it is found out again
    assert load_image_folder(root, load).skipped == Skipped()
    assert decoded == [6, 6, 6]


def test_a_class_that_loses_all_its_images_is_an_error(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 2})
    for k in range(2):
        (root / "b" / f"{k}.png").write_bytes(b"broken")
    with pytest.raises(DataError) as caught:
        load_image_folder(root, LoadConfig(on_broken="skip"))
    assert str(caught.value) == (
        f"set: no image of class 'b' can be read; each class needs at least 1; the unreadable ones "
        f"are {root / 'b' / '0.png'}, {root / 'b' / '1.png'}; convert them again or remove the "
        "class"
    )


def test_nothing_is_decoded_or_left_out_unless_skipping_is_asked_for(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 2, "b": 2})
    (root / "a" / "0.png").write_bytes(b"broken")
    dataset = load_image_folder(root)
    assert len(dataset) == 4
    assert without_broken(dataset) is dataset
    assert without_broken(replace(dataset, load=LoadConfig(on_broken="skip"))).labels.size == 3
