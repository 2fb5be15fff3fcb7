"""Many patches in one run: the same as one after another, each with its own best epoch."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.patch import Patch, PatchConfig, Statistics
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patched_model.mixed import MixedTaskModel
from patchdeploy.training import TrainConfig, evaluate, train_patch
from patchdeploy.training.mixed import make_trainee, train_many_patches
from patchdeploy.training.records import METRICS_FILE, Recorder
from patchdeploy.training.samples import STREAM_STRIDE
from patchdeploy.training.trainee import Trainee

PX = 16
PAPER = TrainConfig(epochs=2, batch_size=16, recipe="paper", early_best=False, device="cpu", seed=3)
GROUPS = {"low": (0, 1, 2), "high": (5, 7), "odd": (1, 3, 9)}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    """A normalised, a depthwise and a bare convolution, and a head."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    return Base.from_module(module, Preprocessing((0.5,) * 3, (0.25,) * 3, PX), "small")


def digits(wanted: tuple[int, ...], count: int, part: int = 0) -> ImageDataset:
    """Real scans of some of the ten digits: equally many images whatever the digits."""
    whole = load_packaged("optical_digits")[part]
    places = np.flatnonzero(np.isin(whole.labels, wanted))[:count]
    labels = np.array([wanted.index(int(one)) for one in whole.labels[places]])
    images = whole.subset([int(one) for one in places])
    return replace(images, labels=labels, classes=tuple(map(str, wanted)))


@pytest.fixture(scope="module")
def tasks() -> dict[str, ImageDataset]:
    return {name: digits(wanted, 48) for name, wanted in GROUPS.items()}


@pytest.fixture(scope="module")
def held() -> dict[str, ImageDataset]:
    return {name: digits(wanted, 30, part=1) for name, wanted in GROUPS.items()}


@pytest.mark.parametrize("statistics", ["frozen", "reestimated", "batch"])
def test_patches_trained_together_equal_those_trained_alone_on_the_same_batches(
    base: Base,
    tasks: dict[str, ImageDataset],
    held: dict[str, ImageDataset],
    statistics: Statistics,
) -> None:
    patch_config = PatchConfig(("scale_bias", "depthwise", "head"), statistics=statistics)
    config = replace(PAPER, augment="shift", label_smoothing=0.1)
    together = train_many_patches(base, tasks, config, patch_config, validation=held, quiet=True)
    for stream, task in enumerate(tasks):
        alone = train_patch(
            base,
            tasks[task],
            replace(config, seed=config.seed + stream * STREAM_STRIDE),
            patch_config,
            task=task,
            validation=held[task],
            quiet=True,
        )
        assert_close(base, together[task], alone)


def assert_close(base: Base, found: Patch, expected: Patch) -> None:
    """Equal but for the order in which float32 sums were taken.

    RMSProp with epsilon 1 moves a value by at most the learning rate times the gradient, so what
    moved is off by no more than the gradients are, in relative terms. A gradient is a sum through
    at most 5 layers of 74 terms and over 16 * 64 pixels: two orders of it differ by at most
    2 * (5 * 74 + 1024) u = 1.7e-4 of the sum of magnitudes (u = 2**-24), of which a fifth or more
    remains here; feedback of one step on the next at most doubles it: 2e-3.
    """
    assert found.classes == expected.classes
    assert found.config == expected.config
    start = PatchedModel(base)
    start.add_task("start", expected.classes, expected.config)
    moved = 0.0
    for key, value in expected.tensors(PX).items():
        distance = float(np.abs(value - start.tensors()[key].detach().numpy()).max())
        error = float(np.abs(found.tensors(PX)[key] - value).max())
        assert error <= 2e-3 * distance + 1e-7, key
        moved = max(moved, distance)
    assert moved > 0.01


def test_tasks_of_different_sizes_and_classes_learn_side_by_side(
    base: Base, tmp_path: Path
) -> None:
    sets = {
        "low": digits((0, 1, 2), 120),
        "high": digits((5, 7), 33),
        "all": digits(tuple(range(10)), 90),
    }
    held = {
        "low": digits((0, 1, 2), 60, 1),
        "high": digits((5, 7), 60, 1),
        "all": digits(tuple(range(10)), 60, 1),
    }
    config = TrainConfig(epochs=4, batch_size=16, device="cpu")
    patches = train_many_patches(base, sets, config, validation=held, run_dir=tmp_path, quiet=True)
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    for task, patch in patches.items():
        best = max(line["validation_top1"] for line in lines if line["run"] == task)
        assert patch.metrics["validation_top1"] == {str(PX): round(best, 4)}
        model = PatchedModel(base)
        model.load_patch(patch)
        assert evaluate(model, held[task], PX, base)[0] == best  # each keeps its own best epoch
        assert patch.metrics["training_images"] == len(sets[task])
        assert len(patch.classes) == len(sets[task].classes)
    # Two digits of 33 images, passed over several times: by chance 0.5, and 60 images at 0.8 are
    # 4.6 standard deviations away from it.
    assert patches["high"].metrics["validation_top1"][str(PX)] > 0.8


