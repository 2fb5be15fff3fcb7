"""The loop and what surrounds it, over a small network: signs, batches, records, resuming."""

import json
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing, load_packaged, overlapping
from patchdeploy.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteLossError,
    StorageError,
    TrainingError,
)
from patchdeploy.patch import Kind, Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training import (
    TrainConfig,
    evaluate,
    loop,
    session,
    train_baseline,
    train_patch,
    transfer,
)
from patchdeploy.training.loop import EpochRecord, fit
from patchdeploy.training.optimizer import schedule
from patchdeploy.training.preparation import split_images
from patchdeploy.training.records import METRICS_FILE, open_recorder
from patchdeploy.training.samples import Samples, Source
from patchdeploy.training.trainee import Trainee, keep_signs
from patchdeploy.training.transfer import SingleLoss
from patchdeploy.training.workers import SINGLE

SHORT = TrainConfig(epochs=2, batch_size=32, device="cpu", check_export=False)
"""Without the check: the base pools to 2 x 2, which a file can hold at one resolution alone."""
SIZES = (8, 12, 16)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    """Three convolutions: normalised, depthwise, and one without normalisation; dropout, a head.
    A fourth normalisation, of negative scale, follows no convolution.
    """
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.BatchNorm2d(32),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 5),
    )
    last = module[8]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.constant_(last.weight, -1.0)
    return Base.from_module(module, Preprocessing((0.5,) * 3, (0.25,) * 3, 16), "small")


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    """300 and 200 real scans of handwritten digits."""
    train, test = load_packaged("optical_digits")
    return train.subset(range(0, 1196, 4)), test.subset(range(0, 598, 3))


def assert_same(one: Patch, other: Patch) -> None:
    assert one.resolutions == other.resolutions
    for px in one.resolutions:
        assert set(one.tensors(px)) == set(other.tensors(px))
        for key, value in one.tensors(px).items():
            np.testing.assert_array_equal(value, other.tensors(px)[key], err_msg=f"{px} {key}")


def one_source(
    forward: Any,
    trained: dict[str, Tensor],
    state: dict[str, Tensor],
    samples: Samples,
    scope: Any,
    held: Samples | None = None,
) -> Trainee:
    """A run of a single task."""
    classes = int(samples.labels.max()) + 1
    source = Source("t@16", samples, held or samples, classes, SHORT.batch_size)
    return Trainee(
        name="t",
        sources=(source,),
        groups={scope: trained},
        state=state,
        floors={},
        losses=SingleLoss(forward, SHORT, torch.device("cpu")),
        predict=lambda _, inputs: forward(inputs),
    )


class Killed(BaseException):
    """What no handler expects, as a kill."""


def kill_at(monkeypatch: pytest.MonkeyPatch, run: str, epoch: int) -> None:
    """From now on training dies when it records ``epoch`` of ``run``, before its checkpoint."""
    recorder = session.open_recorder

    def open_deadly(*arguments: Any, **keywords: Any) -> Any:
        manager = recorder(*arguments, **keywords)
        inner = manager.__enter__

        def enter() -> Any:
            record_it = inner()

            return _Deadly(record_it, run, epoch)

        manager.__enter__ = enter
        return _Manager(enter, manager.__exit__)

    monkeypatch.setattr(session, "open_recorder", open_deadly)


class _Deadly:
    """A recorder that dies with the record of one epoch."""

    def __init__(self, recorder: Any, run: str, epoch: int) -> None:
        self._recorder, self._last, self.step = recorder, (run, epoch), recorder.step

    def hint(self, text: str) -> None:
        self._recorder.hint(text)

    def __call__(self, one: EpochRecord) -> None:
        self._recorder(one)
        if (one.run, one.epoch) == self._last:
            raise Killed


class _Manager:
    def __init__(self, enter: Any, leave: Any) -> None:
        self._enter, self._leave = enter, leave

    def __enter__(self) -> Any:
        return self._enter()

    def __exit__(self, *why: Any) -> Any:
        return self._leave(*why)


