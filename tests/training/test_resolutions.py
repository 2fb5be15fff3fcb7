"""One network at several resolutions: what is private, what teaches, what comes out."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_cases import (
    PX,
    assert_equal,
    base_arrays,
    digits,
    metric_lines,
    patch_arrays,
    small_base,
)
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError
from patchdeploy.export import CalibrationConfig, export_bundle
from patchdeploy.patch.tensors import random_head
from patchdeploy.patched_model import PatchedModel
from patchdeploy.runtime import Engine
from patchdeploy.training import (
    ResolutionsConfig,
    ResolutionsResult,
    TrainConfig,
    evaluate,
    train_resolutions,
)
from patchdeploy.training import loop as training_loop
from patchdeploy.training.resolutions import teach_by_ensemble

SHORT = TrainConfig(epochs=2, batch_size=16, device="cpu")
SIZES = (12, PX, 24)
HEAD = ("11.weight", "11.bias")
pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")


@pytest.fixture(scope="module")
def base() -> Base:
    return small_base()


@pytest.fixture(scope="module")
def images() -> tuple[ImageDataset, ImageDataset]:
    return digits()


def run(
    base: Base,
    images: tuple[ImageDataset, ImageDataset],
    settings: ResolutionsConfig | None = None,
    config: TrainConfig = SHORT,
    sizes: tuple[int, ...] = SIZES,
    **keywords: Any,
) -> ResolutionsResult:
    train, held = images
    return train_resolutions(
        base, train, sizes, config, settings, validation=held, quiet=True, **keywords
    )


@pytest.mark.parametrize("teach", ["ensemble", "none"])
@pytest.mark.parametrize("statistics", ["batch", "frozen"])
@pytest.mark.parametrize(("learn", "private"), [("all", True), ("patch", True), ("all", False)])
def test_base_and_patch_give_the_accuracies_that_were_reported(
    base: Base,
    images: tuple[ImageDataset, ImageDataset],
    learn: Any,
    private: bool,
    statistics: Any,
    teach: Any,
) -> None:
    before = base_arrays(base)
    result = run(base, images, ResolutionsConfig(learn, private, teach, statistics))
    assert_equal(base_arrays(base), before)
    assert (result.base is base) == (learn == "patch")
    assert result.patch.base_sha256 == result.base.sha256
    assert result.patch.resolutions == SIZES
    assert list(result.validation_top1) == sorted(SIZES, reverse=True)
    model = PatchedModel(result.base)
    model.load_patch(result.patch)
    for px in SIZES:
        model.set_active_task("optical_digits", px)
        top1, _ = evaluate(model, images[1], px, result.base)
        assert top1 == result.validation_top1[px]
        assert result.patch.metrics["validation_top1"][str(px)] == round(top1, 4)
    state = base_arrays(result.base)
    changed = {key for key in state if not np.array_equal(state[key], before[key])}
    assert bool(changed) == (learn == "all")
    assert any("running" in key for key in changed) == (learn == "all" and statistics == "batch")


@pytest.mark.parametrize("learn", ["all", "patch"])
def test_scale_and_bias_are_private_and_the_head_is_the_same_bits_everywhere(
    base: Base, images: tuple[ImageDataset, ImageDataset], learn: Any
) -> None:
    patch = run(base, images, ResolutionsConfig(learn)).patch
    assert patch.config.kinds == ("scale_bias", "head")
    first = patch.tensors(SIZES[0])
    start = random_head(base, 10, patch.config.head_seed)
    norms = {
        f"{path}.{key}"
        for path in ("1", "4", "7")
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    assert set(first) == norms | set(HEAD)
    for px in SIZES[1:]:
        for key, value in patch.tensors(px).items():
            assert np.array_equal(value, first[key]) == (key in HEAD), key
    for key in HEAD:
        assert not np.array_equal(first[key], start[key].numpy())  # it was trained
    assert not (set(HEAD) | norms) & set(_only_in_base(base, patch.tensors(PX)))


def _only_in_base(base: Base, tensors: Any) -> set[str]:
    return set(base_arrays(base)) - set(tensors)


def test_all_shared_is_the_same_tensors_at_every_resolution(
    base: Base, images: tuple[ImageDataset, ImageDataset]
) -> None:
    result = run(base, images, ResolutionsConfig(private=False))
    assert result.patch.config.kinds == ("head",)
    for px in SIZES:
        assert_equal(result.patch.tensors(px), result.patch.tensors(SIZES[0]))
        assert set(result.patch.tensors(px)) == set(HEAD)


def test_a_shared_head_learns_at_the_rate_of_patches_not_of_shared_weights(
    base: Base, images: tuple[ImageDataset, ImageDataset]
) -> None:
    """It begins at random. At a shared rate of nearly nothing the kernels stand still."""
    config = replace(SHORT, shared_learning_rate=1e-30, early_best=False)
    result = run(base, images, None, config)
    state, before = base_arrays(result.base), base_arrays(base)
    for key in ("0.weight", "3.weight", "6.weight"):
        np.testing.assert_array_equal(state[key], before[key])
    start = random_head(base, 10, 0)["11.weight"].numpy()
    assert np.abs(result.patch.tensors(PX)["11.weight"] - start).max() > 1e-2


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def numpy_losses(
    scores: np.ndarray, labels: np.ndarray, mixture: np.ndarray, temperature: float
) -> list[float]:
    """`teach_by_ensemble`'s formula, in float64."""
    count = len(scores)
    ensemble = np.einsum("s,snc->nc", softmax(mixture), scores)
    entropy = -np.log(softmax(ensemble)[np.arange(len(labels)), labels]).mean()
    losses = []
    for s in range(count):
        total = 0.0
        student = softmax(scores[s] / temperature)
        for teacher in [ensemble, *scores[:s]]:
            taught = softmax(teacher / temperature)
            total += temperature**2 * (taught * np.log(taught / student)).sum(1).mean()
        losses.append(2.0 / (count + 1) * total + entropy / count)
    return losses


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 5),
    images=st.integers(1, 6),
    classes=st.integers(2, 7),
    temperature=st.sampled_from([1.0, 2.0, 4.0]),
    seed=st.integers(0, 10_000),
)
def test_the_ensemble_s_loss_is_its_formula(
    count: int, images: int, classes: int, temperature: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(count, images, classes)).astype(np.float32) * 3
    labels = random.integers(0, classes, images)
    mixture = random.normal(size=count).astype(np.float32)
    expected = numpy_losses(
        scores.astype(np.float64), labels, mixture.astype(np.float64), temperature
    )
    for targets in (
        torch.tensor(labels),
        nn.functional.one_hot(torch.tensor(labels), classes).float(),
    ):
        found = teach_by_ensemble(
            list(torch.tensor(scores)), targets, torch.tensor(mixture), temperature
        )
        # A log-softmax of scores up to z is right to about (classes + 4) * 2**-24 * (1 + z); it
        # enters times T^2, in up to `count` divergences of two of them and one cross entropy.
        reach = 1 + np.abs(scores).max()
        bound = (classes + 4) * 2**-24 * reach * (2 * count * temperature**2 + 1)
        np.testing.assert_allclose([float(one) for one in found], expected, rtol=0, atol=bound)


