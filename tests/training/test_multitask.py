"""Several tasks over weights that they share: what each reaches, what each owns, what comes out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from joint_cases import (
    PX,
    DeadlyLoss,
    Killed,
    assert_equal,
    base_arrays,
    digits,
    metric_lines,
    odd_or_even,
    patch_arrays,
    small_base,
)
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing
from patchdeploy.errors import CheckpointError, ConfigError, TrainingError
from patchdeploy.export import CalibrationConfig, export_bundle
from patchdeploy.patch import PatchConfig
from patchdeploy.patch.counts import count_family
from patchdeploy.patch.tensors import initial_tensors
from patchdeploy.patched_model import PatchedModel
from patchdeploy.runtime import Engine
from patchdeploy.training import (
    MultiTaskResult,
    TaskImages,
    TrainConfig,
    evaluate,
    train_tasks,
)
from patchdeploy.training.joint import Member, make_joint
from patchdeploy.training.multitask import weigh
from patchdeploy.training.samples import Samples, Source

SHORT = TrainConfig(epochs=2, batch_size=16, device="cpu")
HEAD_ONLY = PatchConfig(("head",), statistics="batch")
BATCH = PatchConfig(statistics="batch")
pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


@pytest.fixture(scope="module")
def base() -> Base:
    return small_base()


@pytest.fixture(scope="module")
def sets() -> dict[str, tuple[ImageDataset, ImageDataset]]:
    """Ten classes and two, of the same number of images."""
    return {"digits": digits(), "parity": odd_or_even()}


def make_tasks(
    sets: dict[str, tuple[ImageDataset, ImageDataset]], **changes: dict[str, Any]
) -> list[TaskImages]:
    return [
        TaskImages(train, name, validation, **changes.get(name, {}))
        for name, (train, validation) in sets.items()
    ]


def no_loss(scores: Tensor, targets: Tensor) -> Tensor:
    return 0.0 * scores.sum()


def shared_arrays(result: MultiTaskResult) -> dict[str, np.ndarray]:
    """The new base's tensors that no patch owns."""
    owned = {key for patch in result.patches.values() for key in patch.tensors(PX)}
    return {key: value for key, value in base_arrays(result.base).items() if key not in owned}


def run(base: Base, tasks: list[TaskImages], *arguments: Any, **keywords: Any) -> MultiTaskResult:
    return train_tasks(base, tasks, *(arguments or (SHORT,)), quiet=True, **keywords)


def test_a_task_without_a_loss_leaves_the_other_as_if_it_trained_alone(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    """So each private tensor has its own task's gradient, and the shared ones that of both."""
    config = replace(SHORT, early_best=False)
    both = run(base, make_tasks(sets), config)
    fresh = {
        name: {
            key: value.numpy()
            for key, value in initial_tensors(base, PatchConfig(), classes).items()
        }
        for name, classes in (("digits", 10), ("parity", 2))
    }
    for silent, other in (("digits", "parity"), ("parity", "digits")):
        half = run(base, make_tasks(sets, **{silent: {"loss": no_loss}}), config)
        alone = [one for one in make_tasks(sets) if one.task == other]
        if other == "digits":  # the first task of both runs: the same stream of images
            single = run(base, alone, config)
            assert_equal(shared_arrays(half), shared_arrays(single))
            assert_equal(patch_arrays(half.patches[other]), patch_arrays(single.patches[other]))
        for key, value in half.patches[silent].tensors(PX).items():
            if "running" not in key:
                np.testing.assert_array_equal(value, fresh[silent][key], err_msg=key)
        changed = [
            key
            for key, value in shared_arrays(half).items()
            if "running" not in key
            and not np.array_equal(value, shared_arrays(both)[key])
            and not np.array_equal(value, base_arrays(base)[key])
        ]
        assert changed == ["0.weight", "3.weight", "6.weight"]  # every shared kernel


def test_shared_gradients_are_the_sum_of_every_task_s(base: Base) -> None:
    members = [Member("a", 3, BATCH), Member("b", 4, BATCH)]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 3, PX, PX, generator=generator)

    def gradients(names: str) -> dict[str, Tensor]:
        model = make_joint(base, members, torch.device("cpu"))
        for name in names:
            scores = model.forward(name, images)
            nn.functional.cross_entropy(scores, torch.arange(6) % 3).backward()
        trained = {key: one for group in model.groups().values() for key, one in group.items()}
        return {key: one.grad for key, one in trained.items() if one.grad is not None}

    both, a, b = gradients("ab"), gradients("a"), gradients("b")
    assert {key.partition("/")[0] for key in both} == {"shared", "private"}
    for key, value in both.items():
        assert bool(value.any()), key
        if key.startswith("shared/"):
            assert torch.equal(value, a[key] + b[key]), key  # one addition, either way
        else:
            own, other = (a, b) if key.startswith("private/a/") else (b, a)
            assert torch.equal(value, own[key]), key
            assert key not in other