@pytest.mark.parametrize("statistics", ["frozen", "reestimated", "batch"])
@pytest.mark.parametrize(("where", "epoch"), [(16, 1), (12, 2), (8, 3), (12, 1)])
def test_a_run_killed_anywhere_resumes_to_the_same_bits_and_the_same_lines(
    base: Base,
    digits: tuple[ImageDataset, ImageDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    statistics: Any,
    where: int,
    epoch: int,
) -> None:
    train = digits[0].subset(range(0, 300, 3))
    config = replace(SHORT, epochs=3, share_head=where != 12, augment="shift_flip")
    patch_config = PatchConfig(("scale_bias", "depthwise", "head"), statistics=statistics)

    def run(folder: str, resume: bool = False) -> Patch:
        return train_patch(
            base,
            train,
            config,
            patch_config,
            resolutions=SIZES,
            run_dir=tmp_path / folder,
            resume=resume,
            quiet=True,
        )

    whole = run("whole")
    with monkeypatch.context() as patched:
        kill_at(patched, f"optical_digits@{where}", epoch)
        with pytest.raises(Killed):
            run("killed")
    resumed = run("killed", resume=True)
    assert_same(resumed, whole)
    assert resumed.metrics == whole.metrics

    def lines(folder: str) -> list[tuple[str, int, float, float]]:
        text = (tmp_path / folder / METRICS_FILE).read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        return [(r["run"], r["epoch"], r["loss"], r["validation_top1"]) for r in rows]

    assert lines("killed") == lines("whole")
    assert len(lines("whole")) == 9
    assert_same(run("whole", resume=True), whole)  # all done: nothing is trained again
    assert len(lines("whole")) == 9


@pytest.mark.parametrize("change", ["base", "sizes", "classes", "labels", "pixels"])
def test_a_checkpoint_of_another_base_or_other_data_is_refused(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path, change: str
) -> None:
    train = digits[0].subset(range(0, 300, 3))
    arguments: dict[str, Any] = {"run_dir": tmp_path, "quiet": True, "task": "t"}
    config = replace(SHORT, share_head=False)
    train_patch(base, train, config, resolutions=(12,), **arguments)
    before = (tmp_path / "12.pt").read_bytes()
    sizes: tuple[int, ...] = (12,)
    images, labels, classes = np.array(train.images), train.labels.copy(), train.classes
    if change == "base":
        module = base.module
        base = Base.from_module(nn.Sequential(*module.children()), base.preprocessing, "other")
    elif change == "sizes":
        sizes = (16, 12)  # 12 px would begin from 16 px
    elif change == "classes":
        classes = tuple(reversed(classes))
    elif change == "labels":
        labels[0] = (labels[0] + 1) % 10
    else:
        images[0, 0, 0, 0] ^= 1
    other = ImageDataset("digits", images, labels, classes)
    with pytest.raises(CheckpointError) as caught:
        train_patch(base, other, config, resolutions=sizes, resume=True, **arguments)
    assert str(caught.value) == (
        f"checkpoint {tmp_path / '12.pt'} was made with other settings, images or task; resume "
        "needs the same; use them, or another run folder"
    )
    assert (tmp_path / "12.pt").read_bytes() == before


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    train, batch = digits[0], SHORT.batch_size
    model = PatchedModel(base)
    model.add_task("t", train.classes)
    samples = Samples.from_arrays(
        train.at(16, base.preprocessing), train.labels, base.preprocessing
    )
    tensors = model.tensors()
    calls = [0]

    def forward(inputs: Tensor) -> Tensor:
        calls[0] += torch.is_grad_enabled()
        scores: Tensor = model(inputs)
        return scores * float("nan") if calls[0] == 2 + -(-len(train) // batch) else scores

    trainee = one_source(forward, {"12.weight": tensors["12.weight"]}, tensors, samples, "head")
    with pytest.raises(TrainingError) as caught:
        fit(trainee, SHORT, checkpoint=tmp_path / "16.pt")
    rate = SHORT.rate("head") * schedule(SHORT, (10 + 1) / 20)
    images = ", ".join(str(one) for one in trainee.sources[0].indices(11, 0)[:5].tolist())
    assert str(caught.value) == (
        f"t@16: the loss is nan at epoch 2, step 2 (images {images}, ...), with learning rate "
        f"{rate:.3g}; it must stay finite; try a tenth of the learning rate"
    )
    assert torch.load(tmp_path / "16.pt", weights_only=True)["position"]["epoch"] == 1
    assert bool(torch.isfinite(tensors["12.weight"]).all())


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_scores_of_validation_images_that_are_not_finite_stop_the_run(
    base: Base, digits: tuple[ImageDataset, ImageDataset], broken: float
) -> None:
    """Of one image, in all classes: the loss was finite, argmax would answer the first class."""
    train = digits[0]
    model = PatchedModel(base)
    model.add_task("t", train.classes)
    samples = Samples.from_arrays(
        train.at(16, base.preprocessing), train.labels, base.preprocessing
    )
    tensors = model.tensors()

    def forward(inputs: Tensor) -> Tensor:
        scores: Tensor = model(inputs)
        if not torch.is_grad_enabled():
            scores[0] = broken
        return scores

    trainee = one_source(forward, {"12.weight": tensors["12.weight"]}, tensors, samples, "head")
    with pytest.raises(NonFiniteLossError) as caught:
        fit(trainee, SHORT)
    assert str(caught.value) == (
        "t@16: scores of validation images are not finite after epoch 1; they must be, to choose "
        "an answer by; try a tenth of the learning rate"
    )


def spoiled(base: Base, train: ImageDataset, *epochs: int) -> Trainee:
    """A head over ``base``; after ``epochs`` (from 0) its scores are 1e30 times as large, which
    changes no answer and leaves them finite."""
    model = PatchedModel(base)
    model.add_task("t", train.classes)
    samples = Samples.from_arrays(
        train.at(16, base.preprocessing), train.labels, base.preprocessing
    )
    now = [0]

    def forward(inputs: Tensor) -> Tensor:
        scores: Tensor = model(inputs)
        return scores * 1e30 if not torch.is_grad_enabled() and now[0] in epochs else scores

    def prepare(epoch: int) -> None:
        now[0] = epoch

    state = model.tensors()
    trainee = one_source(forward, {"12.weight": state["12.weight"]}, state, samples, "head")
    return replace(trainee, prepare=prepare)


@pytest.mark.parametrize("early", [True, False])
def test_a_run_whose_scores_are_finite_and_answer_nothing_stops_at_its_end_also_resumed(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path, early: bool
) -> None:
    config, place, epochs = replace(SHORT, early_best=early), tmp_path / "16.pt", list[int]()

    def run(resume: bool) -> str:
        trainee = spoiled(base, digits[0], 0, 1)
        with pytest.raises(NonFiniteLossError) as caught:
            fit(
                trainee, config, checkpoint=place, resume=resume,
                on_epoch=lambda record: epochs.append(record.epoch),
            )  # fmt: skip
        return str(caught.value)

    first = run(False)
    before, _, rest = first.partition(" is ")
    loss, _, rule = rest.partition(" after ")
    assert before == "t@16: the loss of validation images"
    assert 1e28 < float(loss) < 1e32
    assert rule == (
        "epoch 2, and no epoch can be kept; it must stay below 1.68e+07, where float32 still tells "
        "scores apart; try a tenth of the learning rate"
    )
    assert run(True) == first
    assert epochs == [1, 2, 2]


@pytest.mark.parametrize(("epoch", "early"), [(0, True), (0, False), (1, True)])
def test_an_epoch_whose_scores_answer_nothing_is_not_kept_and_stops_no_run_that_has_another(
    base: Base, digits: tuple[ImageDataset, ImageDataset], epoch: int, early: bool
) -> None:
    trainee = spoiled(base, digits[0], epoch)
    weight, after = trainee.trained["12.weight"], list[Tensor]()
    config = replace(SHORT, early_best=early)
    fit(trainee, config, on_epoch=lambda record: after.append(weight.detach().clone()))
    assert not torch.equal(after[0], after[1])
    assert torch.equal(weight.detach(), after[1 - epoch])


def test_an_epoch_that_answers_nothing_of_one_source_is_not_kept_for_the_others(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    """Of tensors that they share, although the mean over sources is the better one."""
    trainee = spoiled(base, digits[0])
    source = trainee.sources[0]
    more = (replace(source, name="u@16"), replace(source, name="v@16"))
    trainee = replace(trainee, sources=(source, *more))
    run = loop._Run(trainee, SHORT, SINGLE, None)
    run._keep_best([0.9, 0.9, 0.9], [0.1, 1e30, 0.1])
    with pytest.raises(NonFiniteLossError, match="u@16: the loss of validation images is 1e"):
        run._check_kept([0.1, 1e30, 0.1])
    run._keep_best([0.2, 0.2, 0.3], [0.1, 0.1, 0.1])
    run._check_kept([0.1, 0.1, 0.1])
    assert run.position.best_top1 == [0.2, 0.2, 0.3]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_patch_whose_scores_are_not_finite_has_no_accuracy(
    base: Base, digits: tuple[ImageDataset, ImageDataset], broken: float
) -> None:
    """argmax would answer the first class."""
    images = digits[1]
    model = PatchedModel(base)
    model.add_task("t", images.classes)
    with torch.no_grad():
        model.tensors()["12.bias"][:] = broken
    with pytest.raises(NonFiniteLossError) as caught:
        evaluate(model, images, 16, base)
    assert str(caught.value) == (
        f"scores of {len(images)} of {len(images)} images are not finite (the first: "
        f"{images.position(0)}); they must be, to choose an answer by; train again, with a tenth "
        "of the learning rate"
    )


def test_no_scale_changes_its_sign_neither_a_positive_nor_a_negative_one(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    config = replace(SHORT, learning_rate=0.5, early_best=False)
    patch = train_patch(base, digits[0], config, resolutions=(8,), quiet=True)
    state, tensors = base.module.state_dict(), patch.tensors(8)
    clamped = 0
    for key in ("1.weight", "4.weight", "8.weight"):
        floor, value = 1e-3 * state[key].numpy(), tensors[key]
        assert (value >= floor).all() if key != "8.weight" else (value <= floor).all()
        clamped += int((value == floor).sum())
    assert (tensors["6.patch_scale"] >= np.float32(1e-3)).all()
    assert clamped > 0


def test_signs_are_kept_on_either_side_of_zero() -> None:
    state = {"s": torch.tensor([-1.0, 0.5, 2.0, -2.0, -1.0, 1.0])}
    keep_signs(state, {"s": torch.tensor([0.1, 0.1, 0.0, 0.0, -0.1, -0.1])})
    # positive bounds, a base scale of 0 that may grow, negative bounds
    assert torch.equal(state["s"], torch.tensor([0.1, 0.5, 2.0, 0.0, -1.0, -0.1]))


@pytest.mark.parametrize(
    ("count", "expected"), [(64, [32, 32]), (65, [32, 33]), (66, [32, 32, 2]), (1, [1]), (33, [33])]
)
def test_no_batch_of_one_image_is_left_over(count: int, expected: list[int]) -> None:
    samples = Samples(torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), None)
    source = Source("one", samples, samples, classes=2, batch_size=32)
    batches = [source.indices(step, seed=0) for step in range(source.steps)]
    assert [len(batch) for batch in batches] == expected
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(count))


def test_batch_statistics_train_where_one_image_would_be_left_over() -> None:
    """The embedded base ends at 1 x 1 pixels at 32 px: one image has no variance there."""
    digits = load_packaged("optical_digits")[0]
    images = ImageDataset("parity", digits.images, digits.labels % 2, ("even", "odd"))
    train, held = images.subset(range(9)), images.subset(range(12, 24))
    config = replace(SHORT, epochs=1, batch_size=8)
    for statistics in ("batch", "reestimated"):
        one = PatchConfig(statistics=statistics)  # type: ignore[arg-type]
        arguments: dict[str, Any] = {"resolutions": (32,), "validation": held, "quiet": True}
        train_patch(Base.embedded(), train, config, one, **arguments)


def test_validation_shares_no_image_with_training_and_must_be_there(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    train, test = digits
    kept, held = split_images(train, None, SHORT)
    assert overlapping(kept, held) == []
    assert len(kept) + len(held) == len(train)
    assert set(held.labels.tolist()) == set(range(10))
    with pytest.raises(DataError) as caught:
        train_patch(base, train, SHORT, validation=test.subset([]), resolutions=(8,), quiet=True)
    assert str(caught.value) == (
        "optical_digits@8: no image to validate on; at least 1 is needed to choose the best epoch "
        "by; add images (2 of a class are split between both)"
    )
    chosen = [int(np.flatnonzero(train.labels == label)[0]) for label in range(10)]
    one_each = train.subset(chosen)
    with pytest.raises(DataError, match="no image to validate on"):
        train_baseline(base, one_each, "all", SHORT, resolution=8, quiet=True)
    other = ImageDataset("x", test.images, test.labels, tuple("abcdefghij"))
    with pytest.raises(DataError, match="validation classes"):
        train_patch(base, train, SHORT, validation=other, resolutions=(8,), quiet=True)


def test_the_best_epoch_or_the_last_is_kept(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    """A rate far too large makes later epochs worse than some before."""
    train, test = digits
    config = replace(SHORT, epochs=6, learning_rate=0.3, batch_size=64)
    patches = {}
    for early_best in (True, False):
        records: list[EpochRecord] = []
        model = PatchedModel(base)
        model.add_task("t", train.classes)
        parts = [
            Samples.from_arrays(one.at(16, base.preprocessing), one.labels, base.preprocessing)
            for one in digits
        ]
        trained = {k: v for k, v in model.tensors().items() if v.requires_grad}
        trainee = one_source(model, trained, model.tensors(), parts[0], "patch", parts[1])
        settings = replace(config, early_best=early_best)
        top1 = fit(trainee, settings, on_epoch=records.append).mean_top1
        reached = [one.validation_top1 for one in records]
        assert top1 == (max(reached) if early_best else reached[-1])
        assert evaluate(model, test, 16, base)[0] == top1
        patches[early_best] = reached
    assert patches[True] == patches[False]
    assert max(patches[True]) > patches[True][-1]  # else this showed nothing


def test_the_loss_falls_and_the_head_alone_learns_less_than_the_patch(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    train, _ = digits
    config = replace(SHORT, epochs=5)
    losses = {}
    sets: tuple[tuple[Kind, ...], ...] = (("head",), ("scale_bias", "depthwise", "head"))
    for kinds in sets:
        folder = tmp_path / str(len(kinds))
        train_patch(base, train, config, PatchConfig(kinds), run_dir=folder, quiet=True)
        rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
        losses[len(kinds)] = [row["loss"] for row in rows]
    assert losses[3][-1] < 0.6 * losses[3][0]
    assert losses[1][-1] < losses[1][0]


def test_features_cached_once_train_the_same_head_as_the_whole_network(
    base: Base, digits: tuple[ImageDataset, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> Patch:
        return train_patch(base, digits[0], SHORT, PatchConfig(("head",)), quiet=True)

    cached = run()
    calls = [0]
    monkeypatch.setattr(
        transfer, "cache_features", lambda model, tensors, samples: (model, samples)
    )
    forward = PatchedModel.forward

    def counted(self: PatchedModel, images: Tensor) -> Any:
        calls[0] += 1
        return forward(self, images)

    monkeypatch.setattr(PatchedModel, "forward", counted)
    uncached = run()
    assert calls[0] > 16  # every step ran the network
    assert cached.metrics == uncached.metrics
    for key in ("12.weight", "12.bias"):
        one, other = cached.tensors(16)[key], uncached.tensors(16)[key]
        # Another batch size may sum in another order: 27 * 2**-24 a layer, 5e-6 over three. Adam
        # divides a gradient by its own size, so a step moves by its rate times that difference, up
        # to twentyfold where a gradient has nearly vanished; 16 steps at 0.1.
        np.testing.assert_allclose(one, other, rtol=0, atol=16 * 0.1 * 20 * 5e-6)
        assert np.abs(one).max() > 0.05


def test_a_shared_head_is_the_same_bits_everywhere_and_an_own_one_is_not(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    for share in (True, False):
        config = replace(SHORT, share_head=share)
        patch = train_patch(base, digits[0], config, resolutions=SIZES, quiet=True)
        heads = [patch.tensors(px)["12.weight"] for px in SIZES]
        same = [np.array_equal(heads[0], other) for other in heads[1:]]
        assert same == [share, share]
        assert not np.array_equal(patch.tensors(8)["1.bias"], patch.tensors(16)["1.bias"])


def test_shared_scales_are_the_same_bits_everywhere_and_biases_are_still_each_resolutions_own(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    for share in (True, False):
        config = replace(SHORT, share_scales=share)
        patch = train_patch(base, digits[0], config, resolutions=SIZES, quiet=True)
        first, *others = [patch.tensors(px) for px in sorted(SIZES, reverse=True)]
        for other in others:
            assert np.array_equal(first["1.weight"], other["1.weight"]) == share
            assert not np.array_equal(first["1.bias"], other["1.bias"])
        assert not np.array_equal(first["1.weight"], base.module.get_parameter("1.weight"))


def test_resolutions_named_twice_are_trained_once(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    patch = train_patch(base, digits[0], SHORT, resolutions=(8, 12, 8), quiet=True)
    assert patch.resolutions == (8, 12)


@pytest.mark.parametrize("recipe", ["modern", "paper"])
def test_a_recipe_repeats_to_the_bit_and_learns(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path, recipe: Any
) -> None:
    train, test = digits
    config = replace(SHORT, epochs=6, recipe=recipe)
    one = train_patch(base, train, config, run_dir=tmp_path, quiet=True)
    assert_same(one, train_patch(base, train, config, quiet=True))
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    if recipe == "paper":  # its epsilon of 1 wants far more steps than these 48
        assert [row["learning_rate"] for row in rows] == sorted(
            (row["learning_rate"] for row in rows), reverse=True
        )
        return
    model = PatchedModel(base)
    model.load_patch(one)
    # Guessing gets 10 % of 200 right, with a standard deviation of 2.1 points: nine of those.
    assert evaluate(model, test, 16, base)[0] > 0.29


def test_all_weights_train_without_dropout_and_with_frozen_statistics(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    one, other = (
        train_baseline(base, digits[0], "all", SHORT, resolution=16, quiet=True) for _ in range(2)
    )
    for key, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[key])  # dropout would draw at random
        if "running" in key or "num_batches" in key:
            assert torch.equal(value, base.module.state_dict()[key])
        else:
            changed = key.startswith("12.") or not torch.equal(value, base.module.state_dict()[key])
            assert changed, key
    assert not any(parameter.requires_grad for parameter in one.module.parameters())
    assert one.module.get_submodule("12").out_features == 10


def test_evaluating_leaves_the_mode_and_wants_an_image(
    base: Base, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    module = train_baseline(base, digits[0], "head", SHORT, quiet=True).module.train()
    first = evaluate(module, digits[1], 16, base)[1]
    np.testing.assert_array_equal(first, evaluate(module, digits[1], 16, base)[1])  # no dropout
    assert module.training
    with pytest.raises(DataError, match="0 images; accuracy needs at least 1; add some"):
        evaluate(module, digits[1].subset([]), 16, base)


def test_numbers_reach_json_lines_and_tensorboard(
    base: Base, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    train_patch(base, digits[0], SHORT, resolutions=(8,), run_dir=tmp_path, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    first, *events = read_events(next((tmp_path / "tensorboard").iterdir()))
    assert first.file_version == "brain.Event:2"
    keys = {"loss": "loss", "top1": "validation_top1", "learning_rate": "learning_rate"}
    for tag, key in keys.items():
        found = [
            (event.step, value.simple_value)
            for event in events
            for value in event.summary.value
            if value.tag == f"optical_digits@8/{tag}"
        ]
        assert found == [(row["epoch"], float(np.float32(row[key]))) for row in rows]
    assert len(events) == 2 * len(keys)
    # Both in one process abort it, in the LLVM that each brings.
    assert "tensorflow" not in sys.modules
    assert set(rows[0]) == set(EpochRecord.__annotations__)


def read_events(path: Path) -> list[Any]:
    """The events of a TensorBoard file: length, its checksum, bytes, their checksum (TFRecord)."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc32c(data[:8])
        body, rest = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", rest[:4])[0] == masked_crc32c(body)
        events.append(Event.FromString(body))
        data = rest[4:]
    return events


def record(epoch: int) -> EpochRecord:
    return EpochRecord("t@8", epoch, 0.5, 0.9, 0.1, 1.0, 100.0)


def test_a_new_run_begins_a_new_file_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    def write(epochs: range, resume: bool) -> list[int]:
        with open_recorder(3, tmp_path, quiet=True, resume=resume) as recorder:
            for epoch in epochs:
                recorder(record(epoch))
        lines = (tmp_path / METRICS_FILE).read_text().splitlines()
        return [json.loads(line)["epoch"] for line in lines]

    assert write(range(1, 3), resume=False) == [1, 2]
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"run": "t@8", "epo')  # killed while it wrote
    assert write(range(2, 4), resume=True) == [1, 2, 3]
    assert write(range(1, 2), resume=False) == [1]


def test_metrics_that_cannot_be_written_are_a_storage_error(tmp_path: Path) -> None:
    def write() -> None:
        with open_recorder(1, tmp_path, quiet=True) as recorder:
            (tmp_path / METRICS_FILE).mkdir()
            recorder(record(1))

    with pytest.raises(StorageError) as caught:
        write()
    assert str(caught.value) == (
        f"cannot append to {tmp_path / METRICS_FILE}: Is a directory; free space; the last "
        "checkpoint is whole, so resume goes on from there"
    )


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("epochs", "8", "a whole number"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("early_best", 1, "true or false"),
        ("learning_rate", "fast", "a number or None"),
        ("learning_rate", float("nan"), "positive"),
        ("learning_rate", float("inf"), "positive"),
        ("label_smoothing", 1.0, "in [0, 1)"),
        ("mixup", -0.1, "0, or 0.001 to 1000"),
        ("mixup", 9e-4, "0, or 0.001 to 1000"),
        ("mixup", 1001.0, "0, or 0.001 to 1000"),
        ("cutmix", 9e-4, "0, or 0.001 to 1000"),
        ("cutmix", float("inf"), "0, or 0.001 to 1000"),
        ("cutmix", float("nan"), "0, or 0.001 to 1000"),
        ("validation_fraction", 0.0, "between 0 and 1"),
        ("augment", "flip", "none, shift, shift_flip or randaugment"),
        ("device", "tpu", "auto, cpu or cuda"),
    ],
)
def test_a_setting_of_another_kind_or_range_says_the_rule(key: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_json({key: value})
    assert str(caught.value) == f"training {key}={value!r}; it must be {rule}; correct it"


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_json({"batchsize": 3})
    assert str(caught.value) == (
        "unknown training key 'batchsize'; the keys are "
        + ", ".join(TrainConfig.__annotations__)
        + "; did you mean 'batch_size'?"
    )


def test_schedules_follow_their_formulas() -> None:
    modern, paper = (TrainConfig(epochs=10, recipe=one) for one in ("modern", "paper"))  # type: ignore[arg-type]
    assert schedule(modern, 0.0) == pytest.approx(0.1)
    assert schedule(modern, 0.1) == pytest.approx(1.0)
    assert schedule(modern, 0.55) == pytest.approx(0.5)
    assert schedule(modern, 1.0) == pytest.approx(0.0, abs=1e-12)
    assert schedule(paper, 0.5) == pytest.approx(0.98**2)  # five epochs of ten, by 0.98 every 2.5
