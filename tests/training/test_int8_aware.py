"""Training through the int8 base: what is validated is what is exported, and what is refused."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodingSteps
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged, split
from patchdeploy.errors import ConfigError, DataError, NegativeScaleError, UnknownResolutionError
from patchdeploy.export import Exporter
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.quantize.executor import IntegerResult, run_integer
from patchdeploy.quantize.model import unflatten_variant
from patchdeploy.training import TrainConfig, train_patch
from patchdeploy.training.int8_aware import BEGUN, SCALES, ZERO_POINTS, Int8Plan, open_int8
from patchdeploy.training.int8_retune import retune_patch_int8
from patchdeploy.training.loop import EpochRecord
from patchdeploy.training.parts import part_of
from patchdeploy.training.records import Recorder
from patchdeploy.training.samples import normalize

PX = 16
THROUGH = TrainConfig(
    epochs=4, batch_size=8, learning_rate=0.1, seed=1, device="cpu", through_int8=True
)
RETUNE = replace(THROUGH, epochs=2, learning_rate=2e-3)
pytestmark = pytest.mark.usefixtures("one_thread")


def block(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    padding = kernel // 2
    conv = nn.Conv2d(inner, outer, kernel, stride, padding, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outer), nn.ReLU6()]


@pytest.fixture(scope="module")
def base() -> Base:
    """A normalised, a depthwise, a pointwise convolution, one without normalisation, a head."""
    torch.manual_seed(0)
    module = nn.Sequential(
        *block(3, 16, 3, stride=2),
        *block(16, 16, 3, groups=16),
        *block(16, 24, 1),
        nn.Conv2d(24, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )
    for layer in module:
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        module(torch.randn(64, 3, PX, PX))  # statistics of this network, so that signals last
    return Base.from_module(module, Preprocessing((0.5,) * 3, (0.25,) * 3, PX), "small")


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    """120 real scans of handwritten digits, zeros and ones."""
    images = load_packaged("optical_digits")[0]
    few = images.subset(np.flatnonzero(images.labels < 2)[:120])
    return replace(few, classes=few.classes[:2])


@pytest.fixture(scope="module")
def patch(base: Base, digits: ImageDataset) -> Patch:
    """Trained in float at two resolutions."""
    config = replace(THROUGH, through_int8=False)
    return train_patch(base, digits, config, resolutions=(PX, 12), quiet=True)


@pytest.fixture(scope="module")
def through(base: Base, digits: ImageDataset) -> Patch:
    """Trained through int8."""
    return train_patch(base, digits, THROUGH, resolutions=(PX,), quiet=True)


def exported(base: Base, patch: Patch, images: ImageDataset, px: int, pixels: Any) -> IntegerResult:
    """What a device computes on ``pixels``, calibrated on ``images``."""
    slots = "depthwise" in patch.config.kinds
    exporter = Exporter.prepare(base, head_capacity=len(patch.classes), depthwise_slots=slots)
    values = exporter.quantize(patch, images, [px]).values[px]
    variant = unflatten_variant(exporter.quantized, values, patch.task, px)
    return run_integer(exporter.quantized, variant, pixels)


def held_out(images: ImageDataset, config: TrainConfig) -> tuple[ImageDataset, ImageDataset]:
    share = config.validation_fraction
    train, held = split(images, (1 - share, share), seed=config.seed)
    return train, held


def top1(base: Base, patch: Patch, images: ImageDataset, held: ImageDataset, px: int) -> float:
    logits = exported(base, patch, images, px, held.at(px, base.preprocessing)).logits
    return float((logits.argmax(1) == held.labels).mean())


def tensors_of(patch: Patch, px: int) -> dict[str, Tensor]:
    return {key: torch.tensor(value) for key, value in patch.tensors(px).items()}


def assert_equal_tensors(one: Patch, other: Patch, px: int) -> None:
    for key, value in one.tensors(px).items():
        np.testing.assert_array_equal(value, other.tensors(px)[key], err_msg=key)


def check_validated(base: Base, digits: ImageDataset, patch: Patch) -> None:
    held = held_out(digits, THROUGH)[1]
    found = top1(base, patch, digits, held, PX)
    assert patch.metrics["validation_top1"][str(PX)] == round(found, 4)
    # Guessing gets half of 18 images right; 3 standard deviations (12 % each) above that is 86 %.
    assert found > 0.86


def test_what_is_validated_is_what_export_writes(
    base: Base, digits: ImageDataset, patch: Patch, through: Patch
) -> None:
    check_validated(base, digits, through)
    # The float run is the same one until the first epoch through int8.
    assert not np.array_equal(through.tensors(PX)["1.weight"], patch.tensors(PX)["1.weight"])


def test_depthwise_kernels_are_validated_as_they_are_exported(
    base: Base, digits: ImageDataset
) -> None:
    config = PatchConfig(("scale_bias", "depthwise", "head"))
    check_validated(
        base, digits, train_patch(base, digits, THROUGH, config, resolutions=(PX,), quiet=True)
    )


def test_its_scores_are_the_exported_networks_to_the_bit(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    model = PatchedModel(base)
    model.load_patch(patch)
    model.set_active_task(patch.task, 12)
    forward = open_int8(model, patch.task, 12, Int8Plan(digits), THROUGH, model)
    forward.prepare()
    pixels = digits.at(12, base.preprocessing)[:40]
    expected = exported(base, patch, digits, 12, pixels).logits
    inputs = normalize(torch.tensor(pixels), base.preprocessing)
    with torch.no_grad():
        np.testing.assert_array_equal(forward(inputs).numpy(), expected)
    in_float = model(inputs).detach().numpy()
    assert not np.array_equal(in_float, expected)
    # Gradients: the float network first, the int8 one from its first epoch on.
    np.testing.assert_array_equal(forward(inputs).detach().numpy(), in_float)
    forward.prepare(epoch=forward.first_epoch)
    np.testing.assert_array_equal(forward(inputs).detach().numpy(), expected)


def test_ranges_follow_the_tensors_and_are_not_found_twice_for_the_same(
    base: Base, digits: ImageDataset, patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchdeploy.training import int8_aware

    calls = []
    real = int8_aware.calibrate
    monkeypatch.setattr(int8_aware, "calibrate", lambda *a: calls.append(1) or real(*a))
    model = PatchedModel(base)
    model.load_patch(patch)
    forward = open_int8(model, patch.task, PX, Int8Plan(digits), THROUGH, model)
    forward.prepare()
    first = {key: value.clone() for key, value in forward.state.items()}
    forward.prepare()
    assert len(calls) == 1
    with torch.no_grad():
        model.tensors(patch.task, PX)["1.bias"] += 0.5
    forward.prepare()
    assert len(calls) == 2
    assert not torch.equal(first[SCALES], forward.state[SCALES])
    forward.state[ZERO_POINTS].fill_(3.0)  # as an older checkpoint that was put back
    forward.prepare()
    assert len(calls) == 3
    assert sorted(forward.state) == sorted((SCALES, ZERO_POINTS, BEGUN))


class Killed(BaseException):
    """What no handler expects, as a kill."""


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_run_killed_before_or_after_int8_begins_resumes_to_the_same_bits(
    base: Base,
    digits: ImageDataset,
    through: Patch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    config = replace(THROUGH, save_every_steps=4)
    arguments: dict[str, Any] = {"resolutions": (PX,), "quiet": True, "run_dir": tmp_path}
    step = Recorder.step

    def die(self: Recorder, share: float, images: int) -> None:
        step(self, share, images)
        counted.append(images)
        if len(counted) == (epoch - 1) * 13 + 7:
            raise Killed

    counted: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "step", die)
        with pytest.raises(Killed):
            train_patch(base, digits, config, **arguments)
    position = torch.load(tmp_path / f"{PX}.pt", weights_only=True)["position"]
    assert (position["epoch"], position["step"]) == (epoch - 1, 4)
    resumed = train_patch(base, digits, config, resume=True, **arguments)
    assert_equal_tensors(through, resumed, PX)
    assert through.metrics["validation_top1"] == resumed.metrics["validation_top1"]


def test_a_retune_moves_the_patch_alone_and_never_loses_on_held_out_images(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    before = {px: tensors_of(patch, px) for px in patch.resolutions}
    retuned = retune_patch_int8(base, patch, digits, RETUNE, quiet=True)
    for px, tensors in before.items():
        for key, value in tensors.items():
            np.testing.assert_array_equal(value.numpy(), patch.tensors(px)[key], err_msg=key)
    head = f"{base.head_name}.weight"
    assert np.array_equal(retuned.tensors(PX)[head], patch.tensors(PX)[head])  # shared by both
    held = held_out(digits, RETUNE)[1]
    scores = retuned.metrics["int8_retune"]["validation_top1"]
    for px in patch.resolutions:
        assert scores[str(px)]["before"] == round(top1(base, patch, digits, held, px), 4)
        assert scores[str(px)]["after"] == round(top1(base, retuned, digits, held, px), 4)
        assert scores[str(px)]["after"] >= scores[str(px)]["before"]
    moved = [
        key
        for key, value in patch.tensors(PX).items()
        if not np.array_equal(value, retuned.tensors(PX)[key])
    ]
    assert moved
    assert not any(key.endswith(("running_mean", "running_var")) for key in moved)
    assert (retuned.config, retuned.classes, retuned.task) == (
        patch.config,
        patch.classes,
        patch.task,
    )
    assert retuned.metrics["validation_top1"] == patch.metrics["validation_top1"]


def first_kept(
    base: Base, patch: Patch, digits: ImageDataset, train: ImageDataset, settings: TrainConfig
) -> Patch:
    """A re-tune that also answers the labels better, which alone is kept.

    It learns the float scores and is judged by the labels, so about one in three is kept, and which
    one depends on the processor's last bits: twelve tries all fail in under one of a hundred.
    """
    head = f"{base.head_name}.weight"
    for seed, rate in product(range(6), (2e-3, 5e-4)):
        tried = replace(settings, seed=seed, learning_rate=rate)
        retuned = retune_patch_int8(base, patch, digits, tried, validation=train, quiet=True)
        if not np.array_equal(retuned.tensors(PX)[head], patch.tensors(PX)[head]):
            return retuned
    raise AssertionError("no re-tune was kept")


def test_a_retune_of_one_resolution_brings_its_scores_nearer_to_the_float_ones(
    base: Base, digits: ImageDataset
) -> None:
    config = replace(THROUGH, through_int8=False)
    patch = train_patch(base, digits, config, resolutions=(PX,), quiet=True)
    settings = replace(RETUNE, epochs=6, distillation_weight=1.0, early_best=False)
    train, _ = held_out(digits, settings)
    retuned = first_kept(base, patch, digits, train, settings)
    pixels = train.at(PX, base.preprocessing)
    model = PatchedModel(base)
    model.load_patch(patch)
    with torch.no_grad():
        target = model(normalize(torch.tensor(pixels), base.preprocessing)).softmax(1)

    def distance(one: Patch) -> float:
        scores = torch.tensor(exported(base, one, digits, PX, pixels).logits)
        return float(nn.functional.kl_div(scores.log_softmax(1), target, reduction="batchmean"))

    # What is trained on, measured on what it is trained on: it must fall.
    assert distance(retuned) < 0.8 * distance(patch)


def test_a_resolution_that_was_not_asked_for_stays(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    retuned = retune_patch_int8(base, patch, digits, RETUNE, resolutions=(12,), quiet=True)
    assert_equal_tensors(patch, retuned, PX)
    assert list(retuned.metrics["int8_retune"]["validation_top1"]) == ["12"]
    with pytest.raises(UnknownResolutionError):
        retune_patch_int8(base, patch, digits, RETUNE, resolutions=(20,), quiet=True)


def test_a_retune_measures_no_statistics_anew(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    learned = replace(patch, config=replace(patch.config, statistics="reestimated"))
    config = replace(RETUNE, epochs=6, learning_rate=1e-3)
    retuned = retune_patch_int8(base, learned, digits, config, resolutions=(12,), quiet=True)
    assert retuned.config == learned.config
    changed = [
        key
        for key, value in patch.tensors(12).items()
        if not np.array_equal(retuned.tensors(12)[key], value)
    ]
    assert changed  # the re-tune was kept
    assert not any(key.endswith(("running_mean", "running_var")) for key in changed)


SHARED = replace(THROUGH, through_int8=False, share_scales=True)
"""Trains scales at the largest resolution alone."""


def scales_of(base: Base, patch: Patch, px: int) -> dict[str, np.ndarray]:
    return {k: v for k, v in patch.tensors(px).items() if part_of(base, k) == "gamma"}


def assert_keeps_scales(base: Base, patch: Patch, retuned: Patch) -> None:
    """As they were at every resolution, while biases have moved."""
    for px in patch.resolutions:
        assert scales_of(base, patch, px)
        for key, value in scales_of(base, patch, px).items():
            np.testing.assert_array_equal(value, retuned.tensors(px)[key], err_msg=f"{px} {key}")
    moved = {
        part_of(base, key)
        for px in patch.resolutions
        for key, value in patch.tensors(px).items()
        if not np.array_equal(value, retuned.tensors(px)[key])
    }
    assert "beta" in moved


def test_a_retune_over_the_embedded_base_keeps_shared_scales_and_few_bytes() -> None:
    base, images = Base.embedded(), load_packaged("optical_digits")[0].subset(range(64))
    config = replace(SHARED, epochs=1, batch_size=16, learning_rate=1e-3)
    patch = train_patch(base, images, config, resolutions=(48, 32), quiet=True)
    settings = replace(RETUNE, epochs=1, batch_size=16, learning_rate=1e-2)
    retuned = retune_patch_int8(base, patch, images, settings, quiet=True)
    assert_keeps_scales(base, patch, retuned)
    assert retuned.metrics["int8_retune"]["settings"]["share_scales"]
    # Coded against 48 px, the scales of 32 px are zeros; with ones of its own they are not.
    own = retune_patch_int8(base, apart(base, patch), images, settings, quiet=True)
    assert not own.metrics["int8_retune"]["settings"]["share_scales"]
    assert not further_scales(base, retuned, images).any()
    assert further_scales(base, own, images).any()


def apart(base: Base, patch: Patch) -> Patch:
    """``patch`` with one scale of its smallest resolution moved by less than any rounding sees."""
    px = min(patch.resolutions)
    key = next(iter(scales_of(base, patch, px)))
    moved = {key: patch.tensors(px)[key] * np.float32(1.0001)}
    return replace(patch, variants={**patch.variants, px: {**patch.tensors(px), **moved}})


def further_scales(base: Base, patch: Patch, images: ImageDataset) -> np.ndarray:
    """Codes of the smallest resolution's scales, in steps of 1/64 octave; the head's left out."""
    exporter = Exporter.prepare(base, head_capacity=len(patch.classes))
    values = exporter.quantize(patch, images.subset(range(16))).values
    table, count = exporter.table, len(exporter.table.convs)
    steps = CodingSteps((2,) * count, fine_steps(values, table).bias)
    ordered = {px: values[px] for px in sorted(values, reverse=True)}
    codes = encode_values(ordered, len(patch.classes), table, steps).resolutions[min(values)]
    return codes.scales[: table.layout.head_row]


def test_a_retune_keeps_shared_scales_where_heads_are_each_resolutions_own(
    base: Base, digits: ImageDataset
) -> None:
    config = replace(SHARED, share_head=False)
    patch = train_patch(base, digits, config, resolutions=(PX, 12), quiet=True)
    heads = {px: patch.tensors(px)[f"{base.head_name}.weight"] for px in patch.resolutions}
    assert not np.array_equal(*heads.values())
    settings = replace(RETUNE, learning_rate=1e-3, epochs=6)
    retuned = retune_patch_int8(base, patch, digits, settings, quiet=True)
    assert_keeps_scales(base, patch, retuned)
    assert any(
        not np.array_equal(head, retuned.tensors(px)[f"{base.head_name}.weight"])
        for px, head in heads.items()
    )


def test_a_retune_is_not_told_to_share_scales_that_differ(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    shares = replace(RETUNE, share_scales=True)
    with pytest.raises(ConfigError) as caught:
        retune_patch_int8(base, patch, digits, shares, quiet=True)
    assert str(caught.value) == (
        f"training share_scales=True; the resolutions of patch {patch.task!r} have scales of their "
        "own, and a re-tune keeps those shared that are; leave it out"
    )


def test_a_retune_that_only_harms_is_dropped(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    wild = replace(RETUNE, learning_rate=0.5, epochs=1, early_best=False)
    retuned = retune_patch_int8(base, patch, digits, wild, resolutions=(PX,), quiet=True)
    scores = retuned.metrics["int8_retune"]["validation_top1"][str(PX)]
    assert scores["before"] == scores["after"]
    assert_equal_tensors(patch, retuned, PX)


def test_a_patch_that_cannot_be_exported_says_so_before_the_first_step(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    tensors = {key: value.copy() for key, value in patch.tensors(PX).items()}
    tensors["1.weight"][3] = -2.0
    flipped = replace(patch, variants={PX: tensors})
    seen: list[EpochRecord] = []
    with pytest.raises(NegativeScaleError, match="site '0': the effective scale of 1 channels"):
        retune_patch_int8(base, flipped, digits, RETUNE, quiet=True)
    assert not seen


def test_what_int8_cannot_follow_is_refused(base: Base, digits: ImageDataset) -> None:
    with pytest.raises(ConfigError) as caught:
        train_patch(
            base, digits, THROUGH, PatchConfig(statistics="batch"), resolutions=(PX,), quiet=True
        )
    assert str(caught.value) == (
        "training through_int8=True with patch statistics 'batch'; an int8 network's statistics "
        "are folded into its scales; choose frozen or reestimated"
    )
    model = PatchedModel(base)
    model.add_task("t", digits.classes, resolution=PX)
    with pytest.raises(ConfigError) as caught:
        open_int8(model, "t", PX, Int8Plan(digits), replace(THROUGH, compile=True), model)
    assert str(caught.value) == (
        "training through_int8=True with compile=True; the int8 network reads its ranges between "
        "steps, so it is not compiled; set one of both to False"
    )
    with pytest.raises(ConfigError) as caught:
        open_int8(model, "t", PX, None, THROUGH, model)
    assert str(caught.value) == (
        "training through_int8=True; this method has no int8 form, only patches over a frozen base "
        "have; set it to False, and re-tune the patch afterwards (retune_patch_int8)"
    )


def test_images_of_other_classes_are_refused(
    base: Base, digits: ImageDataset, patch: Patch
) -> None:
    faces = load_packaged("faces")[0]
    with pytest.raises(DataError) as caught:
        retune_patch_int8(base, patch, faces, RETUNE, quiet=True)
    assert str(caught.value) == (
        f"{faces.name}: classes {list(faces.classes)} are not those of patch {patch.task!r}, "
        f"{list(patch.classes)[:5]}; both need the same in the same order; give the images that "
        "it was trained on"
    )


def test_small_patches_are_trained_through_int8_as_they_are_coded(
    base: Base, digits: ImageDataset
) -> None:
    config = replace(THROUGH, rounding_step=0.25)
    patch = train_patch(base, digits, config, resolutions=(PX,), quiet=True)
    held = held_out(digits, config)[1]
    # The patch holds the rounded values, and those are what was validated.
    found = round(top1(base, patch, digits, held, PX), 4)
    assert patch.metrics["validation_top1"][str(PX)] == found
