"""Images from anywhere: torchvision data sets, subsets, iterables of pairs, arrays and tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from data_cases import noise_folder, noise_image
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from patchdeploy.data import (
    ImageDataset,
    ImageFiles,
    LoadConfig,
    Preprocessing,
    Skipped,
    check_classes,
    image_pixels,
    load_image_folder,
    warn_overlap,
)
from patchdeploy.errors import DataError, UnreadableImageError


class Pairs:
    """A map-style data set without a list of labels; counts what is read."""

    def __init__(self, items: list[Any]) -> None:
        self.items, self.reads = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


@given(
    arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9)),
    st.sampled_from([0, 1, 3]),
)
def test_the_same_pixels_come_from_pillow_numpy_and_torch(plane: np.ndarray, channels: int) -> None:
    image = plane if channels == 0 else np.stack([plane + k for k in range(channels)], axis=-1)
    flat = image[..., 0] if channels == 1 else image
    tensor = torch.from_numpy(image.copy())
    tensor = tensor.permute(2, 0, 1) if image.ndim == 3 else tensor
    expected = image if channels == 3 else np.repeat(plane[..., None], 3, axis=-1)
    for one in (Image.fromarray(flat), image, tensor):
        pixels = image_pixels(one, "x")
        np.testing.assert_array_equal(pixels, expected)
        assert pixels.flags.c_contiguous


def test_a_transparent_array_is_laid_over_white() -> None:
    layer = np.zeros((2, 2, 4), np.uint8)
    layer[0, 0] = (10, 20, 30, 255)
    for one in (layer, torch.from_numpy(layer).permute(2, 0, 1)):
        pixels = image_pixels(one, "x")
        assert pixels[0, 0].tolist() == [10, 20, 30]
        assert pixels[1, 1].tolist() == [255, 255, 255]


RULE = (
    "it must be a file, a Pillow image, a numpy array [H, W] or [H, W, C], or a torch tensor "
    "[H, W] or [C, H, W], of uint8, uint16, bool, or fractions from 0 to 1"
)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, f"image 3 is a NoneType; {RULE}; convert it"),
        (
            torch.zeros(3, 4, 4, dtype=torch.int64),
            f"image 3 holds int64 values; {RULE}; convert it",
        ),
        (
            torch.full((3, 4, 4), -2.5),
            "image 3 holds float32 values: its samples go from -2.5 to -2.5, outside of 0 to 1, "
            "the range of their type; 8 bits are made of the range that the file states (TIFF: "
            "SMinSampleValue, SMaxSampleValue); scale it to uint8 yourself, all images of a task "
            "alike; leave Normalize out of a data set's transform (patchdeploy normalises by "
            "itself)",
        ),
        (
            torch.zeros(5, 4, 3, dtype=torch.uint8),
            "image 3 has shape [5, 4, 3]; it must be [H, W] or [C, H, W] with 1, 3 or 4 channels "
            "and no side of 0; convert it",
        ),
        (
            np.zeros((3, 4, 5), np.uint8),
            "image 3 has shape [3, 4, 5]; it must be [H, W] or [H, W, C] with 1, 3 or 4 channels "
            "and no side of 0; convert it",
        ),
        (
            np.zeros((0, 5), np.uint8),
            "image 3 has shape [0, 5]; it must be [H, W] or [H, W, C] with 1, 3 or 4 channels and "
            "no side of 0; convert it",
        ),
    ],
)
def test_what_is_no_uint8_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        image_pixels(image, "image 3")
    assert str(caught.value) == message


def test_torchvisions_image_folder_is_read_lazily_and_agrees_with_ours(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 4, "b": 3})
    theirs = ImageDataset.from_torchvision(torchvision.datasets.ImageFolder(root), "set")
    ours = load_image_folder(root)
    assert (theirs.name, theirs.classes) == (ours.name, ours.classes)
    np.testing.assert_array_equal(theirs.labels, ours.labels)
    np.testing.assert_array_equal(theirs.at(8, Preprocessing()), ours.at(8, Preprocessing()))
    assert theirs.image_name(6) == ours.image_name(6) == str(root / "b" / "2.png")
    assert theirs.subset([6, 0]).image_name(0) == str(root / "b" / "2.png")
    np.testing.assert_array_equal(theirs.subset([6, 5, 1]).subset([1]).images[0], noise_image(5))
    assert theirs.images[5:].item(1)[1] == 1
    with pytest.warns(UserWarning, match="2 of 2 test images"):
        assert warn_overlap(ours, theirs.subset([6, 0])) == [(6, 0), (0, 1)]


def test_a_set_in_torchvisions_own_files_keeps_classes_and_labels(tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    grey = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    header = bytes((0, 0, 8, 3)) + b"".join(n.to_bytes(4, "big") for n in (6, 28, 28))
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + grey.tobytes())
        labels = bytes((0, 0, 8, 1)) + (6).to_bytes(4, "big") + bytes((9, 0, 1, 2, 3, 4))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    dataset = ImageDataset.from_torchvision(torchvision.datasets.FashionMNIST(tmp_path))
    assert (dataset.name, dataset.classes[0], dataset.classes[9]) == (
        "FashionMNIST",
        "T-shirt/top",
        "Ankle boot",
    )
    assert dataset.labels.tolist() == [9, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(dataset.images[2][..., 1], grey[2])
    assert dataset.image_name(2) == "image 2 of FashionMNIST"


def test_a_set_that_lists_no_labels_is_read_for_them() -> None:
    fake = torchvision.datasets.FakeData(12, (3, 8, 9), num_classes=5)
    dataset = ImageDataset.from_torchvision(fake, "fake", classes=list("abcde"))
    assert dataset.labels.tolist() == [int(fake[k][1]) for k in range(12)]
    assert dataset.classes == tuple("abcde")
    np.testing.assert_array_equal(dataset.images[7], np.array(fake[7][0]))


def test_listed_labels_that_are_not_those_of_the_items_are_not_believed() -> None:
    class Shifted(Pairs):
        targets = (0, 1, 0)

    items = [(noise_image(k), label) for k, label in enumerate((1, 1, 0))]
    assert ImageDataset.from_torchvision(Shifted(items), "x").labels.tolist() == [1, 1, 0]
    honest = Shifted([(noise_image(k), label) for k, label in enumerate((0, 1, 0))])
    assert ImageDataset.from_torchvision(honest, "x").labels.tolist() == [0, 1, 0]
    assert honest.reads == 3  # the first, the middle and the last: a list of 3 is all of them


def test_a_target_transform_is_followed(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 2, "b": 2, "c": 1})
    folder = torchvision.datasets.ImageFolder(root, target_transform=lambda label: 2 - label)
    dataset = ImageDataset.from_torchvision(folder)
    assert dataset.labels.tolist() == [2, 2, 1, 1, 0]


def test_a_subset_of_a_subset_keeps_labels_classes_and_files(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 3})
    whole = torchvision.datasets.ImageFolder(root)
    part = torch.utils.data.Subset(torch.utils.data.Subset(whole, [5, 0, 3]), [2, 0])
    dataset = ImageDataset.from_torchvision(part, "part")
    assert (dataset.labels.tolist(), dataset.classes) == ([1, 1], ("a", "b"))
    assert dataset.image_name(0) == str(root / "b" / "0.png")
    np.testing.assert_array_equal(dataset.images[1], noise_image(5))


def test_a_transform_shows_in_the_pixels_and_in_the_cache(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 2, "b": 2})
    load = LoadConfig(2, tmp_path / "cache")
    plain = torchvision.datasets.ImageFolder(root)
    turned = torchvision.datasets.ImageFolder(
        root, torchvision.transforms.RandomHorizontalFlip(p=1.0)
    )
    for source in (plain, turned, torch.utils.data.Subset(turned, range(4))):
        dataset = ImageDataset.from_torchvision(source, "x", load=load)
        straight = np.stack([noise_image(k) for k in range(4)])
        expected = straight if source is plain else straight[:, :, ::-1]
        np.testing.assert_array_equal(np.stack(list(dataset.images)), expected)
        flat = ImageDataset("y", list(expected), dataset.labels, dataset.classes)
        np.testing.assert_array_equal(dataset.at(7, Preprocessing()), flat.at(7, Preprocessing()))
    assert len(list((tmp_path / "cache").iterdir())) == 2  # the last one has the second's pixels


def test_a_transform_to_fractions_gives_the_same_pixels_and_one_that_normalises_is_refused(
    tmp_path: Path,
) -> None:
    root = noise_folder(tmp_path / "set", {"a": 2, "b": 2})
    to_tensor = torchvision.transforms.ToTensor()
    scaled = ImageDataset.from_torchvision(torchvision.datasets.ImageFolder(root, to_tensor))
    for index in range(4):
        np.testing.assert_array_equal(scaled.images[index], noise_image(index))
    normalize = torchvision.transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    both = torchvision.transforms.Compose([to_tensor, normalize])
    with pytest.raises(DataError, match=r"leave Normalize out of a data set's transform"):
        ImageDataset.from_torchvision(torchvision.datasets.ImageFolder(root, both))


def test_a_broken_image_of_a_torchvision_set_is_named_or_skipped(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 3, "b": 3})
    broken = root / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    folder = torchvision.datasets.ImageFolder(root)
    with pytest.raises(UnreadableImageError) as caught:
        ImageDataset.from_torchvision(folder).at(8, Preprocessing())
    assert str(caught.value) == (
        f"cannot read image {broken}: image file is truncated; it must be a whole file in a format "
        "that Pillow decodes; convert it again or remove it"
    )
    kept = ImageDataset.from_torchvision(folder, load=LoadConfig(on_broken="skip"))
    assert kept.skipped == Skipped(1, (str(broken),))
    assert kept.labels.tolist() == [0, 0, 1, 1, 1]
    assert kept.at(8, Preprocessing()).shape == (5, 8, 8, 3)


def test_an_item_that_cannot_be_read_is_skipped_where_labels_come_from_items() -> None:
    items: list[Any] = [(noise_image(k), k % 2) for k in range(5)]
    items[2] = OSError("the archive ends here")
    with pytest.raises(UnreadableImageError) as caught:
        ImageDataset.from_torchvision(Pairs(items), "x")
    assert str(caught.value) == (
        "cannot read image 2 of x: the archive ends here; it must be a whole image that the data "
        "set reads; convert it again or leave it out"
    )
    kept = ImageDataset.from_torchvision(Pairs(items), "x", load=LoadConfig(on_broken="skip"))
    assert kept.skipped == Skipped(1, ("image 2 of x",))
    assert kept.labels.tolist() == [0, 1, 1, 0]
    np.testing.assert_array_equal(kept.images[2], noise_image(3))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"image": 1}],
            "image 0 of x is a dict; each item must be (image, integer label); wrap the data set",
        ),
        (
            [(noise_image(0), "cat")],
            "image 0 of x has the label 'cat'; a label must be an integer from 0 up; give the data "
            "set a target_transform, or use ImageDataset.from_iterable, which takes class names",
        ),
        (
            [(noise_image(0), 0), (noise_image(1), -1)],
            "x: label -1; labels must be 0 to 0, one per class; correct the labels or add the "
            "class",
        ),
    ],
)
def test_items_that_are_no_image_and_label_are_refused(items: list[Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        ImageDataset.from_torchvision(Pairs(items), "x")
    assert str(caught.value) == message


def test_a_stream_is_pointed_to_from_iterable() -> None:
    with pytest.raises(DataError) as caught:
        ImageDataset.from_torchvision(iter([]), "x")
    assert str(caught.value) == (
        "x is a list_iterator without len() and [index]; a map-style data set has both; use "
        "ImageDataset.from_iterable for a stream of (image, label)"
    )


def test_a_generator_of_pixels_and_numbers_is_read_to_its_end() -> None:
    pairs = ((noise_image(k), k % 3) for k in range(7))
    dataset = ImageDataset.from_iterable(pairs, "x")
    assert (dataset.classes, dataset.labels.tolist()) == (("0", "1", "2"), [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(dataset.images[6], noise_image(6))


def test_class_names_become_labels_in_sorted_or_given_order() -> None:
    pairs = [(noise_image(k), name) for k, name in enumerate(("pear", "fig", "pear"))]
    assert ImageDataset.from_iterable(pairs, "x").labels.tolist() == [1, 0, 1]
    assert ImageDataset.from_iterable(pairs, "x").classes == ("fig", "pear")
    chosen = ImageDataset.from_iterable(pairs, "x", classes=("pear", "fig", "plum"))
    assert (chosen.labels.tolist(), chosen.classes[2]) == ([0, 1, 0], "plum")
    with pytest.raises(DataError) as caught:
        ImageDataset.from_iterable(pairs, "x", classes=("pear", "plum"))
    assert str(caught.value) == (
        "x: label 'fig' is no class; the classes are pear, plum; correct it or add the class"
    )


def test_integers_that_are_no_positions_do_not_make_as_many_names() -> None:
    pairs = [(noise_image(k), label) for k, label in enumerate((4 * 10**12, 3))]
    for make in (
        lambda: ImageDataset.from_iterable(pairs, "x"),
        lambda: ImageDataset.from_torchvision(Pairs(pairs), "x"),
    ):
        with pytest.raises(DataError) as caught:
            make()
        assert str(caught.value) == (
            "x: label 4000000000000 without class names; whole numbers are positions from 0 to "
            "65535, the most classes that a patch has; give classes, or use "
            "ImageDataset.from_iterable with labels as text, which numbers those that occur"
        )
    for label in (10**30, float("inf"), float("nan"), 0.5, None, [0.2, 0.8]):
        with pytest.raises(DataError, match="image 0 of x has the label"):
            ImageDataset.from_iterable([(noise_image(0), label)], "x")


@pytest.mark.parametrize(
    "labels",
    [
        [2, 0, 1],
        (2, 0, 1),
        np.array([2, 0, 1], np.int32),
        np.array([2, 0, 1], np.uint8),
        np.array([2.0, 0.0, 1.0]),
        np.array([[2], [0], [1]]),
        np.eye(3)[[2, 0, 1]],
        np.eye(3, dtype=bool)[[2, 0, 1]],
        torch.tensor([2, 0, 1]),
        torch.eye(3)[[2, 0, 1]],
    ],
    ids=str,
)
def test_labels_of_any_usual_form_are_positions(labels: Any) -> None:
    images = [noise_image(k) for k in range(3)]
    dataset = ImageDataset("x", images, labels, ["a", "b", "c"])
    assert (dataset.labels.tolist(), dataset.labels.dtype) == ([2, 0, 1], np.int64)
    assert dataset.classes == ("a", "b", "c")
    pairs = ImageDataset.from_iterable(zip(images, labels, strict=True), "x", classes="abc")
    assert pairs.labels.tolist() == [2, 0, 1]


LABEL_RULE = "labels must be whole numbers, one per image, or rows with one 1 each; convert them"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5, 1], f"x: label 0.5 of image 0; {LABEL_RULE}"),
        ([0, np.nan], f"x: label nan of image 1; {LABEL_RULE}"),
        (["a", "b"], f"x: labels are <U1 [2]; {LABEL_RULE}"),
        ([[0.3, 0.7], [1, 0]], f"x: labels are rows of 2 values; {LABEL_RULE}"),
        (
            np.eye(3)[:2],
            "x: labels are rows of 3 values for 2 classes; a row has a value for each class; "
            "correct the labels or the classes",
        ),
    ],
)
def test_what_is_no_label_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        ImageDataset("x", [noise_image(0), noise_image(1)], labels, ("a", "b"))
    assert str(caught.value) == message


def test_images_of_a_list_may_have_any_form_and_a_stack_of_grey_ones_is_one(
    tmp_path: Path,
) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    forms = [grey, list(grey), [Image.fromarray(one) for one in grey], torch.from_numpy(grey)]
    for images in forms:
        dataset = ImageDataset("x", images, [0, 1, 0], ("a", "b"))
        assert dataset.at(9, Preprocessing()).shape == (3, 9, 9, 3)
        np.testing.assert_array_equal(dataset.images[1][..., 2], grey[1])
    Image.fromarray(grey[0]).save(tmp_path / "a.png")
    files = ImageDataset("x", [str(tmp_path / "a.png")], [0], ("a",))
    assert isinstance(files.images, ImageFiles)
    with pytest.raises(DataError, match=r"image 1 of x is a dict"):
        ImageDataset("x", [grey[0], {}], [0, 0], ("a",))
    with pytest.raises(DataError, match=r"x: images are a generator"):
        ImageDataset("x", (one for one in grey), [0, 0, 0], ("a",))  # type: ignore[arg-type]


def test_accents_in_parts_and_as_characters_are_one_name() -> None:
    composed, parts = "caf\u00e9", "cafe\u0301"
    images = [noise_image(0), noise_image(1)]
    pairs = list(zip(images, (composed, parts), strict=True))
    assert ImageDataset.from_iterable(pairs, "x").classes == (composed,)
    assert ImageDataset.from_iterable(pairs, "x", classes=[parts]).labels.tolist() == [0, 0]
    dataset = ImageDataset("x", images, [0, 1], (parts, "tea"))
    assert dataset.classes == (composed, "tea")
    found = dataset.labels_as(("tea", parts))
    assert found is not None
    assert found.tolist() == [1, 0]
    with pytest.raises(DataError, match="occurs in composed and in decomposed form"):
        ImageDataset("x", images, [0, 1], (parts, composed))


def test_classes_of_one_name_are_matched_by_position_alone() -> None:
    images = [noise_image(k) for k in range(3)]
    dataset = ImageDataset("x", images, [0, 1, 2], ("crane", "crane", "duck"))
    same = dataset.labels_as(("crane", "crane", "duck"))
    assert same is not None
    assert same.tolist() == [0, 1, 2]
    assert dataset.labels_as(("duck", "crane", "crane")) is None


def test_paths_stay_files_and_mix_with_pixels(tmp_path: Path) -> None:
    root = noise_folder(tmp_path / "set", {"a": 2, "b": 1})
    paths = [root / "a" / "0.png", str(root / "a" / "1.png"), root / "b" / "0.png"]
    lazy = ImageDataset.from_iterable(zip(paths, "aab", strict=True), "x")
    assert isinstance(lazy.images, ImageFiles)
    assert lazy.image_name(1) == str(root / "a" / "1.png")
    (root / "a" / "1.png").write_bytes(b"broken")
    skip = LoadConfig(on_broken="skip")
    mixed: list[Any] = [*paths, noise_image(9)]
    for images, labels in ((paths, "aab"), (mixed, "aabb")):
        pairs = list(zip(images, labels, strict=True))
        kept = ImageDataset.from_iterable(pairs, "x", load=skip)
        assert kept.skipped.count == 1
        assert kept.labels.tolist() == [0, 1, 1][: len(images) - 1]
        np.testing.assert_array_equal(kept.images[1], noise_image(2))
    with pytest.raises(UnreadableImageError, match="cannot read image"):
        ImageDataset.from_iterable(zip(mixed, "aabb", strict=True), "x")


def test_an_iterable_of_something_else_is_refused() -> None:
    with pytest.raises(DataError) as caught:
        ImageDataset.from_iterable([noise_image(0)], "x")  # type: ignore[list-item]
    assert str(caught.value) == (
        "item 0 of x is a ndarray; each item must be (image, label); pair them, for instance with "
        "zip"
    )


def test_a_class_without_an_image_and_a_single_class_cannot_be_trained() -> None:
    images = [noise_image(k) for k in range(3)]
    names = ("a", "b", "c")
    check_classes(ImageDataset("x", images, np.array([0, 1, 2]), names))
    with pytest.raises(DataError) as caught:
        check_classes(ImageDataset("x", images, np.array([0, 2, 2]), names))
    assert str(caught.value) == (
        "x: class 'b' has no image (1 of 3 classes have none); each class needs at least 1; add "
        "images or leave the class out"
    )
    with pytest.raises(DataError) as caught:
        check_classes(ImageDataset("x", images, np.array([1, 1, 1]), names))
    assert str(caught.value) == (
        "x: 3 images of 1 classes; training needs images of at least 2 classes; add some"
    )
