"""A caller's module in the form that patches know: handled, or refused with what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops.misc import FrozenBatchNorm2d

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import BaseError
from patchdeploy.patch import PatchConfig, find_sites

SMALL = Preprocessing((0.5,) * 3, (0.5,) * 3, 16)
pytestmark = pytest.mark.usefixtures("one_thread")


def network(norm: Callable[..., nn.Module] = nn.BatchNorm2d, channels: int = 3, **settings: Any):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1, bias=False),
        norm(8, **settings),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()


def spread(module: nn.Module) -> nn.Module:
    """Statistics, scales and shifts far from their start."""
    generator = torch.Generator().manual_seed(1)
    for key, value in module.state_dict().items():
        if key.startswith("1.") and value.is_floating_point():
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return module


def hooked(old: Callable[..., nn.Module]) -> nn.Module:
    module = network()
    old(module[0])
    return module.eval()


def parametrised() -> nn.Module:
    module = network()
    parametrizations.spectral_norm(module[0])
    parametrizations.weight_norm(module[5])
    return module.eval()


def inside() -> nn.Module:
    module = network()
    return nn.Sequential(nn.DataParallel(module[:3]), *module[3:])


HANDLED: dict[str, Callable[[], nn.Module]] = {
    "SyncBatchNorm": lambda: spread(nn.SyncBatchNorm.convert_sync_batchnorm(network())),
    "SyncBatchNorm without scale": lambda: spread(network(nn.SyncBatchNorm, affine=False)),
    "FrozenBatchNorm2d": lambda: spread(network(FrozenBatchNorm2d)),
    "BatchNorm2d without scale": lambda: spread(network(affine=False)),
    "InstanceNorm2d with statistics": lambda: spread(
        network(nn.InstanceNorm2d, track_running_stats=True)
    ),
    "weight_norm": lambda: hooked(nn.utils.weight_norm),
    "spectral_norm": lambda: hooked(nn.utils.spectral_norm),
    "parametrisations": parametrised,
    "DataParallel": lambda: nn.DataParallel(network()),
    "DataParallel inside": inside,
    "AveragedModel": lambda: torch.optim.swa_utils.AveragedModel(network()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", HANDLED)
def test_what_has_the_same_function_in_other_modules_is_brought_into_them(kind: str) -> None:
    module = HANDLED[kind]()
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(images)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    base = Base.from_module(module, SMALL, "n")
    path = "0.1" if kind == "DataParallel inside" else "1"
    assert find_sites(base, PatchConfig()).norms == (path,)
    with torch.no_grad():
        # FrozenBatchNorm2d rounds otherwise, four times, at values below 4.
        torch.testing.assert_close(base.module(images), expected, rtol=0, atol=4e-6)
        assert torch.equal(module(images), expected), "the caller's module still runs"
    after = module.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_compiled_module_is_taken_without_its_wrapper() -> None:
    module = network()
    base = Base.from_module(torch.compile(module), SMALL, "n")
    assert base.sha256 == Base.from_module(module, SMALL, "n").sha256


class Half(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).half()  # type: ignore[no-any-return]


class SyncAct(nn.SyncBatchNorm):
    """As timm's SyncBatchNormAct."""


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "TorchScript": (
        lambda: torch.jit.script(network()),
        "base 'n' is TorchScript (the root, 0, 1 and 4 more), whose modules can be neither copied "
        "nor patched; pass the nn.Module that it was scripted or traced from, and load the weights "
        "with module.load_state_dict(scripted.state_dict())",
    ),
    "half": (
        lambda: network().half(),
        "base 'n' has float16 values in 0.weight, 1.weight, 1.bias and 4 more; a base computes in "
        "dense float32; pass module.float()",
    ),
    "one layer in bfloat16": (
        lambda: nn.Sequential(network()[:1].bfloat16(), *network()[1:]),
        "base 'n' has bfloat16 values in 0.0.weight; a base computes in dense float32; pass "
        "module.float()",
    ),
    "double": (
        lambda: network().double(),
        "base 'n' has float64 values in 0.weight, 1.weight, 1.bias and 4 more; a base computes in "
        "dense float32; pass module.float()",
    ),
    "grey images": (
        lambda: network(channels=1),
        "base 'n' reads images of 1 channels (convolution '0'); a base reads RGB, float32 [N, 3, "
        "H, W]; give it 3 input channels with weight.repeat(1, 3, 1, 1) / 3, which scores grey "
        "images as before (preprocessing with one mean and one std)",
    ),
    "four channels": (
        lambda: network(channels=4),
        "base 'n' reads images of 4 channels (convolution '0'); a base reads RGB, float32 [N, 3, "
        "H, W]; give it the 3 input channels that it needs for RGB (weight[:, :3]) and train it "
        "again",
    ),
    "scores in half": (
        lambda: Half(network()),
        "base 'n' gives float16 [1, 2] for one image; it must give class scores, float32 [1, "
        "classes]; wrap it in a module that does",
    ),
    "no shape yet": (
        lambda: nn.Sequential(nn.LazyConv2d(8, 3), *network()[1:]),
        "base 'n' has no shape yet for 0.weight, 0.bias; every tensor of a base has one; run a "
        "batch through the module first",
    ),
    "no values": (
        lambda: network().to("meta"),
        "base 'n' has no values (they are on the meta device) in 0.weight, 1.weight, 1.bias and 5 "
        "more; a base computes in dense float32; load its weights first",
    ),
    "a kind of SyncBatchNorm": (
        lambda: network(SyncAct),
        "base 'n': normalisation '1' is a SyncAct, a kind of SyncBatchNorm that cannot be patched; "
        "normalisations of a base are BatchNorm2d; build the network without "
        "convert_sync_batchnorm and load the weights into it",
    ),
    "a name": (
        lambda: "resnet18",
        "base 'n' is a str; it must be a torch.nn.Module; pass the network itself",
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_a_base_is_refused_with_the_remedy(kind: str) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(BaseError) as caught:
        Base.from_module(make(), SMALL, "n")
    assert str(caught.value) == message


def test_the_remedy_for_a_network_of_grey_images_scores_them_as_before() -> None:
    module = network(channels=1)
    grey = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module(grey)
        module[0].weight = nn.Parameter(module[0].weight.repeat(1, 3, 1, 1) / 3)
        found = Base.from_module(module, SMALL, "n").module(grey.repeat(1, 3, 1, 1))
    # 27 products in place of 9, each below 2: 40 roundings of 2^-24 of that.
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