@pytest.mark.parametrize("statistics", ["batch", "frozen"])
@pytest.mark.parametrize(
    "kinds", [("scale_bias", "head"), ("scale_bias", "depthwise", "head"), ("head",), ()]
)
def test_base_and_patches_give_the_accuracy_that_was_reported(
    base: Base,
    sets: dict[str, tuple[ImageDataset, ImageDataset]],
    kinds: Any,
    statistics: Any,
) -> None:
    before, sha256 = base_arrays(base), base.sha256
    config = PatchConfig(kinds, statistics=statistics)
    result = run(base, make_tasks(sets, parity={"resolution": 24}), SHORT, config)
    assert_equal(base_arrays(base), before)
    assert base.sha256 == sha256 != result.base.sha256
    assert list(result.patches) == list(sets)
    owned = set(initial_tensors(base, config, 10))
    for name, px in (("digits", PX), ("parity", 24)):
        patch = result.patches[name]
        assert (patch.base_sha256, patch.resolutions) == (result.base.sha256, (px,))
        assert set(patch.tensors(px)) == owned
        assert patch.classes == sets[name][0].classes
        assert patch.metrics["training_images"] == len(sets[name][0])
        model = PatchedModel(result.base)
        model.load_patch(patch)
        top1, _ = evaluate(model, sets[name][1], px, result.base)
        assert top1 == result.validation_top1[name]
        assert patch.metrics["validation_top1"] == {str(px): round(top1, 4)}
    state = base_arrays(result.base)
    moved = {key for key, value in state.items() if not np.array_equal(value, before[key])}
    norms = {key for key in state if ".running_" in key}
    trained = {key for key in state if "." in key and "num_batches" not in key} - norms
    head = {"11.weight", "11.bias"}  # the base's own; each task has another
    assert moved == (trained - head) | (norms if statistics == "batch" else set())


