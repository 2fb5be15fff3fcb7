"""The tensors of one task at one resolution, by state-dict name: fresh, trained, merged.

In: a base and what a patch owns. Out: tensors to begin from, the names that gradients reach, and
a plain module with a patch's tensors in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.patch.variants import NORM_TENSORS, PatchConfig, find_sites

STATISTIC_TENSORS = ("running_mean", "running_var")
EXPLICIT_TENSORS = ("patch_scale", "patch_bias")


def initial_tensors(base: Base, config: PatchConfig, classes: int) -> dict[str, Tensor]:
    """Fresh tensors of a patch: the base's values, explicit scale 1 and bias 0, a random head."""
    sites = find_sites(base, config)
    state = base.module.state_dict()
    keys = [f"{path}.{name}" for path in sites.norms for name in NORM_TENSORS]
    keys += [f"{path}.weight" for path in sites.depthwise]
    tensors = {key: state[key].clone() for key in keys}
    for path in sites.explicit:
        channels = base.module.get_submodule(path).out_channels
        assert isinstance(channels, int)
        tensors[f"{path}.patch_scale"] = torch.ones(channels)
        tensors[f"{path}.patch_bias"] = torch.zeros(channels)
    return tensors | random_head(base, classes, config.head_seed)


def random_head(base: Base, classes: int, seed: int) -> dict[str, Tensor]:
    """A new last layer: weights from N(0, 0.01), bias 0 (torchvision's MobileNetV2 head)."""
    layer = base.module.get_submodule(base.head_name)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    # torch.randn on the CPU: the same start on every device.
    generator = torch.Generator().manual_seed(seed)
    shape = (classes, *weight.shape[1:])
    head = {f"{base.head_name}.weight": 0.01 * torch.randn(shape, generator=generator)}
    if layer.bias is not None:
        head[f"{base.head_name}.bias"] = torch.zeros(classes)
    return head


def trained_names(base: Base, config: PatchConfig) -> frozenset[str]:
    """Names of the tensors that gradients reach (statistics and an untrained head are not)."""
    sites = find_sites(base, config)
    norms = sites.norms if "scale_bias" in config.kinds else ()
    names = [f"{path}.{name}" for path in norms for name in ("weight", "bias")]
    names += [f"{path}.{name}" for path in sites.explicit for name in ("patch_scale", "patch_bias")]
    names += [f"{path}.weight" for path in sites.depthwise]
    if sites.head is not None:
        names += [f"{sites.head}.weight", f"{sites.head}.bias"]
    return frozenset(names)


def find_norm_paths(tensors: Mapping[str, Tensor]) -> list[str]:
    """Module paths of the normalisations whose statistics are among ``tensors``."""
    return [key.removesuffix(".running_mean") for key in tensors if key.endswith(".running_mean")]


def explicit_paths(tensors: Mapping[str, Tensor]) -> list[str]:
    """Module paths of the convolutions with an explicit scale and bias among ``tensors``."""
    return [key.removesuffix(".patch_scale") for key in tensors if key.endswith(".patch_scale")]


def is_explicit(key: str) -> bool:
    """An explicit scale or bias, which is no tensor of the base's own."""
    return key.rpartition(".")[2] in EXPLICIT_TENSORS


def merge_tensors(base: Base, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``base.module`` with ``tensors`` in it, explicit scales folded into kernels."""
    module = copy.deepcopy(base.module)
    modules: dict[str, Any] = dict(module.named_modules())
    for key, value in tensors.items():
        path, _, name = key.rpartition(".")
        if name in STATISTIC_TENSORS:
            setattr(modules[path], name, value.detach().clone())
        elif not is_explicit(key):
            setattr(modules[path], name, _frozen(value))
    # After the kernels, whatever the order in the file: a depthwise kernel may be the patch's own.
    for path in explicit_paths(tensors):
        layer = modules[path]
        scale, bias = (tensors[f"{path}.{name}"].detach() for name in EXPLICIT_TENSORS)
        old = layer.bias if layer.bias is not None else torch.zeros_like(bias)
        layer.weight = _frozen(layer.weight * scale.reshape(-1, 1, 1, 1))
        layer.bias = _frozen(old * scale + bias)
    head: Any = modules[base.head_name]
    for attribute in ("out_features", "out_channels"):
        if hasattr(head, attribute):
            setattr(head, attribute, head.weight.shape[0])
    return module


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
