"""What is prepared before the first step: by how much a network divides the side of its input."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from joint_cases import small_base
from torch import nn
from torchvision.models.vgg import make_layers

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing, load_packaged
from patchdeploy.errors import ConfigError, NonFiniteLossError, TrainingError
from patchdeploy.patch import PatchConfig
from patchdeploy.training import TrainConfig, train_baseline, train_patch
from patchdeploy.training.preparation import check_resolutions, measure_stride, refuse_settings
from patchdeploy.training.samples import name_memory


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


@pytest.mark.parametrize("every", [0, 1])
def test_weights_that_the_last_step_ruins_are_not_kept(tmp_path: Path, every: int) -> None:
    """The loss is looked at before the step, and is finite: one batch, or a save after the first of
    several."""
    train, _ = load_packaged("optical_digits")
    few = train.subset(range(60 if every else 30))
    config = TrainConfig(epochs=1, batch_size=32, learning_rate=1e40, save_every_steps=every)
    with pytest.raises(NonFiniteLossError) as caught:
        train_patch(Base.embedded(), few, config, resolutions=[32], run_dir=tmp_path, quiet=True)
    assert not (tmp_path / "32.pt").exists()
    assert re.fullmatch(
        r"optical_digits@32: .* is not finite after epoch 1, step 1; what is trained must "
        r"stay finite; try a tenth of the learning rate",
        str(caught.value),
    )


def test_images_that_no_memory_holds_are_named() -> None:
    """170 times 3 * 10^12 bytes: more than 2^48, all that an address reaches."""
    train, _ = load_packaged("optical_digits")
    config = TrainConfig(check_export=False)
    images = train.subset(range(200))
    with pytest.raises(TrainingError) as caught:
        train_patch(Base.embedded(), images, config, resolutions=[1_000_000], quiet=True)
    assert isinstance(caught.value.__cause__, MemoryError)
    before, _, after = str(caught.value).partition(" (")
    assert before == (
        "optical_digits: 170 images of 1000000 x 1000000 px need more memory than there is"
    )
    assert after.endswith("; all must fit at once; choose a smaller batch_size or resolution")


LITTLE_MEMORY = """
import resource
import torch
import torch._dynamo
from patchdeploy.base import Base
from patchdeploy.data import load_packaged
from patchdeploy.errors import TrainingError
from patchdeploy.training import TrainConfig, train_patch

torch.set_num_threads(1)
base, images = Base.embedded(), load_packaged("optical_digits")[0].subset(range(200))
config = TrainConfig(epochs=1, batch_size=128, device="cpu", check_export=False)
with open("/proc/self/statm") as file:
    used_bytes = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 2**28, -1))
train_patch(base, images, config, resolutions=(32,), quiet=True)
try:
    train_patch(base, images, config, resolutions=(256,), quiet=True)
except TrainingError as error:
    print(type(error.__cause__).__name__, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much memory it has")
def test_a_step_that_runs_out_of_memory_names_its_batches() -> None:
    """A process that may have 256 MiB more: 32 px fit, at 256 px torch itself is refused."""
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "RuntimeError optical_digits@256: batches of 128 images of 256 x 256 px need more memory "
        "than there is ("
    )
    assert done.stdout.endswith(
        "); all must fit at once; choose a smaller batch_size or resolution\n"
    )


def test_an_error_that_is_not_of_memory_passes_as_it_is() -> None:
    expected = pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied")
    with expected as caught, name_memory("anything"):
        torch.zeros(2, 3) @ torch.zeros(2, 3)
    assert type(caught.value) is RuntimeError
