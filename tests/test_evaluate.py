"""Accuracy, speed and names of data sets, over a small bundle made by hand."""

import numpy as np
import pytest
from bundle_cases import LABELS, make_bundle, make_patch, reference_logits
from graph_cases import random_images
from PIL import Image

from patchdeploy.bundle import add_task, create_bundle
from patchdeploy.data import ImageDataset, load_packaged
from patchdeploy.errors import (
    ConfigError,
    DataError,
    EmptyCalibrationError,
    UnknownTaskError,
)
from patchdeploy.evaluate import bench_bundle, evaluate_task, leftover, sample
from patchdeploy.named import open_base, open_calibration, open_images


def test_a_sample_is_the_same_each_time_and_keeps_the_mixture_of_classes():
    images = np.zeros((100, 4, 4, 3), np.uint8)
    dataset = ImageDataset("sorted", images, np.repeat(np.arange(2), 50), ("a", "b"))
    first, again = sample(dataset, 40), sample(dataset, 40)
    np.testing.assert_array_equal(first.labels, again.labels)
    # 40 of 50 + 50 without replacement: fewer than 8 of a class has probability below 1e-6.
    assert 8 <= int((first.labels == 0).sum()) <= 32
    assert sample(dataset, 100) is dataset
    assert sample(dataset, None) is dataset


def test_what_a_sample_leaves_out_is_the_rest():
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1).repeat(3, axis=3)
    dataset = ImageDataset("counted", images, np.zeros(100, np.int64), ("a",))
    taken, left = sample(dataset, 40), leftover(dataset, 40)
    assert sorted([*taken.images[:, 0, 0, 0], *left.images[:, 0, 0, 0]]) == list(range(100))
    assert (len(left), len(leftover(dataset, None)), len(leftover(dataset, 200))) == (60, 0, 0)


def test_packaged_images_are_named_by_set_and_part():
    train, test = load_packaged("faces")
    np.testing.assert_array_equal(open_images("packaged:faces:train").labels, train.labels)
    np.testing.assert_array_equal(open_images("packaged:faces:test").labels, test.labels)
    with pytest.raises(ConfigError, match=r"write packaged:faces:train"):
        open_images("packaged:faces:validation")
    with pytest.raises(DataError, match="unknown packaged set 'cats'"):
        open_images("packaged:cats:train")


@pytest.mark.parametrize("name", ["", "embeded", "torchvision:", "checkpoint:resnet18", "keras:"])
def test_a_base_name_of_no_form_lists_the_forms(name):
    with pytest.raises(ConfigError, match="is none of the forms embedded, torchvision:NAME"):
        open_base(name)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("evaluate") / "bundle")


@pytest.fixture(scope="module")
def dataset(bundle):
    """40 images of which the reference at 24 px gets 30 right."""
    images = random_images(40, 30)
    blank = ImageDataset("x", images, np.zeros(40, np.int64), LABELS)
    pixels = blank.at(24, bundle.manifest.preprocessing)
    labels = reference_logits(bundle, "onnxruntime", "first", 24, pixels).argmax(1)
    labels[:10] = (labels[:10] + 1) % len(LABELS)
    return ImageDataset("known", images, labels.astype(np.int64), LABELS)


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_top1_counts_what_is_right_whatever_the_order_of_the_classes(bundle, dataset, runtime):
    seen = []
    rows = evaluate_task(bundle.path, dataset, "first", runtime=runtime, progress=seen.append)
    assert [row.resolution for row in rows] == [16, 24]
    assert (rows[1].top1, rows[1].images, rows[1].runtime) == (0.75, 40, runtime)
    assert seen == [f"{px} px: {done} of 40 images" for px in (16, 24) for done in (32, 40)]
    moved = (dataset.labels + 1) % len(LABELS)  # every class one place further on
    other = ImageDataset("other", dataset.images, moved, (LABELS[-1], *LABELS[:-1]))
    again = evaluate_task(bundle.path, other, "first", runtime=runtime)
    assert [row.top1 for row in again] == [row.top1 for row in rows]


