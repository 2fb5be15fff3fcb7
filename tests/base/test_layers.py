"""What a network is made of: readers of convolutions, signs, the last layer, content."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.data import Preprocessing
from patchdeploy.errors import BaseError
from patchdeploy.patch import PatchConfig, find_sites

SMALL = Preprocessing(input_size=16)
pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Normalisations with random statistics and scales of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.affine:
            layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) * 2 - 0.7)
            layer.bias.normal_(generator=generator)
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.normal_(0, 0.2, generator=generator)
                layer.running_var.uniform_(0.5, 2.0, generator=generator)
    return module.eval()


class Network(nn.Module):
    """Layers in the order of their names, run by ``steps``; then a pool and a head of 3 classes."""

    def __init__(
        self, steps: Callable[["Network", Tensor], Tensor], bias: bool = False, **norm: Any
    ) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)  # registered first, runs last
        self.conv = nn.Conv2d(3, 6, 3, bias=bias)
        self.norm = nn.BatchNorm2d(6, **norm)
        self.other = nn.BatchNorm2d(6)
        self.steps = steps
        randomize(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.steps(self, images).mean((2, 3)))  # type: ignore[no-any-return]


def normalised(net: Network, x: Tensor) -> Tensor:
    return net.norm(net.conv(x))  # type: ignore[no-any-return]


def activated_in_place(net: Network, x: Tensor) -> Tensor:
    return net.norm(torch.relu_(net.conv(x)))  # type: ignore[no-any-return]


def read_twice(net: Network, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) + torch.relu(y)  # type: ignore[no-any-return]


def normalised_twice(net: Network, x: Tensor) -> Tensor:
    y = net.conv(x)
    return torch.relu(net.norm(y)) + net.other(y)  # type: ignore[no-any-return]


def scores(module: nn.Module, px: int = 16) -> Tensor:
    images = torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return module(images)  # type: ignore[no-any-return]


@pytest.mark.parametrize("bias", [False, True])
def test_a_negative_scale_after_a_convolution_turns_positive_to_the_same_bits(bias: bool) -> None:
    module = Network(normalised, bias)
    base = Base.from_module(module, SMALL, "one")
    assert bool((module.norm.weight < 0).any())
    assert bool((base.module.get_submodule("norm").weight > 0).all())  # type: ignore[operator]
    # Rounding is symmetric in sign, so negating a row negates its sums exactly: no tolerance.
    assert torch.equal(scores(base.module), scores(module))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "shufflenet_v2_x0_5"])
def test_signs_turn_without_a_bit_of_difference_in_whole_networks(name: str) -> None:
    module = randomize(torchvision.models.get_model(name, weights=None))
    base = Base.from_module(module, Preprocessing(input_size=32), name)
    norms = [one for one in base.norms.values() if one]
    assert len(norms) > 15
    for path in norms:
        assert bool((base.module.get_submodule(path).weight >= 0).all()), path  # type: ignore[operator]
    assert torch.equal(scores(base.module, 32), scores(module, 32))


def test_a_norm_behind_an_activation_in_place_does_not_read_the_convolution() -> None:
    module = Network(activated_in_place)
    base = Base.from_module(module, SMALL, "one")
    assert base.norms == {"conv": None}
    assert torch.equal(scores(base.module), scores(module))
    sites = find_sites(base, PatchConfig())
    assert (sites.norms, sites.explicit) == (("norm",), ("conv",))


@pytest.mark.parametrize("steps", [read_twice, normalised_twice])
def test_a_sign_that_cannot_move_stays(steps: Callable[[Network, Tensor], Tensor]) -> None:
    module = Network(steps)
    base = Base.from_module(module, SMALL, "one")
    for path in ("norm", "other"):
        found, given = (one.get_submodule(path).weight for one in (base.module, module))
        assert torch.equal(found, given)  # type: ignore[arg-type]
    assert torch.equal(scores(base.module), scores(module))


def test_a_sign_that_cannot_move_keeps_no_other_from_moving() -> None:
    module = nn.Sequential(
        Network(read_twice).conv, *(Blocked() for _ in range(5)), nn.Flatten(), nn.Linear(1176, 3)
    )
    randomize(module)
    base = Base.from_module(module, SMALL, "blocks")
    negative = {
        path
        for path, one in base.module.named_modules()
        if isinstance(one, nn.BatchNorm2d) and bool((one.weight < 0).any())
    }
    # The first reads a convolution that the sum reads too, the others read sums.
    assert negative == {f"{k}.before" for k in range(1, 6)}
    # To the last bit: only whole rows changed their sign.
    assert torch.equal(scores(base.module), scores(module))


class Blocked(nn.Module):
    """A block of a pre-activation residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(6)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.after = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.conv(torch.relu(self.before(x))))  # type: ignore[no-any-return]


def test_the_head_is_the_layer_that_runs_last_whatever_was_registered_last() -> None:
    assert Base.from_module(Network(normalised), SMALL, "one").head_name == "head"