def test_the_head_only_baseline_shares_its_norms_and_the_patch_does_not(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    shares, owns = (run(base, make_tasks(sets), SHORT, one) for one in (HEAD_ONLY, BATCH))
    assert set(shares.patches["digits"].tensors(PX)) == {"11.weight", "11.bias"}
    one, other = (owns.patches[name].tensors(PX) for name in sets)
    for key in ("1.weight", "4.bias", "7.running_mean", "7.running_var"):
        assert not np.array_equal(one[key], other[key]), key
        # The base holds the mean of what each task has of its own: (a + b) / 2, rounded once.
        np.testing.assert_array_equal(base_arrays(owns.base)[key], (one[key] + other[key]) / 2)


def test_each_task_has_its_own_loss_batch_size_augmentation_and_resolution(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    seen: dict[str, set[tuple[Any, ...]]] = {"digits": set(), "parity": set()}

    def note(name: str) -> Any:
        def loss(scores: Tensor, targets: Tensor) -> Tensor:
            seen[name].add((tuple(scores.shape), targets.dtype, tuple(targets.shape)))
            return nn.functional.cross_entropy(scores, targets)

        return loss

    mixed = replace(SHORT, mixup=0.4, augment="shift_flip")
    changes: dict[str, Any] = {
        "digits": {"loss": note("digits"), "weight": 2.0},
        "parity": {"loss": note("parity"), "weight": 0.5, "config": mixed, "resolution": 24},
    }
    result = run(base, make_tasks(sets, **changes))
    # 96 images: batches of 2 * 16 and of 16 / 2.
    assert seen["digits"] == {((32, 10), torch.int64, (32,))}
    assert seen["parity"] == {((8, 2), torch.float32, (8, 2))}
    assert {name: one.resolutions for name, one in result.patches.items()} == {
        "digits": (PX,),
        "parity": (24,),
    }
    del changes["parity"]["config"]
    plain = run(base, make_tasks(sets, **changes))
    assert ((8, 2), torch.int64, (8,)) in seen["parity"]
    assert result.base.sha256 != plain.base.sha256


def test_the_weights_of_tasks_make_every_image_of_a_step_count_alike() -> None:
    """Also where a batch is larger than its task's set: the images that it has are what counts."""
    generator = torch.Generator().manual_seed(0)

    def source(name: str, images: int, batch_size: int) -> Source:
        features = torch.randn(images, 4, generator=generator)
        samples = Samples(features, torch.arange(images) % 3, None)
        return Source(name, samples, samples, 3, batch_size)

    sources = weigh([source("few", 10, 64), source("many", 100, 48), source("half", 100, 24)])
    step = [one.train.inputs[one.indices(0, seed=0)] for one in sources]
    assert [len(images) for images in step] == [10, 48, 24]
    summed = sum(one.weight * images.mean(0) for one, images in zip(sources, step, strict=True))
    everything = torch.cat(step).mean(0) * len(step)
    # Sums of at most 82 float32 values of at most 4, and three products: 82 * 4 * 2^-24 = 2e-5.
    torch.testing.assert_close(summed, everything, rtol=0, atol=2e-5)
    assert sum(one.weight for one in sources) == pytest.approx(3, abs=1e-12)
    same = weigh([source("a", 90, 32), source("b", 70, 32)])
    assert [one.weight for one in same] == [1.0, 1.0]


@pytest.mark.parametrize("names", [("shared", "private"), ("a/b", "a"), ("private/a", "a")])
def test_a_task_that_is_not_to_be_exported_may_have_any_name(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]], names: tuple[str, str]
) -> None:
    plain = run(base, make_tasks(sets))
    tasks = [replace(one, name=name) for one, name in zip(make_tasks(sets), names, strict=True)]
    named = run(base, tasks, replace(SHORT, check_export=False))
    for name, usual in zip(names, sets, strict=True):
        assert_equal(patch_arrays(named.patches[name]), patch_arrays(plain.patches[usual]))


def test_no_scale_of_a_task_changes_its_sign(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    config = replace(SHORT, learning_rate=0.5, shared_learning_rate=0.5, early_best=False)
    state = base_arrays(base)
    for kinds in (BATCH, HEAD_ONLY):
        result = run(base, make_tasks(sets), config, kinds)
        trained = [base_arrays(result.base)]
        if kinds is BATCH:
            trained = [dict(patch.tensors(PX)) for patch in result.patches.values()]
        bounded = 0
        for tensors in trained:
            for key in ("1.weight", "4.weight", "7.weight"):
                floor = np.float32(1e-3) * state[key]
                assert (tensors[key] >= floor).all()
                bounded += int((tensors[key] == floor).sum())
        assert bounded > 0  # else the bound was not needed


@pytest.mark.parametrize("at", [1, 4, 9, 12])
def test_a_run_killed_inside_an_epoch_resumes_to_the_same_bits_and_lines(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]], tmp_path: Path, at: int
) -> None:
    config = replace(SHORT, save_every_steps=2, ema_decay=0.9, augment="shift_flip")

    def train(folder: str, loss: Any, resume: bool = False) -> MultiTaskResult:
        tasks = make_tasks(sets, parity={"loss": loss})
        return run(base, tasks, config, BATCH, run_dir=tmp_path / folder, resume=resume)

    whole = train("whole", DeadlyLoss(0))
    with pytest.raises(Killed):  # of 12 steps
        train("killed", DeadlyLoss(at))
    resumed = train("killed", DeadlyLoss(0), resume=True)
    assert_equal(base_arrays(resumed.base), base_arrays(whole.base))
    for name in sets:
        assert_equal(patch_arrays(resumed.patches[name]), patch_arrays(whole.patches[name]))
        assert resumed.patches[name].metrics == whole.patches[name].metrics
    assert resumed.validation_top1 == whole.validation_top1
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "whole")
    assert len(metric_lines(tmp_path / "whole")) == 4


