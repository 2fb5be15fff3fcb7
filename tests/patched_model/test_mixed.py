"""Mixed-task batches: scores and gradients are those of task by task, and reach no other task."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import (
    AlreadyAttachedError,
    PatchError,
    UnknownResolutionError,
    UnknownTaskError,
    WrongBaseError,
)
from patchdeploy.patch import Kind, Patch, PatchConfig, Statistics
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patched_model.layers import Current, build_structure, find_activations
from patchdeploy.patched_model.mixed import MixedTaskModel
from patchdeploy.patched_model.rows import plan_rows

EVERYTHING = PatchConfig(("scale_bias", "depthwise", "head"))
CLASSES = {"fruit": ("a", "b", "c"), "coins": ("d", "e"), "birds": tuple("fghij")}
SIDE = 16
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # One set of kinds serves every network; SqueezeNet's has no depthwise convolution.
    pytest.mark.filterwarnings(
        "ignore:patch kind 'depthwise' selects:patchdeploy.patch.reach.ReachWarning"
    ),
]


@pytest.fixture(scope="module")
def base() -> Base:
    """Normalised, depthwise and bare convolutions, a linear head; two of the norms are one module,
    so that ties are replaced everywhere.
    """
    torch.manual_seed(0)
    tied = nn.BatchNorm2d(8)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        tied,
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        tied,
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 4),
    )
    return Base.from_module(module, Preprocessing(input_size=SIDE), "small")


@pytest.fixture(scope="module")
def squeezing() -> Base:
    """A convolution as the head, and layers after it, as SqueezeNet has."""
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Base.from_module(module, Preprocessing(input_size=SIDE), "squeezing")


@pytest.fixture(scope="module")
def clipped() -> Base:
    """An activation function after each normalisation but the last, of each kind with limits."""
    torch.manual_seed(2)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardtanh(-0.3, 0.7),
        nn.Conv2d(16, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 4),
    )
    return Base.from_module(module, Preprocessing(input_size=SIDE), "clipped")


def images(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return drawn.contiguous(memory_format=torch.channels_last)


def perturbed_patch(base: Base, task: str, config: PatchConfig, seed: int) -> Patch:
    """A patch far from the base in every tensor; scales and variances stay positive."""
    model = PatchedModel(base)
    model.add_task(task, CLASSES[task], config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in model.tensors().items():
            noise = torch.rand(value.shape, generator=generator)
            if value.ndim == 1 and key.endswith(("weight", "running_var", "patch_scale")):
                value.mul_(0.5 + noise)
            else:
                value.add_(0.4 * (noise - 0.5))
    return model.to_patch()


def both(
    base: Base, config: PatchConfig = EVERYTHING
) -> tuple[MixedTaskModel, dict[str, PatchedModel]]:
    """The same three patches in a mixed model, and each in a model of its own."""
    mixed, alone = MixedTaskModel(base), {}
    for seed, task in enumerate(CLASSES):
        patch = perturbed_patch(base, task, config, seed)
        mixed.load_patch(patch)
        alone[task] = PatchedModel(base)
        alone[task].load_patch(patch)
    return mixed, alone


def float_bound(reference: Tensor) -> float:
    """How far two orders of one float32 computation may be apart.

    A value passes at most 5 layers, each a sum of at most 72 products and a scale and shift. Two
    orders of a sum of n terms differ by at most 2 n u times the sum of magnitudes, u = 2**-24
    (Higham, Accuracy and Stability, section 4.2); with 74 terms a layer and 5 layers that is
    740 u = 4.4e-5 relative to the magnitudes, of which a score keeps at least a tenth here.
    """
    return 10 * 740 * 2.0**-24 * float(reference.abs().max())


ORDERS = {
    "sorted, equally many": [0, 0, 1, 1, 2, 2],
    "sorted, uneven": [0, 1, 1, 1, 2, 2],
    "shuffled, equally many": [2, 0, 1, 1, 2, 0],
    "shuffled, uneven": [2, 0, 2, 2, 1, 0],
    "one task is absent": [2, 0, 2, 0, 0, 2],
    "one task alone": [1, 1, 1, 1, 1, 1],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("which", ["base", "squeezing", "clipped"])
def test_each_image_gets_the_scores_of_its_own_task(
    which: str, order: list[int], request: pytest.FixtureRequest
) -> None:
    network: Base = request.getfixturevalue(which)
    mixed, alone = both(network)
    batch, tasks = images(6), torch.tensor(order)
    with torch.no_grad():
        scores = mixed(batch, tasks)
        assert scores.shape == (6, max(len(mixed.classes(mixed.tasks[k])) for k in order))
        for place, number in enumerate(order):
            task = mixed.tasks[number]
            expected = alone[task](batch[place : place + 1])[0]
            found = scores[place, : len(expected)]
            assert float((found - expected).abs().max()) <= float_bound(expected)
            assert bool((scores[place, len(expected) :] == -torch.inf).all())
            for other in set(alone) - {task}:  # a mixed-up gather must not pass
                wrong = alone[other](batch[place : place + 1])[0]
                width = min(len(wrong), len(found))
                distance = float((found[:width] - wrong[:width]).abs().max())
                assert distance > 10 * float_bound(expected)


def test_the_embedded_base_agrees_with_one_task_at_a_time() -> None:
    base = Base.embedded()
    mixed, alone = both(base)
    batch = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = mixed(batch, torch.tensor([0, 1, 2, 2, 1, 0]))
        for place, task in ((0, "fruit"), (1, "coins"), (3, "birds")):
            expected = alone[task](batch[place : place + 1])[0]
            # 53 layers whose rounding errors (at most 2**-24 a value) add up like independent
            # ones: a sum of 480 terms loses sqrt(480) u = 1.3e-6, 53 of them at most 7e-5 of the
            # largest activation; 1e-3 of the largest score leaves room for cancellation.
            error = float((scores[place, : len(expected)] - expected).abs().max())
            assert error <= 1e-3 * float(expected.abs().max())


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
@pytest.mark.parametrize("counts", [(4, 4, 4), (5, 2, 4)])
@pytest.mark.parametrize("which", ["base", "clipped"])
def test_gradients_and_statistics_are_those_of_each_task_alone(
    which: str, statistics: Statistics, counts: tuple[int, ...], request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(which)
    config = PatchConfig(("scale_bias", "depthwise", "head"), statistics=statistics)
    mixed, alone = both(base, config)
    batch = images(sum(counts))
    tasks = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    scores = mixed(batch, tasks)
    weights = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3))
    for task, part, factor in zip(
        CLASSES, scores.split(list(counts)), weights.split(list(counts)), strict=True
    ):
        width = len(CLASSES[task])
        (part[:, :width] * factor[:, :width]).sum().backward(retain_graph=True)
    for task, part, factor in zip(
        CLASSES, batch.split(list(counts)), weights.split(list(counts)), strict=True
    ):
        (alone[task](part) * factor[:, : len(CLASSES[task])]).sum().backward()
        layout = plan_rows(base, config)
        expected = alone[task].tensors(task)
        named = layout.views({key: _gradient(row) for key, row in mixed.rows(task).items()})
        for key, value in expected.items():
            if value.grad is not None:
                # A gradient sums over images and pixels: at most 5 * 64 terms more than a score.
                bound = 5 * float_bound(value.grad)
                assert float((named[key] - value.grad).abs().max()) <= bound, key
        for key, found in mixed.tensors(task).items():
            value = expected[key].detach()
            # Sums of positive terms or of one layer's values: none of the cancellation that
            # float_bound allows for.
            assert float((found - value).abs().max()) <= float_bound(value) / 10, key


def _gradient(row: Tensor) -> Tensor:
    return torch.zeros_like(row) if row.grad is None else row.grad


def test_batch_statistics_are_learned_in_training_alone(base: Base) -> None:
    mixed, _ = both(base, PatchConfig(("scale_bias", "head"), statistics="batch"))
    before = {key: value.clone() for key, value in mixed.tensors("fruit").items()}
    tasks = torch.tensor([0, 0, 1, 1])
    with torch.no_grad():
        quiet = mixed(images(4), tasks)
    mixed.eval()
    mixed(images(4), tasks)
    for key, value in mixed.tensors("fruit").items():
        assert torch.equal(value, before[key])
    mixed.train()
    loud = mixed(images(4), tasks)
    assert not torch.allclose(quiet, loud)
    assert not torch.equal(mixed.tensors("fruit")["1.running_mean"], before["1.running_mean"])


def test_gradients_reach_the_tasks_in_the_batch_and_neither_others_nor_the_base(
    base: Base,
) -> None:
    mixed, _ = both(base)
    scores = mixed(images(4), torch.tensor([0, 2, 2, 0]))
    scores[:, :3].square().sum().backward()
    for task in CLASSES:
        for key, row in mixed.rows(task).items():
            trained = task != "coins" and key not in ("mean", "var")
            assert (row.grad is not None) == trained, (task, key)
            assert not trained or float(_gradient(row).abs().sum()) > 0
    assert all(one.grad is None for one in base.module.parameters())


@pytest.mark.parametrize("kinds", [("scale_bias",), ("depthwise",), ("head",)])
def test_rows_that_a_patch_does_not_own_have_no_gradient(
    base: Base, kinds: tuple[Kind, ...]
) -> None:
    mixed = MixedTaskModel(base)
    mixed.add_task("fruit", CLASSES["fruit"], PatchConfig(kinds))
    mixed(images(2), torch.tensor([0, 0])).sum().backward()
    reached = {key for key, row in mixed.rows("fruit").items() if row.grad is not None}
    owned = {
        "scale_bias": {"scale", "bias"},
        "depthwise": {"kernels"},
        "head": {"head.weight", "head.bias"},
    }
    assert reached == owned[kinds[0]]


def test_a_patch_comes_back_as_it_was_loaded_and_views_write_into_it(base: Base) -> None:
    mixed = MixedTaskModel(base)
    patch = perturbed_patch(base, "fruit", EVERYTHING, 4)
    mixed.load_patch(patch)
    saved = mixed.to_patch("fruit", {"note": 1})
    assert saved.metrics == {"note": 1}
    assert saved.classes == patch.classes
    assert saved.tensors(SIDE).keys() == patch.tensors(SIDE).keys()
    for key, value in patch.tensors(SIDE).items():
        assert np.array_equal(saved.tensors(SIDE)[key], value), key
    before = mixed(images(1), torch.tensor([0])).detach()
    for key, view in mixed.tensors("fruit").items():
        view.mul_(1.5)
        assert np.array_equal(mixed.to_patch("fruit").tensors(SIDE)[key], view.numpy())
    assert not torch.equal(before, mixed(images(1), torch.tensor([0])).detach())


def test_a_base_without_normalisations_and_a_patch_of_nothing_but_the_head(base: Base) -> None:
    mixed = MixedTaskModel(base)
    for task, classes in CLASSES.items():
        mixed.add_task(task, classes, PatchConfig(("head",)))
    alone = PatchedModel(base)
    alone.add_task("birds", CLASSES["birds"], PatchConfig(("head",)))
    with torch.no_grad():
        found = mixed(images(2), torch.tensor([2, 2]))
        expected = alone(images(2))
    assert float((found - expected).abs().max()) <= float_bound(expected)


def test_detached_tasks_are_gone_and_those_after_them_move_up(base: Base) -> None:
    mixed, alone = both(base)
    mixed.detach_task("fruit")
    assert mixed.tasks == ("coins", "birds")
    assert mixed.number("birds") == 1
    with torch.no_grad():
        found = mixed(images(1), torch.tensor([mixed.number("birds")]))
        expected = alone["birds"](images(1))
    assert float((found - expected).abs().max()) <= float_bound(expected)


def test_the_base_is_never_written(base: Base) -> None:
    before = {key: value.numpy().tobytes() for key, value in base.module.state_dict().items()}
    mixed, _ = both(base, PatchConfig(EVERYTHING.kinds, statistics="batch"))
    mixed(images(6), torch.tensor([0, 0, 1, 1, 2, 2]))[:, :2].sum().backward()
    after = {key: value.numpy().tobytes() for key, value in base.module.state_dict().items()}
    assert after == before
    assert not list(mixed.parameters())


def test_an_activation_function_is_taken_along_where_nothing_else_reads_what_is_before_it(
    base: Base, clipped: Base
) -> None:
    layers = list(clipped.module)
    found = find_activations(clipped.module, SIDE)
    assert found == {
        layers[1]: (layers[2], (0.0, 6.0)),
        layers[4]: (layers[5], (0.0, math.inf)),
        layers[7]: (layers[8], (-0.3, 0.7)),
    }
    structure = build_structure(clipped, plan_rows(clipped, EVERYTHING), Current())
    kinds = [type(one).__name__ for one in structure.children()]
    assert kinds[1:3] == kinds[4:6] == kinds[7:9] == ["_MixedNorm", "Identity"], "taken along once"
    assert find_activations(base.module, SIDE) == {}, "one normalisation in two places"
    relu = nn.ReLU()
    shared = nn.Sequential(nn.BatchNorm2d(3), relu, nn.Conv2d(3, 3, 1), relu)
    assert find_activations(shared, SIDE) == {}, "one activation function in two places"
    assert find_activations(nn.Sequential(nn.BatchNorm2d(3), nn.Hardswish()), SIDE) == {}

    class Both(nn.Sequential):
        """Reads what is between the two."""

        def forward(self, x: Tensor) -> Tensor:
            scaled = self[0](x)
            return scaled + self[1](scaled)

    assert find_activations(Both(nn.BatchNorm2d(3), nn.ReLU()), SIDE) == {}

    class OneByOne(nn.Module):
        """Runs the layers of a sequence by itself, and may keep what is between any two."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
            self.twice = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
            self.unused = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.twice(x) + self.twice[0](x)

    assert find_activations(OneByOne(), SIDE) == {}