def test_images_of_other_classes_no_images_and_unknown_tasks_are_refused(bundle, dataset):
    stranger = ImageDataset("s", dataset.images, dataset.labels * 0, ("cat", "dog"))
    with pytest.raises(DataError, match="classes cat, dog; task 'first' has classes"):
        evaluate_task(bundle.path, stranger, "first")
    with pytest.raises(DataError, match="0 images"):
        evaluate_task(bundle.path, dataset.subset([]), "first")
    with pytest.raises(UnknownTaskError, match="'third'"):
        evaluate_task(bundle.path, dataset, "third")


def test_a_benchmark_says_what_it_measured_and_cold_swaps_load(bundle):
    report = bench_bundle(bundle.path, threads=(1,), rounds=15, warmup=2)
    assert report["device"]["versions"]["numpy"]
    assert (report["threads"], report["warmup"], report["rounds"]) == ([1], 2, 15)
    assert (report["runtimes"], report["resolutions"]) == (["litert", "onnxruntime"], [16, 24])
    assert len(report["latency"]) == 2 * 2
    for row in report["latency"]:
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
    medians = {(row["runtime"], row["kind"]): row["median_ms"] for row in report["swaps"]}
    for runtime in ("litert", "onnxruntime"):
        # Reading a patch and loading a model against a look into a dictionary: seen over 100 times.
        assert medians[(runtime, "cold")] > 3 * medians[(runtime, "resident")]


def test_a_cold_swap_is_cold_with_one_task_too(tmp_path):
    base, patch = make_patch()
    create_bundle(tmp_path / "b", base, resolutions=(16, 24), formats=("onnx",))
    with pytest.raises(UnknownTaskError, match="holds 0 tasks"):
        bench_bundle(tmp_path / "b", runtimes=("onnxruntime",), rounds=1)
    add_task(tmp_path / "b", patch)
    report = bench_bundle(tmp_path / "b", runtimes=("onnxruntime",), threads=(1,), rounds=15)
    cold, resident = (row["median_ms"] for row in report["swaps"])
    assert cold > 3 * resident


@pytest.mark.parametrize(("runtimes", "threads"), [((), (1,)), (("litert",), ()), (("x",), (1,))])
def test_a_benchmark_of_nothing_is_refused(bundle, runtimes, threads):
    with pytest.raises(ConfigError):
        bench_bundle(bundle.path, runtimes=runtimes, threads=threads)


def test_any_folder_of_images_calibrates_and_an_empty_one_is_refused(tmp_path):
    for name in ("a.png", "deeper/b.PNG", "notes.txt"):
        (tmp_path / "some" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(1, 8)[0]).save(tmp_path / "some" / name, "PNG")
    assert len(open_calibration(str(tmp_path / "some"))) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyCalibrationError, match="empty holds no image"):
        open_calibration(str(tmp_path / "empty"))
    with pytest.raises(EmptyCalibrationError, match="nowhere does not exist"):
        open_calibration(str(tmp_path / "nowhere"))
    assert len(open_calibration("packaged:faces:train")) == 120


def test_calibration_images_in_class_folders_keep_their_labels(tmp_path):
    for name in ("b/1.png", "a/2.png", "a/deep/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_images(1, 8)[0]).save(tmp_path / name)
    found = open_calibration(str(tmp_path))
    assert (found.classes, found.labels.tolist()) == (("a", "b"), [0, 0, 1])
    assert found.labels_as(("b", "a")).tolist() == [1, 1, 0]
    assert found.labels_as(("a", "b", "c")) is None
    Image.fromarray(random_images(1, 8)[0]).save(tmp_path / "c.png")
    found = open_calibration(str(tmp_path))
    assert (found.classes, found.labels.tolist()) == (("",), [0, 0, 0, 0])
