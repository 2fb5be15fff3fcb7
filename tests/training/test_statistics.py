"""Statistics are those of the whole set, in whatever order it lies."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import chdtri
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged
from patchdeploy.errors import ConfigError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.training import TrainConfig, train_baseline, train_patch
from patchdeploy.training.mixed import train_many_patches
from patchdeploy.training.resolutions import train_resolutions
from patchdeploy.training.samples import STREAM_STRIDE, Samples
from patchdeploy.training.statistics import draw_statistics_batches

sys.path.insert(0, str(Path(__file__).parent))
from test_workers import run
from worker_program import Order

PX, BATCH, A_CLASS = 16, 32, 96
MEASURED = PatchConfig(("statistics", "head"), statistics="reestimated")
CPU = torch.device("cpu")
Train = Callable[[Base, ImageDataset, ImageDataset, int], Patch]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    """One normalisation, right behind the first convolution: what it sees of an image depends on
    no other image, so what it must measure can be computed."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return Base.from_module(module, Preprocessing((0.5,) * 3, (0.25,) * 3, PX), "small")


@pytest.fixture(scope="module")
def by_class() -> ImageDataset:
    """96 photographs of each of ten surfaces, class after class as an image folder gives them."""
    whole = load_packaged("surfaces")[0]
    places = [np.flatnonzero(whole.labels == label)[:A_CLASS] for label in range(10)]
    return whole.subset(np.concatenate(places))


@pytest.fixture(scope="module")
def held() -> ImageDataset:
    return load_packaged("surfaces")[1].subset(range(0, 500, 10))


def alone(base: Base, images: ImageDataset, held: ImageDataset, seed: int) -> Patch:
    return train_patch(base, images, config(seed), MEASURED, validation=held, quiet=True)


def among_others(base: Base, images: ImageDataset, held: ImageDataset, seed: int) -> Patch:
    """As the second of two tasks."""
    tasks = {"other": images, "this": images}
    validation = dict.fromkeys(tasks, held)
    made = train_many_patches(
        base, tasks, config(seed), MEASURED, validation=validation, quiet=True
    )
    return made["this"]


def config(seed: int) -> TrainConfig:
    return TrainConfig(epochs=1, batch_size=BATCH, seed=seed, device="cpu")


@dataclass(frozen=True)
class Whole:
    """What the normalisation sees of a set; float64 [channels].

    Attributes:
        mean, variance: over all images and places.
        between: unbiased variance of the images' means.
    """

    mean: Tensor
    variance: Tensor
    between: Tensor


@torch.no_grad()
def see_whole(base: Base, images: ImageDataset) -> Whole:
    samples = samples_of(base, images)
    outputs = base.module.get_submodule("0")(samples.batch(torch.arange(len(samples)), CPU)[0])
    outputs = outputs.double()
    means = outputs.mean((2, 3))
    return Whole(means.mean(0), outputs.var((0, 2, 3), correction=0), means.var(0))


def samples_of(base: Base, images: ImageDataset) -> Samples:
    pixels = images.at(PX, base.preprocessing)
    return Samples.from_arrays(pixels, images.labels, base.preprocessing)


def assert_measured(base: Base, patch: Patch, images: ImageDataset) -> None:
    """mu and var are the set's but for what random batches must lose.

    K = 30 batches of n = 32 images, each with 64 places: the mean of their means is the set's, and
    the mean of their biased variances is the set's variance less B, the variance of the batches'
    means. Those are means of n images drawn at random, so K n B / between is below a chi-squared
    value of K - 1 degrees (below, since they are drawn without putting back); one in a million
    exceeds 81.5, hence B <= 81.5 / 960 of ``between``. Unbiased: times 2048 / 2047. float32: sums
    of 2,048 values in pairs, far below 1e-5 of the deviation.
    """
    whole, batches = see_whole(base, images), len(images) // BATCH
    most = chdtri(batches - 1, 1e-6) / len(images) * whole.between
    mean, variance = (
        torch.from_numpy(np.array(patch.tensors(PX)[f"1.running_{name}"])).double()
        for name in ("mean", "var")
    )
    rounding = 1e-5 * whole.variance
    assert ((mean - whole.mean).abs() <= 1e-5 * whole.variance.sqrt()).all()
    lost = whole.variance * 2048 / 2047 - variance
    assert (lost >= -rounding).all()
    assert (lost <= most + rounding).all(), (lost / most).max()


