"""What a step minimises: cross entropy, a teacher's answers, decay; and what an average keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_cases import PX, assert_equal, digits, patch_arrays, small_base
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, load_packaged
from patchdeploy.errors import ConfigError
from patchdeploy.patch import PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training import TrainConfig, evaluate, train_baseline, train_patch
from patchdeploy.training import loop as training_loop
from patchdeploy.training.loop import fit
from patchdeploy.training.objective import classification_loss, distillation_loss
from patchdeploy.training.optimizer import schedule
from patchdeploy.training.samples import Samples, Source
from patchdeploy.training.trainee import Trainee
from patchdeploy.training.transfer import SingleLoss

SHORT = TrainConfig(epochs=2, batch_size=16, device="cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base() -> Base:
    return small_base()


def log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def numpy_distillation(scores: np.ndarray, taught: np.ndarray, temperature: float) -> float:
    """T^2 times the mean KL(teacher || student), in float64."""
    student, teacher = log_softmax(scores / temperature), log_softmax(taught / temperature)
    return float(temperature**2 * (np.exp(teacher) * (teacher - student)).sum(1).mean())


@settings(deadline=None, max_examples=60)
@given(
    images=st.integers(1, 6),
    classes=st.integers(2, 8),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    smoothing=st.sampled_from([0.0, 0.1]),
    soft=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_the_loss_is_its_formula(
    images: int,
    classes: int,
    temperature: float,
    share: float,
    smoothing: float,
    soft: bool,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    scores, taught = (3 * random.normal(size=(2, images, classes))).astype(np.float32)
    labels = random.integers(0, classes, images)
    wanted = np.eye(classes)[labels]
    if soft:
        wanted = 0.7 * wanted + 0.3 * np.roll(wanted, 1, 0)
    targets = torch.tensor(wanted, dtype=torch.float32) if soft else torch.tensor(labels)
    smooth = (1 - smoothing) * wanted + smoothing / classes
    wide = scores.astype(np.float64)
    entropy = -(smooth * log_softmax(wide)).sum(1).mean()
    distilled = numpy_distillation(wide, taught.astype(np.float64), temperature)
    config = TrainConfig(
        distillation_weight=share, temperature=temperature, label_smoothing=smoothing
    )
    # A log-softmax of scores up to z / T is right to (classes + 4) * 2**-24 * (1 + z / T); each
    # divergence holds two of them, times T^2, and the cross entropy one.
    reach = 1 + float(max(np.abs(scores).max(), np.abs(taught).max())) / min(temperature, 1)
    bound = (classes + 4) * 2**-24 * reach * (2 * temperature**2 + 1)
    student, teacher = torch.tensor(scores), torch.tensor(taught)
    found = float(distillation_loss(student, teacher, temperature))
    assert found == pytest.approx(distilled, abs=bound)
    assert float(classification_loss(student, targets, config)) == pytest.approx(entropy, abs=bound)
    both = float(classification_loss(student, targets, config, teacher))
    assert both == pytest.approx((1 - share) * entropy + share * distilled, abs=bound)


def test_no_gradient_reaches_a_teacher() -> None:
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.zeros(3, 4, requires_grad=True)
    classification_loss(student, torch.arange(3), TrainConfig(), teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert bool(student.grad.any())


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_a_teacher_of_another_number_of_classes_is_refused_at_the_first_batch(
    base: Base, weight: float
) -> None:
    train, held = digits()
    config = replace(SHORT, distillation_weight=weight)
    message = (
        "the teacher's scores are [16, 7] for 16 images of 10 classes; they must be [16, 10], in "
        "the order of the classes; give a teacher that was trained on this task"
    )

    def teacher(images: Tensor) -> Tensor:
        return torch.zeros(len(images), 7)

    with pytest.raises(ConfigError) as caught:
        train_patch(base, train, config, validation=held, teacher=teacher, quiet=True)
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        train_baseline(base, train, "all", config, validation=held, teacher=teacher, quiet=True)
    assert str(caught.value) == message


@pytest.fixture(scope="module")
def teacher(base: Base) -> nn.Module:
    """The same network, all of it trained on the digits."""
    config = replace(SHORT, epochs=10, learning_rate=1e-2)
    return train_baseline(base, digits(384, 3)[0], "all", config, resolution=PX, quiet=True).module


def test_a_patch_learns_from_a_teacher_what_its_labels_do_not_say(
    base: Base, teacher: nn.Module
) -> None:
    """The labels are shuffled; the teacher has seen the true ones."""
    (train, held), (_, test) = digits(384, 3), load_packaged("optical_digits")
    labels = np.random.default_rng(0).permutation(train.labels)
    wrong = ImageDataset("shuffled", train.images, labels, train.classes)
    seen: list[Tensor] = []

    def teach(inputs: Tensor) -> Tensor:
        seen.append(inputs)
        assert not torch.is_grad_enabled()
        scores: Tensor = teacher(inputs)
        return scores

    found = {}
    config = replace(SHORT, epochs=8, distillation_weight=1.0, augment="shift")
    answers = torch.tensor(evaluate(teacher, test, PX, base)[1])
    for name, given_teacher in (("taught", teach), ("alone", None)):
        own = config if given_teacher else replace(config, distillation_weight=0.0)
        patch = train_patch(base, wrong, own, validation=held, teacher=given_teacher, quiet=True)
        model = PatchedModel(base)
        model.load_patch(patch)
        top1, scores = evaluate(model, test, PX, base)
        found[name] = top1, float(distillation_loss(torch.tensor(scores), answers, 1.0))
    # On 598 images, none of them trained on or chosen by. Guessing gets 10 % of them right with a
    # standard deviation of 1.2 points, so each top-1 lies within 10 points of what it would be on
    # others by far, and the student's answers are nearer to the teacher's.
    assert found["taught"][0] > found["alone"][0] + 0.1
    assert found["taught"][1] < found["alone"][1]
    assert all(one.grad is None for one in teacher.parameters())
    # Augmented images, normalised, one call a step: 24 steps of 8 epochs.
    assert [tuple(one.shape) for one in seen] == [(16, 3, PX, PX)] * 24 * 8
    assert not torch.equal(seen[0], seen[24])


@pytest.mark.parametrize("kinds", [("scale_bias", "head"), ("head",)])
def test_a_teacher_without_weight_changes_nothing(
    base: Base, teacher: nn.Module, kinds: Any
) -> None:
    train, held = digits()
    config, patch_config = replace(SHORT, distillation_weight=0.0), PatchConfig(kinds)
    keywords: dict[str, Any] = {"validation": held, "quiet": True}
    if kinds == ("head",):
        config = replace(config, augment="shift")  # else features are cached where none teaches
    alone = train_patch(base, train, config, patch_config, **keywords)
    unheard = train_patch(base, train, config, patch_config, teacher=teacher, **keywords)
    heard = train_patch(
        base,
        train,
        replace(config, distillation_weight=0.5),
        patch_config,
        teacher=teacher,
        **keywords,
    )
    assert_equal(patch_arrays(unheard), patch_arrays(alone))
    head = f"{PX}/11.weight"
    assert not np.array_equal(patch_arrays(heard)[head], patch_arrays(alone)[head])


def test_only_kernels_decay_and_by_the_rate_of_their_scope(base: Base) -> None:
    """With no gradient a step multiplies a kernel by 1 - rate * decay, and leaves vectors."""
    train, held = digits(32)
    config = replace(SHORT, weight_decay=0.5, early_best=False, epochs=3)
    kernel = torch.full((4, 3), 2.0, requires_grad=True)
    vector = torch.full((5,), 2.0, requires_grad=True)
    shared = torch.full((2, 1, 3, 3), 2.0, requires_grad=True)
    parts = [
        Samples.from_arrays(one.at(PX, base.preprocessing), one.labels, base.preprocessing)
        for one in (train, held)
    ]
    trainee = Trainee(
        name="decay",
        sources=(Source("decay", *parts, classes=10, batch_size=16),),
        groups={"patch": {"kernel": kernel, "vector": vector}, "shared": {"shared": shared}},
        state={"kernel": kernel, "vector": vector, "shared": shared},
        floors={},
        losses=lambda batches: [{0: 0.0 * (kernel.sum() + vector.sum() + shared.sum())}],
        predict=lambda _, inputs: torch.zeros(len(inputs), 10),
    )
    fit(trainee, config)
    for tensor, scope in ((kernel, "patch"), (shared, "shared")):
        rates = [config.rate(scope) * schedule(config, step / 6) for step in range(6)]  # type: ignore[arg-type]
        expected = 2.0 * np.prod([1 - rate * 0.5 for rate in rates])
        # Each of 6 steps rounds the factor and the product: 12 * 2**-24 of the value.
        assert float(tensor.detach().max()) == pytest.approx(expected, rel=12 * 2**-24)
        assert expected < 1.999
    assert torch.equal(vector.detach(), torch.full((5,), 2.0))


def line_trainee(early: list[Tensor] | None = None) -> Trainee:
    """Two clusters and a linear layer."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    samples = Samples(torch.randn(64, 4, generator=generator) + labels[:, None], labels, None)
    weight = torch.zeros(2, 4, requires_grad=True)

    def forward(inputs: Tensor) -> Tensor:
        return inputs @ weight.T

    def predict(_: int, inputs: Tensor) -> Tensor:
        if early is not None:
            early.append(weight.detach().clone())
        return forward(inputs)

    return Trainee(
        name="line",
        sources=(Source("line", samples, samples, classes=2, batch_size=16),),
        groups={"head": {"w": weight}},
        state={"w": weight},
        floors={},
        losses=SingleLoss(forward, SHORT, torch.device("cpu")),
        predict=predict,
    )


