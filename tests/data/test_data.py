"""Images in, uint8 RGB out; class folders, splits and the packaged sets."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchdeploy.data import (
    PACKAGED_NAMES,
    ImageDataset,
    Preprocessing,
    load_image,
    load_image_folder,
    load_packaged,
    normalize_batch,
    overlapping,
    readable_suffixes,
    resize_batch,
    resize_image,
    split,
)
from patchdeploy.errors import ConfigError, DataError, UnreadableImageError


def gradient(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]; every pixel tells its row, its column and their sum."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)


def folder_of(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(gradient(8 + index, 9)).save(root / name / f"{index}.png")
    return root


def test_preprocessing_survives_json_and_refuses_an_unknown_key() -> None:
    one = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 96, "BGR", "crop", 0.875)
    assert Preprocessing.from_json(one.to_json()) == one
    with pytest.raises(ConfigError) as caught:
        Preprocessing.from_json({"sizee": 3})
    assert str(caught.value) == (
        "unknown preprocessing key 'sizee'; the keys are mean, std, input_size, channel_order, "
        "resize, crop_fraction; did you mean 'resize'?"
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"std": (0.0, 1.0, 1.0)},
        {"std": (1.0, 1.0, float("inf"))},
        {"mean": (0.0, float("nan"), 0.0)},
        {"mean": (0.0, True, 0.0)},
        {"mean": ("0", "0", "0")},
        {"mean": (10**400, 0, 0)},
        {"input_size": 0},
        {"input_size": 224.0},
        {"input_size": True},
        {"crop_fraction": 1.5},
        {"crop_fraction": 0.09},  # would make a large image of any
        {"crop_fraction": "1"},
        {"resize": "fit"},
    ],
)
def test_preprocessing_out_of_range_is_a_config_error(wrong: dict) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=f"preprocessing {key}="):
        Preprocessing(**wrong)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_every_pillow_mode_becomes_rgb_of_the_same_size(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(gradient(7, 11)).convert(mode).save(path)
    image = load_image(path)
    assert (image.shape, image.dtype) == ((7, 11, 3), np.uint8)
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(image, gradient(7, 11))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    layer = np.zeros((2, 2, 4), np.uint8)
    layer[0, 0] = (10, 20, 30, 255)
    Image.fromarray(layer).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [10, 20, 30]
    assert image[1, 1].tolist() == [255, 255, 255]


def test_sixteen_bit_samples_keep_their_upper_byte(tmp_path: Path) -> None:
    samples = np.array([[0, 255, 256], [0x1234, 0x80FF, 0xFFFF]], np.uint16)
    Image.fromarray(samples).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image[..., 0], samples >> 8)
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(gradient(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(gradient(4, 6), -1))


@pytest.mark.parametrize("damage", ["empty", "text", "truncated", "missing"])
def test_a_broken_image_names_its_file_rule_and_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broken.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    contents = {"empty": b"", "text": b"not an image", "truncated": whole[: len(whole) // 2]}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(UnreadableImageError) as caught:
        load_image(path)
    assert str(caught.value).startswith(f"cannot read image {path}: ")
    assert str(caught.value).endswith(
        "; it must be a whole file in a format that Pillow decodes; convert it again or remove it"
    )


@pytest.mark.filterwarnings("ignore")  # Pillow's own, on what it can still read
@pytest.mark.parametrize("suffix", ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_damaged_bytes_give_an_image_or_the_typed_error(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gradient(24, 31)).save(path)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    outcomes = set()
    for kept in np.linspace(0, len(whole) - 1, 30).astype(int):
        data = bytearray(whole)
        for where in generator.integers(0, min(len(data), 60), 3):
            data[where] = generator.integers(0, 256)
        for damaged in (whole[:kept], bytes(data)):
            path.write_bytes(damaged)
            try:
                image = load_image(path)
                assert (image.dtype, image.shape[2:]) == (np.uint8, (3,))
                outcomes.add("read")
            except UnreadableImageError:
                outcomes.add("refused")
    assert "refused" in outcomes


def test_squash_resizes_to_the_square_and_leaves_a_fitting_image_alone() -> None:
    image = gradient(20, 30)
    one = resize_image(image, 16, Preprocessing())
    expected = Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(one, np.array(expected))
    fitting = gradient(16, 16)
    np.testing.assert_array_equal(resize_image(fitting, 16, Preprocessing()), fitting)


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (37, 53)])
def test_crop_keeps_the_centre_and_the_aspect_ratio(shape: tuple[int, int]) -> None:
    image = np.zeros((*shape, 3), np.uint8)
    image[shape[0] // 2 - 8 : shape[0] // 2 + 8, shape[1] // 2 - 8 : shape[1] // 2 + 8] = 255
    crop = resize_image(image, 28, Preprocessing(resize="crop", crop_fraction=0.875))
    assert crop.shape == (28, 28, 3)
    bright = crop[..., 0] > 127
    # The square stays a square: its sides differ by at most the rounding of both edges, 2 px.
    assert abs(int(bright.any(0).sum()) - int(bright.any(1).sum())) <= 2
    assert bright[14, 14]


def test_an_empty_batch_has_the_shape_of_a_batch() -> None:
    assert resize_batch([], 8, Preprocessing()).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_normalising_follows_the_formula_in_the_networks_channel_order(order: str) -> None:
    settings = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 4, order)  # type: ignore[arg-type]
    pixels = gradient(4, 4)[None] * 3
    channels = pixels[..., ::-1] if order == "BGR" else pixels
    exact = (channels.astype(np.float64) / 255 - settings.mean) / settings.std
    # Three float32 operations, each within half an ulp of values below 3: 3 * 2**-24 * 3 < 6e-7.
    np.testing.assert_allclose(
        normalize_batch(pixels, settings), exact.transpose(0, 3, 1, 2), rtol=0, atol=6e-7
    )


def test_a_folder_per_class_is_read_lazily_in_sorted_order(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {"pear": 2, "apple": 3})
    dataset = load_image_folder(root)
    assert dataset.classes == ("apple", "pear")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.images[2].shape == (10, 9, 3)
    assert dataset.at(16, Preprocessing()).shape == (5, 16, 16, 3)
    assert dataset.at(16, Preprocessing()) is dataset.at(16, Preprocessing())
    assert dataset.subset([4, 0]).labels.tolist() == [1, 0]
    turned = dataset.subset([4, 0]).at(16, Preprocessing())
    np.testing.assert_array_equal(turned, dataset.at(16, Preprocessing())[[4, 0]])
    (root / "pear" / "1.png").write_bytes(b"broken")
    with pytest.raises(UnreadableImageError, match=re.escape(str(root / "pear" / "1.png"))):
        load_image_folder(root).at(16, Preprocessing())


def test_a_copy_with_other_images_is_resized_by_itself() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8) for _ in range(2))
    dataset = ImageDataset("set", one, np.array([0, 1]), ("a", "b"))
    np.testing.assert_array_equal(dataset.at(8, Preprocessing()), one)
    changed = replace(dataset, images=other)
    np.testing.assert_array_equal(changed.at(8, Preprocessing()), other)
    np.testing.assert_array_equal(dataset.at(8, Preprocessing()), one)


def test_names_that_begin_with_a_dot_and_other_files_are_passed_over(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "set", {"pear": 1, "apple": 1, ".git": 1})
    (root / "pear" / "._0.png").write_bytes(b"what macOS leaves")
    (root / "pear" / "notes.txt").write_text("sour")
    (root / "pear" / "album.png").mkdir()
    (root / "labels.csv").write_text("")
    dataset = load_image_folder(root)
    assert dataset.classes == ("apple", "pear")
    assert len(dataset) == 2


def test_a_class_without_images_and_a_single_class_are_refused(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "a", {"full": 1, "hollow": 0})
    with pytest.raises(DataError) as caught:
        load_image_folder(root)
    assert str(caught.value) == (
        f"class folder {root / 'hollow'} holds no image; each class needs at least 1 of "
        f"{', '.join(readable_suffixes())}; add images or remove the folder"
    )
    lonely = folder_of(tmp_path / "b", {"only": 1})
    with pytest.raises(DataError) as caught:
        load_image_folder(lonely)
    assert str(caught.value) == (
        f"{lonely} holds 1 class folders; a task needs at least 2; make one folder per class and "
        "put its images into it"
    )


def test_a_path_that_is_no_folder_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, state in (("nowhere", "does not exist"), ("file", "is a file")):
        with pytest.raises(DataError) as caught:
            load_image_folder(tmp_path / name)
        assert str(caught.value) == (
            f"images {tmp_path / name} {state}; a task needs a folder with one folder per class; "
            "correct the path"
        )


def test_labels_must_fit_images_and_classes() -> None:
    images = [gradient(4, 4)] * 2
    with pytest.raises(DataError, match="2 images but 1 labels"):
        ImageDataset("x", images, np.array([0]), ("a", "b"))
    with pytest.raises(DataError, match="label 2; labels must be 0 to 1"):
        ImageDataset("x", images, np.array([0, 2]), ("a", "b"))


def test_a_split_is_stratified_disjoint_and_repeatable() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(3), (40, 18, 2)).astype(np.int64)
    dataset = ImageDataset("x", images, labels, ("a", "b", "c"))
    train, held = split(dataset, (0.75, 0.25), seed=1)
    assert np.bincount(held.labels).tolist() == [10, 4, 1]  # rounded, and at least one of each
    assert len(train) + len(held) == 60
    assert overlapping(train, held) == []
    again = split(dataset, (0.75, 0.25), seed=1)[1]
    np.testing.assert_array_equal(held.images, again.images)
    other = split(dataset, (0.75, 0.25), seed=2)[1]
    assert not np.array_equal(held.images, other.images)
    with pytest.raises(DataError, match="split fractions"):
        split(dataset, (0.9, 0.2))


def test_an_image_in_both_sets_is_found_by_its_content() -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    labels = np.zeros(6, np.int64)
    whole = ImageDataset("x", images, labels, ("a",))
    assert overlapping(whole.subset([0, 1, 2]), whole.subset([4, 2, 5])) == [(2, 1)]


@pytest.mark.parametrize(
    ("name", "train_count", "test_count", "class_count"),
    [
        ("fashion", 3000, 1000, 10),
        ("digits", 3500, 1500, 10),
        ("optical_digits", 1198, 599, 10),
        ("surfaces", 1500, 500, 10),
        ("faces", 120, 80, 2),
    ],
)
def test_a_packaged_set_is_real_balanced_and_never_tests_on_a_training_image(
    name: str, train_count: int, test_count: int, class_count: int
) -> None:
    train, test = load_packaged(name)
    assert (len(train), len(test), len(train.classes)) == (train_count, test_count, class_count)
    assert train.classes == test.classes
    assert overlapping(train, test) == []
    for part in (train, test):
        counts = np.bincount(part.labels, minlength=class_count)
        assert counts.min() > 0.9 * counts.max()
        assert {image.shape[-1] for image in part.images} == {3}
        assert part.images[0].std() > 0


def test_an_unknown_packaged_set_lists_those_there_are() -> None:
    with pytest.raises(DataError) as caught:
        load_packaged("flowers")
    assert str(caught.value) == (
        f"unknown packaged set 'flowers'; there are {', '.join(PACKAGED_NAMES)}; name one of them, "
        "or load a folder of your own with load_image_folder"
    )