def test_teachers_receive_no_gradient_and_the_mixture_that_of_its_own_cross_entropy() -> None:
    random = np.random.default_rng(0)
    arrays = random.normal(size=(3, 5, 4)).astype(np.float32)
    labels, temperature = torch.tensor([0, 1, 2, 3, 1]), 2.0
    scores = [torch.tensor(one, requires_grad=True) for one in arrays]
    mixture = torch.tensor([0.3, -0.2, 0.1], requires_grad=True)
    losses = teach_by_ensemble(scores, labels, mixture, temperature)
    weights = softmax(mixture.detach().numpy().astype(np.float64))
    wide = arrays.astype(np.float64)
    ensemble = np.einsum("s,snc->nc", weights, wide)
    for s, loss in enumerate(losses):
        found = torch.autograd.grad(loss, scores, retain_graph=True, allow_unused=True)
        for t, gradient in enumerate(found):
            if t != s:
                assert gradient is None or not bool(gradient.any())
        # d/dz of T^2 KL(p_t || softmax(z / T)) is T (softmax(z / T) - p_t), a mean over images.
        student = softmax(wide[s] / temperature)
        taught = [softmax(one / temperature) for one in (ensemble, *wide[:s])]
        expected = 2 / 4 * temperature / 5 * sum(student - one for one in taught)
        # Up to 3 differences of probabilities, each right to some 8 * 2**-24, times 2 / 4 * 2 / 5.
        np.testing.assert_allclose(found[s].numpy(), expected, rtol=0, atol=3 * 8 * 2**-24)
    torch.stack(losses).sum().backward()
    # d/dm_k = a_k * sum over images and classes of (softmax(z_m) - onehot) / N * (z_k - z_m).
    pull = (softmax(ensemble) - np.eye(4)[labels.numpy()]) / 5
    expected = weights * ((wide - ensemble) * pull).sum((1, 2))
    # 20 terms of at most 4 / 5 each, in float32.
    np.testing.assert_allclose(mixture.grad, expected, rtol=0, atol=20 * 2**-24)
    assert np.abs(expected).min() > 1e-4  # else zeros would pass


