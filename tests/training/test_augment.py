"""Augmentation: the same pixels for the same seed, on every rank and at every resolution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchdeploy.data import Preprocessing, load_packaged, resize_batch
from patchdeploy.training.augment import REACH, augment
from patchdeploy.training.augment_library import GROUP_IMAGES
from patchdeploy.training.config import TrainConfig

CLASSES = 5
MODES = {
    "none": TrainConfig(),
    "shift": TrainConfig(augment="shift"),
    "shift_flip": TrainConfig(augment="shift_flip"),
    "randaugment": TrainConfig(augment="randaugment"),
    "mixup": TrainConfig(mixup=0.4),
    "cutmix": TrainConfig(cutmix=1.0),
    "everything": TrainConfig(augment="randaugment", mixup=0.4, cutmix=1.0),
}


@pytest.fixture(scope="module")
def photographs() -> dict[int, Tensor]:
    """Ten real photographs at 32 and 64 px, uint8 [10, px, px, 3]."""
    train, _ = load_packaged("surfaces")
    preprocessing = Preprocessing((0.5,) * 3, (0.5,) * 3, 64)
    picked = [train.images[k] for k in range(0, 100, 10)]
    return {px: torch.tensor(resize_batch(picked, px, preprocessing)) for px in (32, 64)}


def labels(count: int = 10) -> Tensor:
    return torch.arange(count) % CLASSES


def ramp(count: int, px: int) -> Tensor:
    """Images whose first plane holds the row and second the column: what moved can be read."""
    image = torch.zeros(count, px, px, 3, dtype=torch.uint8)
    image[..., 0] = torch.arange(px, dtype=torch.uint8)[None, :, None]
    image[..., 1] = torch.arange(px, dtype=torch.uint8)[None, None, :]
    return image


@pytest.mark.parametrize("mode", MODES)
def test_the_same_seed_gives_the_same_pixels_and_another_seed_does_not(mode, photographs):
    images, config = photographs[32], MODES[mode]
    one = augment(images, labels(), config, 3, classes=CLASSES)
    torch.rand(7)  # what others draw does not matter
    again = augment(images, labels(), config, 3, classes=CLASSES)
    other = augment(images, labels(), config, 4, classes=CLASSES)
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert torch.equal(one[0], other[0]) == (mode == "none")


@pytest.mark.parametrize("mode", MODES)
def test_input_and_the_global_generator_are_left_as_they_were(mode, photographs):
    images, given_labels = photographs[32].clone(), labels()
    before = torch.get_rng_state()
    augment(images, given_labels, MODES[mode], 3, classes=CLASSES)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, photographs[32])
    assert torch.equal(given_labels, labels())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parts", [1, 2, 3, 11])
def test_the_parts_of_a_batch_are_rows_of_the_whole(mode, parts, photographs):
    images, config = photographs[32], MODES[mode]
    whole, targets = augment(images, labels(), config, 5, classes=CLASSES)
    for k in range(parts):  # with 11 parts of 10 images the last is empty
        mine, my_targets = augment(images, labels(), config, 5, classes=CLASSES, part=(k, parts))
        assert torch.equal(mine, whole[k::parts])
        assert torch.equal(my_targets, targets[k::parts])


@pytest.mark.parametrize("augmentation", ["shift", "shift_flip"])
def test_a_shift_reaches_an_eighth_and_repeats_the_edge(augmentation):
    px, count = 64, 400
    images, _ = augment(
        ramp(count, px), labels(count), TrainConfig(augment=augmentation), 0, classes=CLASSES
    )
    rows, columns = images[:, :, 0, 0].int(), images[:, 0, :, 1].int()
    vertical = rows[:, px // 2] - px // 2
    assert vertical.unique().tolist() == list(range(-8, 9))
    # A mirrored ramp falls.
    mirrored = columns[:, px // 2] > columns[:, px // 2 + 1]
    horizontal = torch.where(mirrored, columns[:, px // 2 - 1], columns[:, px // 2]) - px // 2
    assert horizontal.unique().tolist() == list(range(-8, 9))
    expected = (torch.arange(px)[None] + vertical[:, None]).clamp(0, px - 1)
    assert torch.equal(rows, expected.int())
    # 400 fair coins: five standard deviations are 5 * sqrt(400) / 2 = 50.
    share = int(mirrored.sum())
    assert share == 0 if augmentation == "shift" else abs(share - 200) < 50
    correlation = np.corrcoef(vertical.numpy(), horizontal.numpy())[0, 1]
    assert abs(correlation) < 5 / np.sqrt(count)  # both axes are drawn on their own


@given(st.integers(0, 2**40), st.sampled_from([(64, 48), (64, 32), (224, 96), (37, 12)]))
@settings(max_examples=40, deadline=None)
def test_a_seed_moves_by_the_same_share_of_the_side_at_every_resolution(seed, sides):
    config = TrainConfig(augment="shift_flip")
    moved = []
    for px in sides:
        images, _ = augment(ramp(6, px), labels(6), config, seed, classes=CLASSES)
        columns = images[:, 0, :, 1].int()
        mirrored = columns[:, px // 2] > columns[:, px // 2 + 1]
        middle = torch.where(mirrored, columns[:, px - 1 - px // 2], columns[:, px // 2])
        vertical = images[:, px // 2, 0, 0].int() - px // 2
        moved.append((mirrored, (middle - px // 2) / px, vertical / px))
    assert torch.equal(moved[0][0], moved[1][0])
    for one, other in zip(moved[0][1:], moved[1][1:], strict=True):
        # Each side rounds to half of its pixel.
        assert float((one - other).abs().max()) <= 0.5 / sides[0] + 0.5 / sides[1] + 1e-6
        assert float(one.abs().max()) <= REACH + 0.5 / sides[0]


def test_randaugment_draws_for_groups_of_a_few_images():
    """Equal images of one group come out equal but for the moves; those of others do not."""
    count = 4 * GROUP_IMAGES
    images = torch.full((count, 16, 16, 3), 90, dtype=torch.uint8)
    images[:, :, :, 1] = 200  # flat, so that moves and mirrors change nothing
    done, _ = augment(images, labels(count), TrainConfig(augment="randaugment"), 1, classes=CLASSES)
    groups = done.reshape(4, GROUP_IMAGES, 16, 16, 3)
    assert all(torch.equal(group[0], one) for group in groups for one in group)
    assert len({tuple(group[0].flatten().tolist()) for group in groups}) > 1


@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_images_are(mode):
    """Image k is filled with the value 20 k, so that its mean tells the weights."""
    count = 8
    values = 20.0 * torch.arange(count)
    images = values.to(torch.uint8)[:, None, None, None].expand(-1, 32, 32, 3).contiguous()
    shares = set()
    for seed in range(6):
        done, targets = augment(images, torch.arange(count), MODES[mode], seed, classes=count)
        assert done.dtype == targets.dtype == torch.float32
        assert targets.shape == (count, count)
        # The mean over 3072 float32 values below 141: torch sums pairwise, 12 levels of 2^-24.
        expected = targets @ values
        np.testing.assert_allclose(done.mean((1, 2, 3)).numpy(), expected.numpy(), atol=2e-3)
        np.testing.assert_allclose(targets.sum(1).numpy(), 1.0, atol=3 * 2**-24)
        assert float(targets.min()) >= 0
        shares.add(round(float(targets[0, 0]), 4))
    assert len(shares) > 3


def test_cutmix_cuts_the_same_region_at_every_resolution(photographs):
    for seed in range(8):
        masks = []
        for px, images in photographs.items():
            images = images.clone()
            images[0], images[-1] = 0, 255  # image 0 is mixed with the one before it, the last
            done, _ = augment(images, labels(), MODES["cutmix"], seed, classes=CLASSES)
            edges = [done[0, :, :, 0].amax(axis).nonzero().flatten() for axis in (0, 1)]
            masks.append([[int(e[0]) / px, (int(e[-1]) + 1) / px] for e in edges if len(e)])
        if masks[0] and masks[1]:
            # Each side rounds each edge to half of its pixel.
            np.testing.assert_allclose(masks[0], masks[1], atol=0.5 / 32 + 0.5 / 64 + 1e-9)


def test_both_mixings_take_turns():
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    images[1] = 255
    config = TrainConfig(mixup=1.0, cutmix=1.0)
    cut = 0
    for seed in range(40):
        done, _ = augment(images, torch.arange(2), config, seed, classes=2)
        cut += bool(((done == 0) | (done == 255)).all())
    # 40 fair coins: five standard deviations are 5 * sqrt(40) / 2 = 16.
    assert abs(cut - 20) < 16


@pytest.mark.parametrize("alpha", [1e-3, 1e3])
@pytest.mark.parametrize("mode", ["mixup", "cutmix"])
def test_the_ends_of_what_mixing_allows_still_draw_shares(mode: str, alpha: float) -> None:
    config = TrainConfig.from_json({mode: alpha})
    for seed in range(20):
        images = ramp(8, 16)
        done, targets = augment(images, labels(8), config, seed, classes=CLASSES)
        assert bool(torch.isfinite(done).all())
        # Two shares that add up to 1, each rounded, and their sum: 3 * 2^-24.
        np.testing.assert_allclose(targets.sum(1).numpy(), 1.0, atol=3 * 2**-24)
