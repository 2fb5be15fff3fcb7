"""Mixed batches over modules that do more than their class says: scores as alone, or refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdeploy.base import Base
from patchdeploy.base.keras import PadAfter
from patchdeploy.data import Preprocessing
from patchdeploy.errors import PatchError
from patchdeploy.patch import PatchConfig, Statistics
from patchdeploy.patch.joined import Partners, joined_with, normalizing_jointly
from patchdeploy.patch.tails import find_tail
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patched_model.mixed import MixedTaskModel

SIDE = 16
SMALL = Preprocessing((0.5,) * 3, (0.5,) * 3, SIDE)
pytestmark = pytest.mark.usefixtures("one_thread")


class NormAct(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: two modules after normalising."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout2d(0.5), nn.SiLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))  # type: ignore[no-any-return]


class NormRelu(nn.BatchNorm2d):
    """Activates by a function, which no module shows."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


class PositiveIn(nn.BatchNorm2d):
    """Changes what it reads before it normalises."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.abs())


class Cosine(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        rows = functional.normalize(self.weight)
        return functional.linear(functional.normalize(input), rows, self.bias)


class Centred(nn.Module):
    """Mixes the images of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


def network(norm: type[nn.BatchNorm2d] = nn.BatchNorm2d, **parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    layers = {
        "stem": nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        "one": norm(8),
        "relu": nn.ReLU(),
        "deep": nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        "two": norm(8),
        "between": nn.Identity(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "head": nn.Linear(8, 4),
    }
    module = nn.Sequential()
    for name, layer in (layers | parts).items():
        module.add_module(name, layer)
    return module.eval()


def hooked(where: str) -> nn.Module:
    module = network()
    module.get_submodule(where).register_forward_hook(lambda _, __, output: output * 3)
    return module


SAME: dict[str, Callable[[], nn.Module]] = {
    "modules inside": lambda: network(NormAct),
    "a function inside": lambda: network(NormRelu),
    "a depthwise convolution that pads": lambda: network(deep=PadAfter(8, 8, 3, 2, groups=8)),
    "a head of another class": lambda: network(head=Cosine(8, 4)),
    **{f"a hook on {one}": lambda one=one: hooked(one) for one in ("one", "relu", "deep", "head")},
}


def run_both(module: nn.Module, statistics: Statistics, train: bool) -> tuple[Tensor, Tensor]:
    config = PatchConfig(("scale_bias", "depthwise", "head"), statistics=statistics)
    base = Base.from_module(module, SMALL, "n")
    alone, mixed = PatchedModel(base), MixedTaskModel(base)
    alone.add_task("t", tuple("abcd"), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in alone.tensors().values():
            value.mul_(0.5 + torch.rand(value.shape, generator=generator))
            value.add_(0.1 * torch.rand(value.shape, generator=generator))
    mixed.load_patch(alone.to_patch())
    images = torch.randn(6, 3, SIDE, SIDE, generator=generator)
    alone.train(train)
    mixed.train(train)
    return alone(images), mixed(images, torch.zeros(6, dtype=torch.int64))


@pytest.mark.parametrize("statistics", ["frozen", "batch"])
@pytest.mark.parametrize("kind", SAME)
def test_scores_are_those_of_the_task_alone(kind: str, statistics: Statistics) -> None:
    found, expected = run_both(SAME[kind](), statistics, statistics == "batch")
    # Some ten roundings a layer, each 2^-24 of the largest score, five layers.
    torch.testing.assert_close(
        found, expected, rtol=0, atol=3e-6 * float(expected.detach().abs().max())
    )


def test_a_normalisation_that_changes_what_it_reads_is_refused() -> None:
    with pytest.raises(PatchError) as caught:
        run_both(network(PositiveIn), "frozen", False)
    assert str(caught.value) == (
        "normalisation 'one' (PositiveIn) does more than normalise and then change what it gives; "
        "a batch of several tasks or ranks cannot run it; train the tasks one by one (train_patch) "
        "in one process, or make the base with a BatchNorm2d there"
    )


def test_a_network_that_mixes_the_images_of_a_batch_is_refused_when_it_is_attached() -> None:
    mixed = MixedTaskModel(Base.from_module(network(between=Centred()), SMALL, "n"))
    with pytest.raises(PatchError, match="'n' scores otherwise in a batch of several tasks than"):
        mixed.add_task("t", ("a", "b"))
    assert mixed.tasks == ()


def test_ranks_that_share_a_batch_run_what_is_inside_a_normalisation_too() -> None:
    norm = NormRelu(8).train()
    x = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = NormRelu(8).train()(x)
    alone = Partners(0, 1, lambda _: None)  # the whole batch is here
    with joined_with(alone), normalizing_jointly([norm]):
        found = norm(x).detach()
    # Moments in float64 for float32 ones: values below 4, a few roundings.
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=2e-6)
    assert float(found.min()) == 0


def test_dropout_inside_a_normalisation_is_off_while_statistics_are_learned() -> None:
    found, expected = run_both(network(NormAct), "batch", True)
    assert torch.equal(*(run_both(network(NormAct), "batch", True)[0] for _ in range(2)))
    torch.testing.assert_close(
        found, expected, rtol=0, atol=3e-6 * float(expected.detach().abs().max())
    )


def test_a_plain_normalisation_has_nothing_after_it() -> None:
    assert find_tail(nn.BatchNorm2d(4), "n") == ()