def first_epoch(
    base: Base,
    images: tuple[ImageDataset, ImageDataset],
    settings: ResolutionsConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[int, dict[str, Tensor]]:
    """Gradients of the only step over all images, by resolution (0 for what is shared)."""
    kept: dict[int, dict[str, Tensor]] = {}
    apply = training_loop._Run._apply_gradients

    def note(self: Any) -> None:
        for key, value in self.trainee.trained.items():
            owner, _, rest = key.partition("/")
            px = int(rest.partition("/")[0].partition("@")[2]) if owner == "private" else 0
            kept.setdefault(px, {})[rest.rpartition("/")[2]] = value.grad.clone()
        apply(self)

    monkeypatch.setattr(training_loop._Run, "_apply_gradients", note)
    config = replace(SHORT, epochs=1, batch_size=len(images[0]))
    run(base, images, settings, config)
    return kept


def gradients_by_hand(
    base: Base, train: ImageDataset, teach: str, dtype: torch.dtype
) -> dict[int, dict[str, Tensor]]:
    """The same in plain torch: a network for each resolution, one head in all of them."""
    start = random_head(base, 10, 0)
    head = nn.Linear(32, 10, dtype=dtype)
    head.load_state_dict({"weight": start["11.weight"], "bias": start["11.bias"]})
    networks, scores = {}, []
    for px in sorted(SIZES, reverse=True):
        network: Any = copy.deepcopy(base.module).to(dtype)
        network[11] = head
        networks[px] = network.requires_grad_(True)
        pixels = torch.tensor(train.at(px, base.preprocessing)).to(dtype)
        scores.append(network(((pixels / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)))
    total = sum(nn.functional.cross_entropy(one, torch.tensor(train.labels)) for one in scores)
    if teach == "ensemble":
        frozen = [one.detach() for one in scores]
        mean = torch.stack(frozen).mean(0)  # the mixture begins at equal weights
        for s, one in enumerate(scores):
            for teacher in [mean, *frozen[:s]]:
                odds = (teacher.log_softmax(1) - one.log_softmax(1)) * teacher.softmax(1)
                total = total + 2 / 4 * odds.sum(1).mean()
    assert isinstance(total, Tensor)
    total.backward()
    found = {
        px: {key: one.grad for key, one in network.named_parameters()}
        for px, network in networks.items()
    }
    return {0: {key: found[PX][key] for key in HEAD}, **found}


@pytest.mark.parametrize("teach", ["none", "ensemble"])
def test_the_step_s_gradient_is_that_of_the_losses_added_up_by_hand(
    base: Base,
    images: tuple[ImageDataset, ImageDataset],
    monkeypatch: pytest.MonkeyPatch,
    teach: Any,
) -> None:
    choice = ResolutionsConfig("patch", True, teach, "frozen")
    found = first_epoch(base, images, choice, monkeypatch)
    exact = gradients_by_hand(base, images[0], teach, torch.float64)
    plain = gradients_by_hand(base, images[0], teach, torch.float32)
    assert sum(len(tensors) for tensors in found.values()) == 2 + 3 * 6 + (teach != "none")
    for px, tensors in found.items():
        for key, value in tensors.items():
            if key == "logits":
                continue  # of the ensemble, tested above
            # The loop adds up the same images in another order, so it is off by about as much as
            # plain float32 is; ten times that leaves room for luck.
            error = float((plain[px][key] - exact[px][key]).abs().max())
            size = float(exact[px][key].abs().max())
            np.testing.assert_allclose(value, exact[px][key], rtol=0, atol=10 * error, err_msg=key)
            assert 10 * error < 1e-3 * size


def test_every_resolution_sees_the_same_images_in_every_step(
    base: Base, images: tuple[ImageDataset, ImageDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Tensor]] = []
    draw = training_loop.draw_batch

    def note(source: Any, share: Any, step: int, *rest: Any) -> Any:
        batch = draw(source, share, step, *rest)
        seen.extend([[]] * (share.source == 0))
        seen[-1] = [*seen[-1], batch.targets]
        return batch

    monkeypatch.setattr(training_loop, "draw_batch", note)
    run(base, images, config=replace(SHORT, mixup=0.5))
    assert len(seen) == 12
    for targets in seen:
        assert len(targets) == len(SIZES)
        assert all(torch.equal(one, targets[0]) for one in targets)


@pytest.mark.parametrize("step", [1, 4, 9, 12])
def test_a_run_killed_inside_an_epoch_resumes_to_the_same_bits_and_lines(
    base: Base,
    images: tuple[ImageDataset, ImageDataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    config = replace(SHORT, save_every_steps=2, augment="shift", ema_decay=0.9)
    whole = run(base, images, config=config, run_dir=tmp_path / "whole")
    apply, calls = training_loop._Run._apply_gradients, [0]

    class Killed(BaseException):
        pass

    def deadly(self: Any) -> None:
        calls[0] += 1
        if calls[0] == step:
            raise Killed
        apply(self)

    with monkeypatch.context() as patched:
        patched.setattr(training_loop._Run, "_apply_gradients", deadly)
        with pytest.raises(Killed):
            run(base, images, config=config, run_dir=tmp_path / "killed")
    resumed = run(base, images, config=config, run_dir=tmp_path / "killed", resume=True)
    assert_equal(base_arrays(resumed.base), base_arrays(whole.base))
    assert_equal(patch_arrays(resumed.patch), patch_arrays(whole.patch))
    assert resumed.patch.metrics == whole.patch.metrics
    assert metric_lines(tmp_path / "killed") == metric_lines(tmp_path / "whole")
    assert len(metric_lines(tmp_path / "whole")) == 6


@pytest.mark.parametrize(("learn", "statistics"), [("all", "batch"), ("patch", "frozen")])
def test_it_learns_at_every_resolution_and_exports_as_a_signature_each(
    base: Base, tmp_path: Path, learn: Any, statistics: Any
) -> None:
    images = digits(384, 3)
    config = replace(SHORT, epochs=8, shared_learning_rate=1e-2 if learn == "all" else None)
    choice = ResolutionsConfig(learn, statistics=statistics)
    result = run(base, images, choice, config, sizes=(12, PX))
    # Guessing gets 10 % of 48 right, with a standard deviation of 4.3 points: four of those above.
    assert min(result.validation_top1.values()) > 0.28
    bundle = export_bundle(
        tmp_path / "bundle",
        result.base,
        [result.patch],
        {"optical_digits": images[0]},
        formats=("tflite",),
        config=CalibrationConfig(images=64),
        unsigned=True,
    )
    model = PatchedModel(result.base)
    model.load_patch(result.patch)
    with Engine.open(bundle.path) as engine:
        assert engine.resolutions("optical_digits") == (12, PX)
        for px in (12, PX):
            model.set_active_task("optical_digits", px)
            _, scores = evaluate(model, images[1], px, result.base)
            pixels = images[1].at(px, result.base.preprocessing)
            logits = engine.logits(pixels, task="optical_digits", resolution=px)
            # Int8 rounds weights and maps to 1/256 of their range, four layers deep: a few steps
            # of 1/256 of the scores' range. A tenth of it is what a wrong scale exceeds.
            reach = float(scores.max() - scores.min())
            assert np.abs(logits - scores).max() < 0.1 * reach


def test_a_resolution_below_the_network_s_stride_is_refused(
    images: tuple[ImageDataset, ImageDataset],
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(Base.embedded(), images, sizes=(48, 31))
    assert str(caught.value) == (
        "resolution 31 px; base 'patchdeploy/embedded' divides its input by 32, so each side is at "
        "least 32 px; choose 32 or more"
    )


def test_no_resolution_and_settings_out_of_range_are_refused(
    base: Base, images: tuple[ImageDataset, ImageDataset]
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(base, images, sizes=())
    assert str(caught.value) == (
        "resolutions []; a network runs at 1 at least; name sides in pixels"
    )
    for key, value, choices in (
        ("learn", "head", "all or patch"),
        ("teach", "larger", "ensemble or none"),
        ("statistics", "reestimated", "frozen or batch"),
    ):
        with pytest.raises(ConfigError) as caught:
            ResolutionsConfig(**{key: value})  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"resolutions {key}={value!r}; it must be {choices}; correct it"
        )


def test_resolutions_named_twice_count_once_and_one_alone_has_no_ensemble(
    base: Base, images: tuple[ImageDataset, ImageDataset]
) -> None:
    once = run(base, images, sizes=(PX,))
    assert_equal(patch_arrays(run(base, images, sizes=(PX, PX)).patch), patch_arrays(once.patch))
    plain = run(base, images, ResolutionsConfig(teach="none"), sizes=(PX,))
    assert_equal(patch_arrays(plain.patch), patch_arrays(once.patch))