def test_a_checkpoint_of_other_tasks_is_refused(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]], tmp_path: Path
) -> None:
    run(base, make_tasks(sets), run_dir=tmp_path)
    before = (tmp_path / "tasks.pt").read_bytes()
    other_base = small_base(seed=1)
    changes: list[tuple[Base, dict[str, Any], PatchConfig]] = [
        (other_base, {}, BATCH),
        (base, {"digits": {"weight": 2.0}}, BATCH),
        (base, {"digits": {"resolution": 24}}, BATCH),
        (base, {"digits": {"config": SHORT}}, BATCH),
        (base, {}, HEAD_ONLY),
    ]
    for network, values, patch_config in changes:
        tasks = make_tasks(sets, **values)
        with pytest.raises(CheckpointError) as caught:
            run(network, tasks, SHORT, patch_config, run_dir=tmp_path, resume=True)
        assert str(caught.value) == (
            f"checkpoint {tmp_path / 'tasks.pt'} was made with other settings, images or task; "
            "resume needs the same; use them, or another run folder"
        )
        assert (tmp_path / "tasks.pt").read_bytes() == before


@pytest.mark.parametrize("patch_config", [HEAD_ONLY, BATCH], ids=["head", "scale_bias+head"])
def test_both_tasks_learn(base: Base, patch_config: PatchConfig, tmp_path: Path) -> None:
    sets = {"digits": digits(384, 3), "parity": odd_or_even()}
    config = replace(SHORT, epochs=10, shared_learning_rate=1e-2)
    result = run(base, make_tasks(sets), config, patch_config, run_dir=tmp_path)
    # Guessing gets 10 % and 50 % of 48 right; its standard deviations are 4.3 and 7.2 points:
    # at least four (and a half) of those above.
    assert result.validation_top1["digits"] > 0.30
    assert result.validation_top1["parity"] > 0.80
    lines = metric_lines(tmp_path)
    for name in sets:
        losses = [loss for run_name, _, loss, _ in lines if run_name == name]
        assert losses[-1] < 0.8 * losses[0]


def test_a_joint_run_exports_and_the_engine_answers_as_its_networks(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]], tmp_path: Path
) -> None:
    config = replace(SHORT, epochs=6, shared_learning_rate=1e-2)
    result = run(base, make_tasks(sets), config)
    images = {name: train for name, (train, _) in sets.items()}
    export_bundle(
        tmp_path / "bundle",
        result.base,
        list(result.patches.values()),
        images,
        formats=("tflite",),
        config=CalibrationConfig(images=64),
        unsigned=True,
    )
    with Engine.open(tmp_path / "bundle") as engine:
        for name, (_, held) in sets.items():
            model = PatchedModel(result.base)
            model.load_patch(result.patches[name])
            _, scores = evaluate(model, held, PX, result.base)
            pixels = held.at(PX, result.base.preprocessing)
            logits = engine.logits(pixels, task=name, resolution=PX)
            assert logits.shape == scores.shape
            # Int8 rounds weights and every map to 1/256 of its range; four such layers one after
            # another move a score by a few steps of 1/256 of the scores' own range. A tenth of
            # that range is far outside it, and far below what a wrong scale costs.
            reach = float(scores.max() - scores.min())
            assert np.abs(logits - scores).max() < 0.1 * reach
            assert np.mean(logits.argmax(1) == scores.argmax(1)) > 0.9


