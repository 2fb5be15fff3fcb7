"""A base's hash is of its function: of what no tensor shows, and not of how it is written."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchdeploy.base import Base, OldHashWarning
from patchdeploy.base.function import record_function
from patchdeploy.data import Preprocessing
from patchdeploy.errors import WrongBaseError
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel

SMALL = Preprocessing((0.5,) * 3, (0.5,) * 3, 16)
pytestmark = pytest.mark.usefixtures("one_thread")

EMBEDDED = "ca910d853280d195b1866249f90eb7f0c3e6098420deed63864312ecf413d4c1"
EMBEDDED_TENSORS = "71737a07a9451f7713976a52a0f01a7b69f4eda25302e63c2b1c5bf9c21fdd5f"


class Network(nn.Module):
    def __init__(self, steps: Callable[["Network", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.other, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 3)
        self.table = torch.linspace(0, 1, 8).reshape(1, 8, 1, 1)  # no buffer: in no state dict
        self.steps = steps

    def forward(self, images: Tensor) -> Tensor:
        return self.steps(self, images)


def relu(net: Network, x: Tensor) -> Tensor:
    x = functional.relu(net.norm(net.conv(x)))
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def in_place(net: Network, x: Tensor) -> Tensor:
    x = net.norm(net.conv(x)).relu_()
    return net.head(torch.mean(net.other(x), dim=(3, 2), keepdim=True).view(-1, 8))  # type: ignore[no-any-return]


def hardswish(net: Network, x: Tensor) -> Tensor:
    x = functional.hardswish(net.norm(net.conv(x)))
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def relu6(net: Network, x: Tensor) -> Tensor:
    x = functional.relu6(net.norm(net.conv(x)))
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def pooled(net: Network, x: Tensor) -> Tensor:
    x = functional.relu(net.norm(net.conv(x)))
    return net.head(functional.adaptive_max_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def turned(net: Network, x: Tensor) -> Tensor:
    x = net.norm(functional.relu(net.conv(x)))
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def added(net: Network, x: Tensor) -> Tensor:
    x = functional.relu(net.norm(net.conv(x)))
    return net.head(functional.adaptive_avg_pool2d(net.other(x) + x, 1).flatten(1))  # type: ignore[no-any-return]


def scaled(net: Network, x: Tensor) -> Tensor:
    x = functional.relu(net.norm(net.conv(x))) * net.table
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def through_a_view(net: Network, x: Tensor) -> Tensor:
    x = net.norm(net.conv(x))
    x.view(-1).relu_()  # x itself changes
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


def through_a_copy(net: Network, x: Tensor) -> Tensor:
    x = net.norm(net.conv(x))
    x.clone().view(-1).relu_()  # x does not
    return net.head(functional.adaptive_avg_pool2d(net.other(x), 1).flatten(1))  # type: ignore[no-any-return]


OTHERS = [
    hardswish,
    relu6,
    pooled,
    turned,
    added,
    scaled,
    through_a_view,
    through_a_copy,
]


def base_of(steps: Callable[[Network, Tensor], Tensor]) -> Base:
    return Base.from_module(Network(steps), SMALL, "n")


def test_another_activation_pooling_order_or_constant_is_another_base() -> None:
    bases = [base_of(steps) for steps in (relu, *OTHERS)]
    assert len({one.tensors_sha256 for one in bases}) == 1
    assert len({one.sha256 for one in bases}) == len(bases)


def test_a_constant_that_is_no_buffer_is_part_of_the_hash() -> None:
    module = Network(scaled)
    before = Base.from_module(module, SMALL, "n").sha256
    module.table[0, 3] += 0.5
    assert Base.from_module(module, SMALL, "n").sha256 != before


def test_the_same_function_in_other_calls_has_the_same_text() -> None:
    # Another way to write ReLU, the mean and the reshape; another order of values in memory.
    lines = record_function(Network(relu).eval(), 16).lines
    assert record_function(Network(in_place).eval(), 16).lines == lines
    last = Network(relu).eval().to(memory_format=torch.channels_last)
    assert record_function(last, 16).lines == lines


def test_the_embedded_base_keeps_its_hashes() -> None:
    # Patches of it are on disks: a change of these two must be meant.
    base = Base.embedded()
    assert (base.sha256, base.tensors_sha256) == (EMBEDDED, EMBEDDED_TENSORS)


def test_layers_that_scores_come_from_directly_are_all_found() -> None:
    def mean_of_two(net: Network, x: Tensor) -> Tensor:
        x = functional.relu(net.norm(net.conv(x))).mean((2, 3))
        return (net.head(x) + functional.linear(x, net.other.weight[:3, :, 0, 0])) / 2

    assert base_of(relu).other_heads == ()
    assert base_of(mean_of_two).other_heads == ("other",)


def patch_of(base: Base) -> Patch:
    model = PatchedModel(base)
    model.add_task("t", ("a", "b"), PatchConfig())
    return model.to_patch()


def test_a_patch_of_the_same_tensors_under_another_activation_is_refused() -> None:
    one, other = base_of(relu), base_of(hardswish)
    with pytest.raises(WrongBaseError, match="was trained on base"):
        PatchedModel(other).load_patch(patch_of(one))


def test_a_patch_by_the_hash_of_earlier_versions_is_taken_and_said() -> None:
    base = base_of(relu)
    old = replace(patch_of(base), base_sha256=base.tensors_sha256)
    model = PatchedModel(base)
    with pytest.warns(OldHashWarning, match="the hash of its tensors alone"):
        model.load_patch(old)
    assert model.to_patch().base_sha256 == base.sha256  # saved again, it has today's


def test_an_old_patch_gets_the_base_s_values_where_a_normalisation_had_no_scale() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    base = Base.from_module(module, SMALL, "n")
    whole = patch_of(base)
    kept = {key: value for key, value in whole.tensors(16).items() if not key.startswith("1.")}
    old = replace(whole, base_sha256=base.tensors_sha256, variants={16: kept})
    model = PatchedModel(base)
    with pytest.warns(OldHashWarning):
        model.load_patch(old)
    assert np.array_equal(model.tensors()["1.weight"].detach().numpy(), np.ones(8))
