"""Statistics of a random network: measured, exact, and what makes a patch learn at all."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.base.statistics import BATCH
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged, normalize_batch
from patchdeploy.errors import DataError

PX = 32


@pytest.fixture(scope="module")
def random_base() -> Base:
    settings = Preprocessing(input_size=PX)
    return Base.from_torchvision("mobilenet_v2", seed=0, preprocessing=settings, width_mult=0.35)


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    """One batch of garments."""
    return load_packaged("fashion")[0].subset(range(BATCH))


def outputs_of_norms(base: Base, images: ImageDataset) -> dict[str, Tensor]:
    """By path, and the network's own as "scores"; copies, as activations write in place."""
    seen: dict[str, Tensor] = {}
    norms = {p: m for p, m in base.module.named_modules() if isinstance(m, nn.BatchNorm2d)}
    handles = [
        norm.register_forward_hook(
            lambda _, __, output, path=path: seen.update({path: output.clone()})
        )
        for path, norm in norms.items()
    ]
    pixels = images.at(PX, base.preprocessing)
    with torch.no_grad():
        seen["scores"] = base.module(torch.from_numpy(normalize_batch(pixels, base.preprocessing)))
    for handle in handles:
        handle.remove()
    return seen


def test_signals_of_a_random_network_vanish_without_it_and_not_with_it(
    random_base: Base, images: ImageDataset
) -> None:
    before = outputs_of_norms(random_base, images)
    after = outputs_of_norms(random_base.with_statistics_of(images), images)
    scores = before.pop("scores"), after.pop("scores")
    # Seen: 1e-8 of a score's spread over images, against 0.2.
    assert float(scores[0].std(0).mean()) < 1e-6
    assert float(scores[1].std(0).mean()) > 1e-2
    assert len(after) == 52
    # Random layers far down amplify the difference between a batch's biased variance and the
    # unbiased one that is kept (1 / 64 where a map is one pixel), and a channel that nothing
    # reaches has no variance at all, so the middle channel of each layer is looked at: seen 0.78
    # to 1.0 of variance. Without measuring, all but the first layers are below 1e-3.
    spread = {path: float(one.var((0, 2, 3)).median()) for path, one in after.items()}
    assert all(0.5 < value < 2 for value in spread.values()), spread
    assert float(before["features.18.1"].var((0, 2, 3)).median()) < 1e-12
    # The first layer reads the images themselves, and only float32 rounds: sums of 64 * 256 values
    # up to 5, 2**-24 * 5 each at worst, against 1e-4; eps is 1e-5 of variances of 0.06 and more.
    first = after["features.0.1"].double()
    assert float(first.mean((0, 2, 3)).abs().max()) < 1e-4
    assert float((first.var((0, 2, 3)) - 1).abs().max()) < 1e-3


def test_the_base_itself_stays_as_it_is(random_base: Base, images: ImageDataset) -> None:
    before = {key: value.clone() for key, value in random_base.module.state_dict().items()}
    measured = random_base.with_statistics_of(images)
    after = random_base.module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    changed = {
        key
        for key, value in measured.module.state_dict().items()
        if not torch.equal(value, after[key])
    }
    assert {key.rpartition(".")[2] for key in changed} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert measured.sha256 != random_base.sha256
    assert (measured.name, measured.head_name) == (random_base.name, random_base.head_name)
    assert not any(layer.training for layer in measured.module.modules())
    assert {
        layer.momentum for layer in measured.module.modules() if isinstance(layer, nn.BatchNorm2d)
    } == {0.1}


def test_batches_span_classes_that_lie_one_after_another() -> None:
    """Two classes, dark and bright: batches of one class each would put their difference into no
    variance."""
    pixels = np.zeros((4 * BATCH, PX, PX, 3), np.uint8)
    pixels[2 * BATCH :] = 200
    pixels += np.random.default_rng(0).integers(0, 20, pixels.shape, np.uint8)
    labels = np.repeat([0, 1], 2 * BATCH)
    images = ImageDataset("shades", pixels, labels, ("dark", "bright"))
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    base = Base.from_module(module, Preprocessing(input_size=PX), "shades")
    measured = base.with_statistics_of(images).module[1]  # type: ignore[index]
    with torch.no_grad():
        signal = base.module[0](  # type: ignore[index]
            torch.from_numpy(normalize_batch(pixels, base.preprocessing))
        )
    exact = signal.double().var((0, 2, 3))
    # Each batch is half dark, half bright, as the whole: its variance is the whole's but for the
    # noise of its 64 * 1024 pixels, 1 / sqrt(65536) = 0.4 %, and the unbiased divisor, 1 / 65535.
    ratio = measured.running_var.double() / exact
    assert float((ratio - 1).abs().max()) < 0.01
    apart = signal[: 2 * BATCH].double().var((0, 2, 3)) / exact
    assert float(apart.max()) < 0.1  # what batches of one class would have given


def test_one_image_has_no_variance(random_base: Base, images: ImageDataset) -> None:
    with pytest.raises(DataError) as caught:
        random_base.with_statistics_of(images.subset([0]))
    assert str(caught.value) == (
        "statistics of 1 images; a variance needs at least 2; give more images"
    )