def test_each_task_keeps_the_epoch_that_is_best_for_it(
    base: Base, tasks: dict[str, ImageDataset], held: dict[str, ImageDataset]
) -> None:
    config = TrainConfig(epochs=3, batch_size=16, learning_rate=0.3, device="cpu")
    best = train_many_patches(base, tasks, config, validation=held, quiet=True)
    last = train_many_patches(
        base, tasks, replace(config, early_best=False), validation=held, quiet=True
    )
    better = [
        best[task].metrics["validation_top1"][str(PX)]
        - last[task].metrics["validation_top1"][str(PX)]
        for task in tasks
    ]
    assert min(better) >= 0
    assert max(better) > 0  # at so large a rate an earlier epoch is best for some task


def test_a_run_that_was_stopped_ends_with_the_same_bits(
    base: Base, tasks: dict[str, ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(epochs=3, batch_size=16, device="cpu", augment="shift_flip")
    patch_config = PatchConfig(statistics="batch")
    whole = train_many_patches(base, tasks, config, patch_config, quiet=True)
    call: Any = lambda resume: train_many_patches(  # noqa: E731
        base, tasks, config, patch_config, run_dir=tmp_path, resume=resume, quiet=True
    )
    record = Recorder.__call__

    def stop(self: Recorder, one: Any) -> None:
        record(self, one)
        if one.epoch == 2 and one.run == "high":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            call(False)
    resumed = call(True)
    for task in tasks:
        for key, value in whole[task].tensors(PX).items():
            assert np.array_equal(resumed[task].tensors(PX)[key], value), (task, key)


@pytest.mark.parametrize("kinds", [("head",), ("scale_bias",), ("depthwise", "head")])
def test_what_a_patch_does_not_train_stays_as_it_was(
    base: Base, tasks: dict[str, ImageDataset], kinds: Any
) -> None:
    patches = train_many_patches(
        base, tasks, replace(PAPER, epochs=1), PatchConfig(kinds), quiet=True
    )
    for task, patch in patches.items():
        fresh = PatchedModel(base)
        fresh.add_task(task, patch.classes, PatchConfig(kinds))
        changed = {
            key
            for key, value in fresh.tensors().items()
            if not np.array_equal(patch.tensors(PX)[key], value.detach().numpy())
        }
        trained = {key for key, value in fresh.tensors().items() if value.requires_grad}
        assert changed == trained


def test_scales_never_change_their_sign(base: Base, tasks: dict[str, ImageDataset]) -> None:
    config = TrainConfig(epochs=2, batch_size=16, learning_rate=3.0, device="cpu")
    patches = train_many_patches(base, tasks, config, quiet=True)
    at_bound = 0
    for patch in patches.values():
        for key in ("1.weight", "4.weight", "6.patch_scale"):
            scale = patch.tensors(PX)[key]
            assert (scale >= np.float32(1e-3)).all()  # a thousandth of the base's scale, 1
            at_bound += int((scale == np.float32(1e-3)).sum())
    assert at_bound > 0


def test_bad_settings_are_refused(base: Base, tasks: dict[str, ImageDataset]) -> None:
    def message(kind: type[Exception], *arguments: Any, **named: Any) -> str:
        with pytest.raises(kind) as caught:
            train_many_patches(base, *arguments, quiet=True, **named)
        return str(caught.value)

    assert message(ConfigError, {}) == (
        "tasks are empty; a run of many patches needs at least 1 task; name them"
    )
    assert message(ConfigError, tasks, replace(PAPER, size_penalty=0.5)) == (
        "training size_penalty=0.5; train_many_patches has no such form, only a patch that is "
        "trained on its own has (train_patch, method transfer); leave it out"
    )
    assert message(ConfigError, tasks, PAPER, PatchConfig(())) == (
        "patch kinds [] select nothing to train in base 'small'; add a kind or widen include"
    )
    assert message(ConfigError, tasks, PAPER, resolution=1) == (
        "resolution 1 px; base 'small' divides its input by 2, so each side is at least 2 px; "
        "choose 2 or more"
    )
    empty = tasks | {"none": tasks["low"].subset([])}
    assert message(DataError, empty, PAPER) == (
        "optical_digits: 0 images of 0 classes; training needs images of at least 2 classes; add "
        "some"
    )


def test_the_loop_sees_a_few_rows_a_task_and_no_base_tensor(
    base: Base, tasks: dict[str, ImageDataset]
) -> None:
    model = MixedTaskModel(base, PX)
    for task, images in tasks.items():
        model.add_task(task, images.classes)
    trainee: Trainee = make_trainee(model, (), PAPER, PatchConfig())
    rows = ("scale", "bias", "mean", "var", "head.weight", "head.bias")
    assert list(trainee.state) == [f"{task}/{row}" for task in tasks for row in rows]
    assert set(trainee.state) - set(trainee.trained) == {
        f"{task}/{row}" for task in tasks for row in ("mean", "var")
    }
    assert trainee.owners == {f"{task}/{row}": k for k, task in enumerate(tasks) for row in rows}
    assert list(trainee.groups) == ["patch"]
