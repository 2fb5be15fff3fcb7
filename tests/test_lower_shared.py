"""Modules under two names, tied and computed tensors; all that is unsupported in one error."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lower_cases import noise_images
from torch import Tensor, nn
from torch.nn import functional

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing, normalize_batch
from patchdeploy.errors import (
    BaseError,
    HeadCapacityError,
    UnknownLayerError,
    UnsupportedOperatorError,
)
from patchdeploy.floatnet import FloatRunner
from patchdeploy.fold import fold_patch
from patchdeploy.lower import lower_base
from patchdeploy.patch import PatchConfig
from patchdeploy.patched_model import PatchedModel

SIDE = 16
SMALL = Preprocessing((0.5,) * 3, (0.5,) * 3, SIDE)
pytestmark = pytest.mark.usefixtures("one_thread")


class Network(nn.Module):
    """A stem, ``layers`` in a chain (a layer may stand in it twice), and a head of 3 classes."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.chain = nn.Conv2d(3, 8, 3, 2, 1), nn.Sequential(*layers)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.chain(torch.relu(self.stem(images)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Standardised(nn.Conv2d):
    """Weight standardisation, as in timm's StdConv2d."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return functional.conv2d(input, w, self.bias, padding=1, groups=self.groups)


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma[None, :, None, None]


class Blur(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(1, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel").repeat(8, 1, 1, 1)
        return functional.conv2d(x, kernel, stride=2, padding=1, groups=8)


class UnitRows(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, functional.normalize(self.weight), self.bias)


def twice() -> list[nn.Module]:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    return [conv, nn.ReLU(), conv, nn.ReLU()]


def block_twice() -> list[nn.Module]:
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return [block, block]


def tied() -> list[nn.Module]:
    one, other = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    other.weight = one.weight
    return [one, nn.ReLU(), other, nn.ReLU()]


CHAINS: dict[str, Callable[[], list[nn.Module]]] = {
    "a convolution under two names": twice,
    "a block under two names": block_twice,
    "two convolutions with one kernel": tied,
    "a standardised kernel": lambda: [Standardised(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()],
    "a scale by layer": lambda: [LayerScale()],
    "a blur by a repeated buffer": lambda: [Blur()],
}


@pytest.mark.parametrize("kind", CHAINS)
def test_a_patch_folded_into_the_graph_scores_as_the_patched_network(kind: str) -> None:
    torch.manual_seed(0)
    base = Base.from_module(Network(*CHAINS[kind]()), SMALL, "n")
    model = PatchedModel(base)
    model.add_task("t", ("a", "b", "c"), PatchConfig())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.tensors().values():
            value.mul_(0.5 + torch.rand(value.shape, generator=generator))
    images = noise_images(4, SIDE, SIDE)
    folded = fold_patch(lower_base(base, exact_border=True), model.to_patch().tensors(SIDE), 3)
    found = FloatRunner(folded)(images).reshape(4, 3)
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(normalize_batch(images, SMALL))).numpy()
    # Five layers of up to 72 products in float32 either way: 1e-5 of the largest score.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class PerClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.factor = Network(), nn.Parameter(torch.linspace(0.5, 2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) * self.factor  # type: ignore[no-any-return]


def test_a_factor_by_class_after_the_head_fits_as_many_classes_alone() -> None:
    torch.manual_seed(0)
    base = Base.from_module(PerClass(), SMALL, "n")
    graph = lower_base(base, exact_border=True)
    images = noise_images(4, SIDE, SIDE)
    found = FloatRunner(fold_patch(graph))(images).reshape(4, 3)
    with torch.no_grad():
        expected = base.module(torch.from_numpy(normalize_batch(images, SMALL))).numpy()
    # As above.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    head = {"network.head.weight": np.ones((2, 8), np.float32)}
    head["network.head.bias"] = np.zeros(2, np.float32)
    with pytest.raises(HeadCapacityError, match="which runs after it, is made for 3 scores"):
        fold_patch(graph, head, 2)


def test_no_patch_takes_the_place_of_a_kernel_that_is_computed() -> None:
    torch.manual_seed(0)
    module = Network(Standardised(8, 8, 3, groups=8), nn.BatchNorm2d(8))
    base = Base.from_module(module, SMALL, "n")
    model = PatchedModel(base)
    model.add_task("t", ("a", "b"), PatchConfig(("scale_bias", "depthwise", "head")))
    with pytest.raises(UnknownLayerError, match=r"tensor 'chain\.0\.weight' .* is nothing that"):
        fold_patch(lower_base(base), model.to_patch().tensors(SIDE), 2)


def test_a_head_that_computes_its_kernel_is_refused() -> None:
    module = Network()
    module.head = UnitRows(8, 3)
    with pytest.raises(BaseError) as caught:
        lower_base(Base.from_module(module, SMALL, "n"))
    assert str(caught.value) == (
        "base 'n': its last layer 'head' computes its kernel from other tensors; a patch brings a "
        "kernel that is used as it is; end the network with torch.nn.Linear or Conv2d"
    )


def test_all_that_is_unsupported_is_named_at_once() -> None:
    chain = [nn.GELU(), nn.Conv2d(8, 8, 1), nn.GELU(), nn.AvgPool2d(2, 2, 1, False, False)]
    module = Network(*chain, nn.ConvTranspose2d(8, 8, 2))
    with pytest.raises(UnsupportedOperatorError) as caught:
        lower_base(Base.from_module(module, SMALL, "n"))
    rule = "no lowering rule for this operator; the nearest supported form is"
    assert str(caught.value) == (
        "4 places of the network cannot be lowered:\n"
        f"  aten.gelu.default at module 'chain.0' (GELU), 'chain.2' (GELU): {rule} hardswish\n"
        "  aten.avg_pool2d.default at module 'chain.3' (AvgPool2d): ceil_mode=False, padding=[1, "
        "1], count_include_pad=False; the nearest supported form is avg_pool2d with "
        "ceil_mode=False and count_include_pad=True (or no padding)\n"
        f"  aten.conv_transpose2d.input at module 'chain.4' (ConvTranspose2d): {rule} conv2d\n"
        "rewrite these modules and make the base again"
    )
