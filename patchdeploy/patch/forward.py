"""One forward pass with a task's tensors in place of the base's, which stay as they are.

In: a module structure over the base's tensors, a task's tensors, images. Out: class scores, or the
task's statistics learned with the batch or measured anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from patchdeploy.base import Base
from patchdeploy.patch.joined import normalizing_jointly
from patchdeploy.patch.tensors import (
    EXPLICIT_TENSORS,
    STATISTIC_TENSORS,
    explicit_paths,
    find_norm_paths,
    is_explicit,
)
from patchdeploy.patch.variants import PatchConfig


def share_structure(module: nn.Module) -> nn.Module:
    """A copy of the modules that holds the very same parameters and buffers."""
    shared = {id(one): one for one in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=dict(shared))


def run_patched(
    base: Base, tensors: Mapping[str, Tensor], images: Tensor, config: PatchConfig
) -> Any:
    """Forward pass of ``base.module`` with ``tensors`` in place, in evaluation mode."""
    return run_structure(share_structure(base.module), tensors, images, config, training=False)


def run_structure(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    images: Tensor,
    config: PatchConfig,
    training: bool,
) -> Any:
    """Forward pass of ``module``, a structure that nothing else runs meanwhile.

    Explicit scales and biases act on a convolution's output through hooks for this pass only.
    """
    own = {key: value for key, value in tensors.items() if not is_explicit(key)}
    if config.statistics != "batch" or not training or not torch.is_grad_enabled():
        return _call(module, own, tensors, images)
    paths = find_norm_paths(own)
    norms = [module.get_submodule(path) for path in paths]
    with _batch_statistics(module, paths), normalizing_jointly(norms):
        return _call(module, own | _counters(module, own), tensors, images)


def _call(
    module: nn.Module, own: dict[str, Tensor], tensors: Mapping[str, Tensor], images: Tensor
) -> Any:
    handles = _add_explicit_hooks(module, tensors)
    try:
        # Each site has tensors of its own, also where the base ties two, so nothing is tied here
        # (and looking for ties takes longer than the swap).
        return functional_call(module, own, (images,), tie_weights=False)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _batch_statistics(
    module: nn.Module, paths: Iterable[str], momentum: float | None = None
) -> Iterator[None]:
    """The normalisations at ``paths`` in training mode, with another momentum if one is given."""
    norms: list[Any] = [module.get_submodule(path) for path in paths]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.training = True  # not what is in it: dropout is off in every method
            norm.momentum = norm.momentum if momentum is None else momentum
        yield
    finally:
        for norm, before in zip(norms, momenta, strict=True):
            norm.training = False
            norm.momentum = before


@torch.no_grad()
def reestimate_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], batches: Iterable[Tensor]
) -> int:
    """Set mu and var among ``tensors`` to those of ``batches`` (float32 [N, 3, H, W], normalised).

    The mean over batches of each batch's mean and unbiased variance (paper, appendix B.1; torch's
    BatchNorm with momentum=None). What lies between the batches is lost, so each must be a random
    part of the whole: n images of it lose an n-th of the variance between images, a batch of one
    class all that lies between the classes. All batches count alike; give them one size. Returns
    the number of batches; with none nothing changes.
    """
    paths = find_norm_paths(tensors)
    if not paths:
        return 0
    own = {key: value for key, value in tensors.items() if not is_explicit(key)}
    sums: dict[str, Tensor] = {}
    count = 0
    for images in batches:
        fresh = {k: v.clone() for k, v in own.items() if k.rpartition(".")[2] in STATISTIC_TENSORS}
        # With momentum 1 the running value becomes this batch's.
        with _batch_statistics(module, paths, momentum=1.0):
            _call(module, own | fresh | _counters(module, own), tensors, images)
        for key, value in fresh.items():
            sums[key] = sums[key] + value if key in sums else value
        count += 1
    for key, total in sums.items():
        tensors[key].copy_(total / count)
    return count


def _counters(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the normalisations' batch counters: in training mode torch counts in place, and
    the base's are not to be written."""
    counters = {}
    for path in find_norm_paths(tensors):
        counter = module.get_submodule(path).num_batches_tracked
        if isinstance(counter, Tensor):
            counters[f"{path}.num_batches_tracked"] = counter.clone()
    return counters


def _add_explicit_hooks(module: nn.Module, tensors: Mapping[str, Tensor]) -> list[Any]:
    handles = []
    for path in explicit_paths(tensors):
        scale, bias = (tensors[f"{path}.{name}"] for name in EXPLICIT_TENSORS)

        def hook(
            _: nn.Module, __: Any, output: Tensor, scale: Tensor = scale, bias: Tensor = bias
        ) -> Tensor:
            return output * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)

        handles.append(module.get_submodule(path).register_forward_hook(hook))
    return handles
