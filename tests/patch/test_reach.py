"""What a patch would leave as it is, though its kinds name it, is said."""

import pytest
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import PatchError, UnknownLayerError
from patchdeploy.patch import PatchConfig, ReachWarning
from patchdeploy.patched_model import PatchedModel
from patchdeploy.patched_model.mixed import MixedTaskModel

SMALL = Preprocessing(input_size=16)
pytestmark = pytest.mark.usefixtures("one_thread")


def base_of(*layers: nn.Module, features: int = 8) -> Base:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), *layers]
    module = nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 2))
    return Base.from_module(module, SMALL, "n")


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.one, self.two = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(images).mean((2, 3))
        return (self.one(features) + self.two(features)) / 2  # type: ignore[no-any-return]


def test_normalisations_of_another_kind_are_named() -> None:
    with pytest.warns(ReachWarning) as caught:
        PatchedModel(base_of(nn.GroupNorm(2, 8))).add_task("t", ("a", "b"))
    assert [str(one.message) for one in caught] == [
        "patch kind 'scale_bias' does not reach 3 (GroupNorm) of base 'n': a patch changes Conv2d "
        "and BatchNorm2d; these keep the base's values; replace them, or take it that they stay"
    ]
    head = PatchConfig(("head",))
    PatchedModel(base_of(nn.GroupNorm(2, 8))).add_task("t", ("a", "b"), head)  # it asks for none


@pytest.mark.parametrize("kind", [PatchedModel, MixedTaskModel])
def test_a_second_last_layer_is_named_and_one_of_other_rows_refused(kind: type) -> None:
    base = Base.from_module(TwoHeads(), SMALL, "n")
    with pytest.warns(ReachWarning, match="from its head 'two' and from one; a patch brings a"):
        kind(base).add_task("t", ("a", "b"))
    with pytest.raises(PatchError) as caught:
        kind(base).add_task("t", ("a", "b", "c"))
    assert str(caught.value) == (
        "base 'n' with a head 'two' of 3 rows fails: The size of tensor a (2) must match the size "
        "of tensor b (3) at non-singleton dimension 1; what runs beside it (one) or after it is "
        "made for 2 scores; make a base that ends with its last layer, or train tasks of 2 classes"
    )


@pytest.mark.parametrize(
    "config",
    [
        PatchConfig(("head",), statistics="reestimated"),
        PatchConfig(("scale_bias", "head"), exclude=("1",), statistics="batch"),
    ],
)
def test_statistics_that_would_do_nothing_are_refused(config: PatchConfig) -> None:
    with pytest.raises(PatchError, match="would do nothing in base 'n': the patch owns no norm"):
        PatchedModel(base_of()).add_task("t", ("a", "b"), config)


def test_a_kind_without_a_layer_is_said() -> None:
    config = PatchConfig(("scale_bias", "depthwise", "head"))
    with pytest.warns(ReachWarning, match="kind 'depthwise' selects no layer of base 'n'"):
        PatchedModel(base_of()).add_task("t", ("a", "b"), config)


def test_a_network_without_convolution_has_a_head_alone() -> None:
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    base = Base.from_module(module, SMALL, "n")
    with pytest.raises(UnknownLayerError) as caught:
        PatchedModel(base).add_task("t", ("a", "b"))
    assert str(caught.value) == (
        "base 'n' has no convolution (Conv2d) and no normalisation (BatchNorm2d) for patch kinds "
        "scale_bias, head and patterns; the head is all that a patch of it can own; use "
        "PatchConfig(('head',))"
    )
    model = PatchedModel(base)
    model.add_task("t", ("a", "b"), PatchConfig(("head",)))
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, 2)