def raised(kind: type[Exception], call: Any) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_wrong_numbers_of_tasks_are_refused(base: Base) -> None:
    mixed = MixedTaskModel(base)
    assert raised(UnknownTaskError, lambda: mixed(images(1), torch.tensor([0]))) == (
        "no task is attached; attach one with add_task or load_patch"
    )
    mixed.add_task("fruit", CLASSES["fruit"])
    assert raised(UnknownTaskError, lambda: mixed(images(2), torch.tensor([0, 1]))) == (
        "task number 1; 1 tasks are attached, from 0 to 0; see MixedTaskModel.number"
    )
    assert raised(UnknownTaskError, lambda: mixed(images(2), torch.tensor([-1, 0]))) == (
        "task number -1; 1 tasks are attached, from 0 to 0; see MixedTaskModel.number"
    )
    assert raised(PatchError, lambda: mixed(images(2), torch.tensor([0.0]))) == (
        "tasks are float32 [1] for images [2, 3, 16, 16]; they must be int64, one number for each "
        "of at least 1 image; see MixedTaskModel.number"
    )
    assert raised(UnknownTaskError, lambda: mixed.number("coins")) == (
        "task 'coins' is not attached; attached: fruit; add or load it first"
    )


def test_tasks_that_do_not_fit_are_refused(base: Base, squeezing: Base) -> None:
    mixed = MixedTaskModel(base)
    patch = perturbed_patch(base, "fruit", EVERYTHING, 0)
    mixed.load_patch(patch)
    assert raised(AlreadyAttachedError, lambda: mixed.load_patch(patch)) == (
        "task 'fruit' is attached already; each name is attached once; detach it first or choose "
        "another name"
    )
    wrong = PatchConfig(("scale_bias", "head"))
    assert raised(PatchError, lambda: mixed.add_task("coins", ("a", "b"), wrong)) == (
        "task 'coins' has sites of its own, beside task 'fruit'; tasks in one batch share kinds, "
        "patterns and statistics; use a PatchedModel, or train it with the same settings"
    )
    learning = PatchConfig(EVERYTHING.kinds, statistics="batch")
    assert raised(PatchError, lambda: mixed.add_task("coins", ("a", "b"), learning)) == (
        "task 'coins' has statistics 'batch', not 'frozen', beside task 'fruit'; tasks in one "
        "batch share kinds, patterns and statistics; use a PatchedModel, or train it with the same "
        "settings"
    )
    other = perturbed_patch(squeezing, "coins", PatchConfig(), 0)
    assert raised(WrongBaseError, lambda: mixed.load_patch(other)) == (
        f"patch 'coins' was trained on base {squeezing.sha256[:16]}, this base is "
        f"{base.sha256[:16]}; attach it to the base that it was trained on"
    )
    assert raised(UnknownResolutionError, lambda: MixedTaskModel(base, 32).load_patch(patch)) == (
        "patch 'fruit' has no variant for 32 px; it has 16 px; train that resolution too"
    )
    arrays = dict(patch.tensors(SIDE))
    arrays["11.bias"] = np.zeros(7, np.float32)
    broken = Patch("coins", base.sha256, patch.config, patch.classes, {SIDE: arrays})
    assert raised(PatchError, lambda: mixed.load_patch(broken)) == (
        "patch 'coins' at 16 px: tensor '11.bias' is [7]; its settings on base 'small' make it "
        "[3]; save the patch again"
    )
    assert mixed.tasks == ("fruit",)


def test_batch_statistics_of_a_single_value_are_refused() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, SIDE), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    network = Base.from_module(module, Preprocessing(input_size=SIDE), "whole")
    mixed = MixedTaskModel(network)
    for task in ("fruit", "coins"):
        mixed.add_task(task, CLASSES["coins"], PatchConfig(statistics="batch"))
    assert raised(PatchError, lambda: mixed(images(3), torch.tensor([0, 0, 1]))) == (
        "normalisation '1': a task has 1 value a channel in the batch; batch statistics need at "
        "least 2; give each task 2 images or more, or larger images"
    )
    with torch.no_grad():
        assert mixed(images(3), torch.tensor([0, 0, 1])).shape == (3, 2)