@pytest.mark.parametrize("train", [alone, among_others])
def test_a_set_that_lies_class_by_class_has_the_statistics_of_a_shuffled_copy(
    base: Base, by_class: ImageDataset, held: ImageDataset, train: Train
) -> None:
    shuffled = by_class.subset(np.random.default_rng(1).permutation(len(by_class)))
    assert len(set(by_class.labels[:BATCH])) == 1 < len(set(shuffled.labels[:BATCH]))
    for images in (by_class, shuffled):
        assert_measured(base, train(base, images, held, 3), images)


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(96, 32, [32] * 3), (97, 32, [25, 24, 24, 24]), (34, 32, [17, 17]), (3, 1, [3]), (1, 8, [1])],
)
def test_each_image_is_in_one_batch_and_batches_are_of_one_size_and_never_of_one_image(
    images: int, batch_size: int, sizes: list[int]
) -> None:
    features = torch.arange(float(images))[:, None]
    samples = Samples(features, torch.zeros(images, dtype=torch.int64), None)
    batches = list(draw_statistics_batches(samples, batch_size, 0, CPU))
    assert [len(one) for one in batches] == sizes
    assert torch.equal(torch.cat(batches).sort(dim=0).values, features)


def test_the_seed_and_the_task_alone_draw_the_order() -> None:
    samples = Samples(torch.arange(96.0)[:, None], torch.zeros(96, dtype=torch.int64), None)

    def order(seed: int, stream: int = 0) -> list[float]:
        drawn = torch.cat(list(draw_statistics_batches(samples, 32, seed, CPU, stream)))
        return drawn.flatten().tolist()

    torch.manual_seed(0)
    first = order(3)
    torch.manual_seed(1)
    assert order(3) == first
    assert order(4) != first
    assert order(3, stream=1) != first
    assert order(3, stream=1) == order(3 + STREAM_STRIDE)


def test_a_task_among_others_has_the_statistics_of_a_run_alone_to_the_bit(
    base: Base, by_class: ImageDataset, held: ImageDataset
) -> None:
    together = among_others(base, by_class, held, 3)
    by_seed = {seed: alone(base, by_class, held, seed) for seed in (3, 3 + STREAM_STRIDE)}
    for name in ("running_mean", "running_var"):
        key = f"1.{name}"
        same = by_seed[3 + STREAM_STRIDE].tensors(PX)[key]
        assert np.array_equal(together.tensors(PX)[key], same)
        assert not np.array_equal(by_seed[3].tensors(PX)[key], same)


def test_two_ranks_measure_the_statistics_of_one_process_to_the_bit(tmp_path: Path) -> None:
    """`run` holds that both ranks agree; gradients change the head alone."""
    one, two = (
        run(
            Order(
                "patch", str(tmp_path / str(world)), {"epochs": 1}, "reestimated", MEASURED.kinds
            ),
            world,
        )["arrays"]
        for world in (1, 2)
    )
    measured = [key for key in one if key.endswith(("running_mean", "running_var"))]
    assert measured
    for key in measured:
        assert np.array_equal(one[key], two[key]), key


@pytest.mark.parametrize("way", ["patch", "all", "many", "resolutions"])
def test_batches_of_one_image_are_refused_where_they_are_normalised_by_their_own_statistics(
    base: Base, held: ImageDataset, way: str
) -> None:
    config = TrainConfig(epochs=1, batch_size=1)
    own = PatchConfig(("statistics", "head"), statistics="batch")
    ways = {
        "patch": lambda: train_patch(base, held, config, own, quiet=True),
        "all": lambda: train_baseline(base, held, "all", config, statistics="batch", quiet=True),
        "many": lambda: train_many_patches(base, {"a": held}, config, own, quiet=True),
        "resolutions": lambda: train_resolutions(base, held, [PX], config, quiet=True),
    }
    with pytest.raises(ConfigError) as caught:
        ways[way]()
    assert str(caught.value).endswith(
        ": batch_size=1; statistics 'batch' take the variance of each batch, of at least 2 images; "
        "raise it, or choose statistics 'frozen' or 'reestimated'"
    )
