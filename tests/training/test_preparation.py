"""What is prepared before the first step: by how much a network divides the side of its input."""

import re

import pytest
import torch
from joint_cases import small_base
from torch import nn
from torchvision.models.vgg import make_layers

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing, load_packaged
from patchdeploy.errors import ConfigError, NonFiniteLossError
from patchdeploy.patch import PatchConfig
from patchdeploy.training import TrainConfig, train_baseline, train_patch
from patchdeploy.training.preparation import check_resolutions, measure_stride, refuse_settings


def pooled(pool: nn.Module) -> Base:
    """A convolution of stride 2, then ``pool``."""
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        pool,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return Base.from_module(module, Preprocessing(input_size=32), "pooled")


@pytest.mark.parametrize(
    ("pool", "stride"),
    [
        (nn.Identity(), 2),
        (nn.MaxPool2d(2), 4),
        (nn.AvgPool2d(4), 8),
        (nn.AdaptiveAvgPool2d(1), 2),
    ],
)
def test_stride_counts_convolutions_and_pools_but_not_the_global_one(
    pool: nn.Module, stride: int
) -> None:
    assert measure_stride(pooled(pool)) == stride


def test_strides_of_mobilenet_v2_and_of_vgg11() -> None:
    """VGG11's plan of layers, with 4 channels each: its last division is a pool's, not a
    convolution's."""
    settings = Preprocessing(input_size=64)
    assert measure_stride(Base.from_torchvision("mobilenet_v2", preprocessing=settings)) == 32
    plan: list[int | str] = [4, "M", 4, "M", 4, 4, "M", 4, 4, "M", 4, 4, "M"]
    layers = (make_layers(plan), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    assert measure_stride(Base.from_module(nn.Sequential(*layers), settings, "thin vgg11")) == 32


def test_strides_of_the_embedded_and_of_a_tiny_network() -> None:
    assert measure_stride(Base.embedded()) == 32
    assert measure_stride(small_base()) == 2


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(4)])
def test_the_smallest_side_that_is_allowed_runs_and_one_below_is_refused(pool: nn.Module) -> None:
    base = pooled(pool)
    stride = measure_stride(base)
    check_resolutions(base, [stride])
    assert base.module(torch.zeros(1, 3, stride, stride)).shape == (1, 2)
    with pytest.raises(ConfigError) as caught:
        check_resolutions(base, [64, stride - 1])
    assert str(caught.value) == (
        f"resolution {stride - 1} px; base 'pooled' divides its input by {stride}, so each side "
        f"is at least {stride} px; choose {stride} or more"
    )


def test_measuring_leaves_the_base_as_it_was() -> None:
    base = small_base()
    before = {key: value.clone() for key, value in base.module.state_dict().items()}
    measure_stride(base)
    assert all(torch.equal(value, before[key]) for key, value in base.module.state_dict().items())
    assert not any(module._forward_hooks for module in base.module.modules())


@pytest.mark.parametrize("key", ["size_penalty", "rounding_step", "through_int8", "share_scales"])
def test_a_method_refuses_the_settings_that_it_would_pass_over(key: str) -> None:
    config = TrainConfig.from_json({key: 0.5 if key in ("size_penalty", "rounding_step") else True})
    with pytest.raises(ConfigError) as caught:
        refuse_settings(config, "train_tasks")
    assert str(caught.value) == (
        f"training {key}={getattr(config, key)!r}; train_tasks has no such form, only a patch that "
        "is trained on its own has (train_patch, method transfer); leave it out"
    )
    refuse_settings(TrainConfig(), "train_tasks")


def test_shared_scales_over_statistics_of_each_resolution_are_refused() -> None:
    train, _ = load_packaged("optical_digits")
    for statistics in ("reestimated", "batch"):
        with pytest.raises(ConfigError) as caught:
            train_patch(
                Base.embedded(),
                train,
                TrainConfig(share_scales=True),
                PatchConfig(statistics=statistics),
                quiet=True,
            )
        assert str(caught.value) == (
            f"training share_scales=True with patch statistics {statistics!r}; each resolution's "
            "own statistics give its scales other values, so that nothing is shared; use "
            "statistics 'frozen' or leave share_scales out"
        )


def test_a_baseline_checks_its_kind_and_its_resolution() -> None:
    train, _ = load_packaged("optical_digits")
    with pytest.raises(ConfigError, match="baseline 'none'; it must be head or all; choose one"):
        train_baseline(Base.embedded(), train, "none", quiet=True)  # type: ignore[arg-type]
    for which in ("head", "all"):
        with pytest.raises(ConfigError, match=r"resolution 8 px; .* divides its input by 32"):
            train_baseline(Base.embedded(), train, which, resolution=8, quiet=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_a_generator_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match=f"seed={seed}; it must be at least 0 and below 2"):
        TrainConfig(seed=seed)
    with pytest.raises(ConfigError, match=f"head_seed={seed}; it must be a whole number"):
        PatchConfig(head_seed=seed)


def test_weights_that_the_last_step_ruins_are_not_kept() -> None:
    train, _ = load_packaged("optical_digits")
    few = train.subset(range(30))  # one batch: the loss is looked at before the step, and is finite
    with pytest.raises(NonFiniteLossError) as caught:
        train_patch(
            Base.embedded(), few, TrainConfig(epochs=1, learning_rate=1e40), resolutions=[32],
            quiet=True,
        )  # fmt: skip
    assert re.fullmatch(
        r"optical_digits@32: .* is not finite after epoch 1, step 1; what is trained must "
        r"stay finite; try a tenth of the learning rate",
        str(caught.value),
    )
