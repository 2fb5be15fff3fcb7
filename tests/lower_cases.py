"""Networks that lowering, folding and shape inference are tried on: one table for all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray

from patchdeploy.data import Preprocessing
from patchdeploy.graph import Graph
from patchdeploy.lower import lower_base

EXACT = Preprocessing(mean=(128 / 255,) * 3, std=(128 / 255,) * 3)
"""255 mean = 128 and 255 std = 128: offset and kernel division are exact in float32, so that
the folded and the unfolded network differ by the rounding of their own arithmetic alone."""

CLASSES = 10


@dataclass(frozen=True)
class BaseUnderTest:
    """What lowering reads of a base."""

    module: torch.nn.Module
    preprocessing: Preprocessing
    head_name: str
    name: str = "base"
    sha256: str = "0" * 64
    tensors_sha256: str = "0" * 64


@dataclass(frozen=True)
class NetworkCase:
    """A torchvision network, the size at which it is traced, and an odd one where it is run."""

    build: Callable[[], torch.nn.Module]
    head: str
    traced_px: int = 64
    run_px: int = 75
    preprocessing: Preprocessing = EXACT


def _torchvision(name: str, **settings: object) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(torchvision.models, name)(weights=None, num_classes=CLASSES, **settings)


def _mobilenet(width: float) -> NetworkCase:
    return NetworkCase(_torchvision("mobilenet_v2", width_mult=width), "classifier.1")


def _inception(**settings: object) -> NetworkCase:
    build = _torchvision("inception_v3", aux_logits=False, init_weights=False, **settings)
    return NetworkCase(build, "fc", traced_px=96, run_px=83)


NETWORKS: dict[str, NetworkCase] = {
    "mobilenet_v2_0.35": _mobilenet(0.35),
    "mobilenet_v2_0.5": _mobilenet(0.5),
    "mobilenet_v2_0.75": _mobilenet(0.75),
    "mobilenet_v2_1.0": _mobilenet(1.0),
    "mobilenet_v2_1.4": _mobilenet(1.4),
    "mobilenet_v3_small": NetworkCase(_torchvision("mobilenet_v3_small"), "classifier.3"),
    "resnet18": NetworkCase(_torchvision("resnet18"), "fc"),
    "resnet50": NetworkCase(_torchvision("resnet50"), "fc"),
    "shufflenet_v2_x1_0": NetworkCase(_torchvision("shufflenet_v2_x1_0"), "fc"),
    "squeezenet1_1": NetworkCase(_torchvision("squeezenet1_1"), "classifier.1"),
    "inception_v3": _inception(),
    "inception_v3_transform_input": _inception(transform_input=True),
    "densenet121": NetworkCase(_torchvision("densenet121"), "classifier", run_px=71),
    "efficientnet_b0": NetworkCase(_torchvision("efficientnet_b0"), "classifier.1"),
    "mnasnet1_0": NetworkCase(_torchvision("mnasnet1_0"), "classifier.1"),
    "regnet_x_400mf": NetworkCase(_torchvision("regnet_x_400mf"), "fc"),
    "googlenet": NetworkCase(_torchvision("googlenet", aux_logits=False, init_weights=False), "fc"),
}


def settle_statistics(module: torch.nn.Module, px: int) -> None:
    """Set running statistics to those of noise images: signals then neither die nor grow."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn(4, 3, px, px))
    module.eval()


@cache
def network(name: str) -> BaseUnderTest:
    """The case's network with seeded weights, in eval mode; callers leave it unchanged."""
    case = NETWORKS[name]
    torch.manual_seed(7)
    module = case.build()
    settle_statistics(module, case.traced_px)
    return BaseUnderTest(module, case.preprocessing, case.head, name)


@cache
def lowered(name: str) -> Graph:
    """The case's graph, lowered once per process."""
    return lower_base(network(name), [NETWORKS[name].traced_px])


def perturbed_patch(module: torch.nn.Module, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    """A patch far from the identity: every normalisation and every depthwise kernel.

    Gammas lie in +-[0.5, 1.5], one in eight is negative and one per layer is 1e-6 of that. A
    network without normalisations gets an explicit scale and bias for every convolution.
    """
    random = np.random.default_rng(seed)
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            size = layer.num_features
            gamma = random.uniform(0.5, 1.5, size) * np.where(random.random(size) < 0.125, -1, 1)
            gamma[random.integers(size)] *= 1e-6
            mean, var = layer.running_mean.numpy(), layer.running_var.numpy()
            tensors |= {
                f"{name}.weight": gamma,
                f"{name}.bias": random.normal(0.0, 0.3, size),
                f"{name}.running_mean": mean + 0.2 * np.sqrt(var) * random.normal(size=size),
                f"{name}.running_var": var * random.uniform(0.5, 1.5, size),
            }
        elif isinstance(layer, torch.nn.Conv2d) and layer.groups == layer.in_channels > 1:
            kernel = layer.weight.detach().numpy()
            tensors[f"{name}.weight"] = kernel * random.uniform(0.5, 1.5, kernel.shape)
    if not any(name.endswith("running_mean") for name in tensors):
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Conv2d):
                tensors[f"{name}.patch_scale"] = random.uniform(0.5, 1.5, layer.out_channels)
                tensors[f"{name}.patch_bias"] = random.normal(0.0, 0.1, layer.out_channels)
    return {name: np.asarray(values, np.float32) for name, values in tensors.items()}


def unfolded_logits(
    base: BaseUnderTest, patch: dict[str, NDArray[np.float32]], images: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Float64 logits of the torch module itself with ``patch`` in place of its own tensors."""
    state = {name: value.double() for name, value in base.module.state_dict().items()}
    explicit = {key.rpartition(".")[0] for key in patch if key.endswith(".patch_scale")}
    for name, values in patch.items():
        if name in state:
            state[name] = torch.from_numpy(values).double()
    for site in explicit:
        scale = torch.from_numpy(patch[f"{site}.patch_scale"]).double()
        state[f"{site}.weight"] *= scale.reshape(-1, 1, 1, 1)
        bias = torch.from_numpy(patch[f"{site}.patch_bias"]).double()
        state[f"{site}.bias"] = state[f"{site}.bias"] * scale + bias
    with torch.no_grad():
        inputs = normalised(base.preprocessing, images)
        logits = torch.func.functional_call(base.module, state, (inputs,))
    return logits.flatten(1).numpy()


def normalised(preprocessing: Preprocessing, images: NDArray[np.uint8]) -> torch.Tensor:
    """(pixel / 255 - mean) / std in the network's channel order, float64 [N, 3, H, W]."""
    pixels = torch.from_numpy(images).double().permute(0, 3, 1, 2)
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(1)
    mean = torch.tensor(preprocessing.mean, dtype=torch.float64).reshape(3, 1, 1)
    std = torch.tensor(preprocessing.std, dtype=torch.float64).reshape(3, 1, 1)
    return (pixels / 255.0 - mean) / std


def noise_images(count: int, height: int, width: int, seed: int = 3) -> NDArray[np.uint8]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