def test_the_average_is_validated_and_kept_and_training_goes_on_from_the_raw_values(
    tmp_path: Path,
) -> None:
    config = replace(SHORT, epochs=3, early_best=False)
    raw: list[Tensor] = []
    plain = line_trainee()
    weight = plain.trained["w"]
    fit(plain, config, on_step=lambda share, images: raw.append(weight.detach().double().clone()))
    validated: list[Tensor] = []
    averaged = line_trainee(validated)
    fit(averaged, replace(config, ema_decay=0.95), checkpoint=tmp_path / "line.pt")
    saved = torch.load(tmp_path / "line.pt", weights_only=True)
    assert torch.equal(saved["state"]["w"], weight.detach())  # raw values: the very same run
    average, expected = torch.zeros(2, 4, dtype=torch.float64), []
    for step, value in enumerate(raw):
        decay = min(0.95, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * value
        expected.append(average)
    largest = max(float(one.abs().max()) for one in raw)
    assert len(raw) == 12
    for epoch, found in enumerate(validated):
        # Each of 12 updates rounds a product and a sum of values up to ``largest``.
        bound = 12 * 2 * 2**-24 * largest
        assert float((found - expected[4 * epoch + 3]).abs().max()) < bound
        assert float((found - raw[4 * epoch + 3]).abs().max()) > 1e3 * bound
    assert torch.equal(averaged.trained["w"].detach(), validated[-1])


def test_a_source_s_weight_multiplies_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients: list[Tensor] = []
    apply = training_loop._Run._apply_gradients

    def note(self: Any) -> None:
        gradients.append(self.trainee.trained["w"].grad.clone())
        apply(self)

    monkeypatch.setattr(training_loop._Run, "_apply_gradients", note)
    for weight in (1.0, 0.25):
        trainee = line_trainee()
        fit(
            replace(trainee, sources=(replace(trainee.sources[0], weight=weight),)),
            replace(SHORT, epochs=1),
        )
    first, quarter = gradients[0], gradients[4]  # both at the same start; 4 steps a run
    assert torch.equal(quarter, 0.25 * first)
    assert bool(first.any())


def test_training_leaves_no_gradients_in_memory() -> None:
    trainee = line_trainee()
    fit(trainee, SHORT)
    assert all(one.grad is None for one in trainee.trained.values())