def test_a_joint_network_holds_as_many_values_as_table_4_counts(base: Base) -> None:
    """Shared once, and each task's own: torchvision's MobileNetV2 for 1000 and 365 classes."""
    full = Base.from_torchvision("mobilenet_v2", preprocessing=Preprocessing(input_size=32))
    for network, classes in ((base, (10, 2)), (full, (1000, 365))):
        for kinds in (("scale_bias", "head"), ("head",), ("scale_bias", "depthwise", "head")):
            config = PatchConfig(kinds, statistics="frozen")  # type: ignore[arg-type]
            members = [Member(f"t{k}", n, config) for k, n in enumerate(classes)]
            groups = make_joint(network, members, torch.device("cpu")).groups()
            counted = {scope: sum(one.numel() for one in g.values()) for scope, g in groups.items()}
            family = count_family(network, config, classes)
            assert counted == {"shared": family.shared, "private": sum(family.private)}


@pytest.mark.parametrize(
    ("names", "weights", "message"),
    [
        (
            [],
            [],
            "tasks []; a joint run needs at least 1 task, each with a name of its own; name them",
        ),
        (
            ["a", "a"],
            [1.0, 1.0],
            "tasks ['a', 'a']; a joint run needs at least 1 task, each with a name of its own; "
            "name them",
        ),
        (["a", "b"], [1.0, 0.0], "task 'b': weight=0.0; it must be positive"),
        (["a"], [float("nan")], "task 'a': weight=nan; it must be positive"),
    ],
)
def test_tasks_that_make_no_run_are_refused(
    base: Base,
    sets: dict[str, tuple[ImageDataset, ImageDataset]],
    names: list[str],
    weights: list[float],
    message: str,
) -> None:
    tasks = [
        TaskImages(sets["digits"][0], name, weight=weight)
        for name, weight in zip(names, weights, strict=True)
    ]
    with pytest.raises(ConfigError) as caught:
        run(base, tasks)
    assert str(caught.value) == message


def test_settings_that_all_tasks_have_in_common_are_refused_for_one(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    own = replace(SHORT, label_smoothing=0.1, epochs=SHORT.epochs + 1)
    with pytest.raises(ConfigError) as caught:
        run(base, make_tasks(sets, digits={"config": own}))
    assert str(caught.value) == (
        f"task 'digits': epochs={own.epochs}; all tasks of a joint run have the run's, "
        f"{SHORT.epochs}, a task's own are augment, label_smoothing, mixup, cutmix; set it for "
        "the run or leave it out"
    )


def test_statistics_measured_before_the_weights_change_are_refused(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(base, make_tasks(sets), SHORT, PatchConfig(statistics="reestimated"))
    assert str(caught.value) == (
        "statistics 'reestimated' while all weights learn; what is measured before training does "
        "not hold after it; choose batch or frozen"
    )


def test_a_resolution_below_the_stride_is_refused(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(base, make_tasks(sets, digits={"resolution": 1}))
    assert str(caught.value) == (
        "resolution 1 px; base 'small' divides its input by 2, so each side is at least 2 px; "
        "choose 2 or more"
    )


def test_a_loss_that_is_not_finite_names_its_task(
    base: Base, sets: dict[str, tuple[ImageDataset, ImageDataset]]
) -> None:
    def infinite(scores: Tensor, targets: Tensor) -> Tensor:
        return scores.sum() / 0.0

    with pytest.raises(TrainingError, match=r"^parity: the loss is (nan|-?inf) at epoch 1, step 1"):
        run(base, make_tasks(sets, parity={"loss": infinite}))