def test_a_head_that_is_no_layer_names_those_that_are() -> None:
    with pytest.raises(BaseError) as caught:
        Base.from_module(Network(normalised), SMALL, "one", head_name="norm")
    assert str(caught.value) == (
        "base 'one' has no Linear or Conv2d 'norm'; the head is its last layer; name one of conv, "
        "head"
    )


def test_layers_that_never_run_are_no_sites_of_a_patch() -> None:
    base = Base.from_module(Network(normalised), SMALL, "one")
    assert base.unused == ("other",)
    assert find_sites(base, PatchConfig()).norms == ("norm",)


def test_a_norm_without_statistics_and_one_without_scales() -> None:
    with pytest.raises(BaseError) as caught:
        Base.from_module(Network(normalised, track_running_stats=False), SMALL, "one")
    assert str(caught.value) == (
        "base 'one': normalisation 'norm' keeps no statistics (track_running_stats=False); folding "
        "needs mu and var; train it with them"
    )
    plain = Base.from_module(Network(normalised, affine=False), SMALL, "one")
    assert find_sites(plain, PatchConfig()).norms == ("norm",)


def test_a_network_that_gives_no_class_scores_is_refused() -> None:
    with pytest.raises(BaseError) as caught:
        Base.from_module(nn.Sequential(nn.Conv2d(3, 4, 1)), SMALL, "map")
    assert str(caught.value) == (
        "base 'map' gives float32 [1, 4, 16, 16] for one image; it must give class scores, "
        "float32 [1, classes]; wrap it in a module that does"
    )
    with pytest.raises(BaseError, match=r"fails on float32 \[1, 3, 16, 16\] \(.*by zero\)"):
        Base.from_module(Network(lambda net, x: x / (1 // 0)), SMALL, "broken")


@pytest.mark.parametrize("change", ["eps", "stride"])
def test_the_hash_tells_settings_that_no_tensor_shows(change: str) -> None:
    module = Network(normalised)
    before = Base.from_module(module, SMALL, "one").sha256
    assert Base.from_module(module, SMALL, "one").sha256 == before
    if change == "eps":
        module.norm.eps = 1e-3
    else:
        module.conv.stride = (2, 2)
    assert Base.from_module(module, SMALL, "one").sha256 != before


def test_transform_input_becomes_preprocessing_of_the_same_function() -> None:
    arguments: dict[str, Any] = {
        "transform_input": True,
        "aux_logits": False,
        "init_weights": False,
        "num_classes": 5,
    }
    settings = Preprocessing(
        (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 64, resize="crop", crop_fraction=0.875
    )
    base = Base.from_torchvision("googlenet", preprocessing=settings, **arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torchvision.models.get_model("googlenet", weights=None, **arguments).eval()
    imagenet = Base.from_torchvision("googlenet", **arguments).preprocessing
    assert (imagenet.mean, imagenet.std) == ((0.5,) * 3, (0.5,) * 3)  # TensorFlow's convention
    assert (base.preprocessing.resize, base.preprocessing.crop_fraction) == ("crop", 0.875)
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def normalise(how: Preprocessing) -> Tensor:
        mean, std = torch.tensor(how.mean), torch.tensor(how.std)
        return (pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)

    def first_input(network: nn.Module, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        first = network.get_submodule("conv1")
        handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            network(images)
        handle.remove()
        return seen[0]

    expected = first_input(module, normalise(settings))
    found = first_input(base.module, normalise(base.preprocessing))
    # Values below 4, four roundings on one way and two on the other: 6 * 4 * 2**-24 < 1.5e-6.
    torch.testing.assert_close(found, expected, rtol=0, atol=1.5e-6)
    assert float((normalise(settings) - expected).abs().max()) > 0.1  # it does something


def test_weights_that_cannot_be_downloaded_name_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nothing listens: refused at once
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(BaseError) as caught:
        Base.from_torchvision("squeezenet1_1", "DEFAULT")
    message = str(caught.value)
    assert message.startswith(
        "weights 'DEFAULT' of 'squeezenet1_1' cannot be downloaded or read (<urlopen error "
    )
    assert message.endswith(
        f"; they come from the network or from torch's cache, {tmp_path}/hub/checkpoints; put the "
        "whole file there, or use from_checkpoint"
    )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x80\x02}q\x00"])
def test_a_damaged_file_in_the_cache_is_a_base_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    name = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / name).write_bytes(content)
    with pytest.raises(BaseError, match="cannot be downloaded or read"):
        Base.from_torchvision("squeezenet1_1", "DEFAULT")


def test_a_checkpoint_without_batch_counters_fits(tmp_path: Path) -> None:
    module = Network(normalised)
    state = {k: v for k, v in module.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "weights.pt")
    empty = Network(normalised)
    with torch.no_grad():
        empty.conv.weight.zero_()
    base = Base.from_checkpoint(tmp_path / "weights.pt", empty, SMALL, "one")
    assert base.sha256 == Base.from_module(module, SMALL, "one").sha256
