"""Tasks attached to one shared base: attach, switch, merge, take off again.

In: a `Base` and patches. Out: a module that runs the active task. The base's tensors are never
copied or written; each task has tensors of its own, put in place for one forward pass by
``torch.func.functional_call``. Parameter-efficient fine-tuning users know the verbs: add, set
active, merge, unmerge, save.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from patchdeploy.base import Base
from patchdeploy.errors import (
    AlreadyAttachedError,
    PatchError,
    UnknownLayerError,
    UnknownTaskError,
    WrongBaseError,
)
from patchdeploy.patch import NORM_TENSORS, Patch, PatchConfig, find_sites


class PatchedModel(nn.Module):
    """A base with any number of tasks attached; runs the active one.

    Input float32 [N, 3, H, W], normalised by ``base.preprocessing``; output [N, classes].

    Args:
        base: shared, never written.
        device: where the tasks run; elsewhere than on the CPU the base is copied there once.
    """

    def __init__(self, base: Base, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._device = torch.device(device)
        if self._device.type != "cpu":
            base = replace(base, module=copy.deepcopy(base.module).to(self._device))
        # Not a submodule: the base is shared, and its tensors belong to no task.
        self._shared: list[Any] = [base]
        self._tasks: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._configs: dict[str, PatchConfig] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self._active: tuple[str, int] | None = None
        self._merged: nn.Module | None = None

    @property
    def base(self) -> Base:
        """The shared base."""
        base = self._shared[0]
        assert isinstance(base, Base)
        return base

    @property
    def tasks(self) -> tuple[tuple[str, int], ...]:
        """Attached (task, resolution) pairs."""
        return tuple(self._tasks)

    @property
    def active(self) -> tuple[str, int]:
        """The (task, resolution) that `forward` runs.

        Raises:
            UnknownTaskError: nothing is attached.
        """
        if self._active is None:
            raise UnknownTaskError("no task is attached; attach one with add_task or load_patch")
        return self._active

    def add_task(
        self,
        task: str,
        classes: tuple[str, ...],
        config: PatchConfig | None = None,
        resolution: int | None = None,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Attach a new task at the base's values, with a random head, and make it active.

        Args:
            resolution: in pixels; by default the base's own.
            start: tensors to begin from instead, for instance another resolution's.

        Raises:
            AlreadyAttachedError: the task is attached at this resolution.
            UnknownLayerError: a pattern of ``config`` selects nothing.
        """
        px = resolution or self.base.preprocessing.input_size
        self._check_free(task, px)
        config = self._configs.get(task, config or PatchConfig())
        tensors = initial_tensors(self.base, config, len(classes))
        if start is not None:
            tensors = {key: start[key].detach().clone() for key in tensors}
        self._attach(task, px, config, classes, tensors)

    def load_patch(self, patch: Patch) -> None:
        """Attach every resolution of ``patch``.

        Raises:
            WrongBaseError: it was trained on another base.
            AlreadyAttachedError: the task is attached at one of its resolutions.
        """
        if patch.base_sha256 != self.base.sha256:
            raise WrongBaseError(
                f"patch {patch.task!r} was trained on base {patch.base_sha256[:16]}, this base is "
                f"{self.base.sha256[:16]}; attach it to the base that it was trained on"
            )
        for resolution in patch.resolutions:
            self._check_free(patch.task, resolution)
        known = set(initial_tensors(self.base, _everything(patch.config), len(patch.classes)))
        for resolution in patch.resolutions:
            tensors = patch.tensors(resolution)
            strangers = sorted(set(tensors) - known)
            if strangers:
                raise UnknownLayerError(
                    f"patch {patch.task!r} has tensor {strangers[0]!r}, which base "
                    f"{self.base.name!r} has no site for; use the base that it was trained on"
                )
            values = {key: torch.tensor(value) for key, value in tensors.items()}
            self._attach(patch.task, resolution, patch.config, patch.classes, values)

    def detach_task(self, task: str, resolution: int | None = None) -> None:
        """Take a task off, at one resolution or at all.

        Raises:
            UnknownTaskError: it is not attached.
        """
        gone = [key for key in self._tasks if key[0] == task and resolution in (None, key[1])]
        if not gone:
            self._unknown(task, resolution)
        for key in gone:
            del self._tasks[key]
        if self._active in gone:
            self._active, self._merged = next(iter(self._tasks), None), None
        if not any(name == task for name, _ in self._tasks):
            del self._configs[task], self._classes[task]

    def set_active_task(self, task: str, resolution: int | None = None) -> None:
        """Choose what `forward` runs; by default the task's first resolution.

        Raises:
            UnknownTaskError: it is not attached.
            PatchError: a task is merged; unmerge first.
        """
        if self._merged is not None:
            raise PatchError(
                f"task {self.active[0]!r} is merged; a merged model runs one task; unmerge first"
            )
        for key in self._tasks:
            if key[0] == task and resolution in (None, key[1]):
                self._active = key
                return
        self._unknown(task, resolution)

    def tensors(self, task: str | None = None, resolution: int | None = None) -> dict[str, Tensor]:
        """The tensors of a task, by default the active one's; gradients reach the trained ones."""
        key = self.active if task is None else (task, resolution or self._first(task))
        if key not in self._tasks:
            self._unknown(*key)
        return self._tasks[key]

    def config(self, task: str | None = None) -> PatchConfig:
        """What a task owns."""
        return self._configs[task or self.active[0]]

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        """A task's labels."""
        return self._classes[task or self.active[0]]

    def forward(self, images: Tensor) -> Any:
        """Class scores [N, classes] of the active task."""
        if self._merged is not None:
            return self._merged(images)
        return run_patched(self.base, self._tasks[self.active], images, self.config())

    def merge(self) -> None:
        """Put the active task's tensors into one plain module, which `forward` then runs.

        Raises:
            PatchError: a task is merged already.
        """
        if self._merged is not None:
            raise PatchError(f"task {self.active[0]!r} is merged already; unmerge it first")
        self._merged = merge_tensors(self.base, self._tasks[self.active])

    def unmerge(self) -> None:
        """Undo `merge`. The base was never written, so this restores it to the last bit.

        Raises:
            PatchError: no task is merged.
        """
        if self._merged is None:
            raise PatchError("no task is merged; merge one first")
        self._merged = None

    def merge_and_unload(self) -> nn.Module:
        """The active task as a plain module of the base's architecture, sharing nothing."""
        return merge_tensors(self.base, self._tasks[self.active])

    def to_patch(self, task: str | None = None, metrics: Mapping[str, Any] | None = None) -> Patch:
        """All resolutions of a task as a `Patch`."""
        name = task or self.active[0]
        variants = {
            px: {key: np.array(value.detach().cpu()) for key, value in tensors.items()}
            for (owner, px), tensors in self._tasks.items()
            if owner == name
        }
        if not variants:
            self._unknown(name, None)
        return Patch(
            name,
            self.base.sha256,
            self._configs[name],
            self._classes[name],
            variants,
            dict(metrics or {}),
        )

    def _attach(
        self,
        task: str,
        px: int,
        config: PatchConfig,
        classes: tuple[str, ...],
        tensors: dict[str, Tensor],
    ) -> None:
        trained = trained_names(self.base, config)
        placed = {key: value.to(self._device) for key, value in tensors.items()}
        for key, value in placed.items():
            value.requires_grad_(key in trained)
        self._tasks[(task, px)] = placed
        self._configs[task], self._classes[task] = config, classes
        if self._merged is None:
            self._active = (task, px)

    def _check_free(self, task: str, px: int) -> None:
        if (task, px) in self._tasks:
            raise AlreadyAttachedError(
                f"task {task!r} is attached at {px} px already; each pair is attached once; detach "
                "it first or choose another name"
            )

    def _first(self, task: str) -> int:
        return next((px for name, px in self._tasks if name == task), 0)

    def _unknown(self, task: str, resolution: int | None) -> None:
        attached = ", ".join(f"{name} at {px} px" for name, px in self._tasks) or "none"
        where = f" at {resolution} px" if resolution else ""
        raise UnknownTaskError(
            f"task {task!r}{where} is not attached; attached: {attached}; add or load it first"
        )


def attach_patch(
    base: Base,
    config: PatchConfig,
    task: str,
    classes: tuple[str, ...],
    resolution: int | None = None,
) -> PatchedModel:
    """A model over ``base`` with one new task; see `PatchedModel.add_task`."""
    model = PatchedModel(base)
    model.add_task(task, classes, config, resolution)
    return model


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
    names = [f"{path}.{name}" for path in sites.norms for name in ("weight", "bias")]
    names += [f"{path}.{name}" for path in sites.explicit for name in ("patch_scale", "patch_bias")]
    names += [f"{path}.weight" for path in sites.depthwise]
    if sites.head is not None:
        names += [f"{sites.head}.weight", f"{sites.head}.bias"]
    return frozenset(names)


def run_patched(
    base: Base, tensors: Mapping[str, Tensor], images: Tensor, config: PatchConfig
) -> Any:
    """Forward pass of ``base.module`` with ``tensors`` in place.

    Explicit scales and biases act on a convolution's output through hooks for this pass only.
    """
    own = {key: value for key, value in tensors.items() if not _is_explicit(key)}
    handles = _add_explicit_hooks(base, tensors)
    batch = config.statistics == "batch" and torch.is_grad_enabled()
    norms = [base.module.get_submodule(p) for p in find_norm_paths(own)] if batch else []
    try:
        for norm in norms:
            norm.train()
        return functional_call(base.module, own, (images,))
    finally:
        for norm in norms:
            norm.eval()
        for handle in handles:
            handle.remove()


def find_norm_paths(tensors: Mapping[str, Tensor]) -> list[str]:
    """Module paths of the normalisations whose statistics are among ``tensors``."""
    return [key.removesuffix(".running_mean") for key in tensors if key.endswith(".running_mean")]


@torch.no_grad()
def reestimate_statistics(model: PatchedModel, batches: Iterable[Tensor]) -> int:
    """Set the active task's mu and var to those of ``batches`` (float32 [N, 3, H, W], normalised).

    The mean over batches of each batch's mean and unbiased variance (paper, appendix B.1; torch's
    BatchNorm with momentum=None). Returns the number of batches; with none nothing changes.
    """
    tensors = model.tensors()
    paths = find_norm_paths(tensors)
    norms: list[Any] = [model.base.module.get_submodule(path) for path in paths]
    own = {key: value for key, value in tensors.items() if not _is_explicit(key)}
    sums: dict[str, Tensor] = {}
    count = 0
    for images in batches:
        handles = _add_explicit_hooks(model.base, tensors)
        fresh = {
            k: v.clone() for k, v in own.items() if k.endswith(("running_mean", "running_var"))
        }
        momenta = [norm.momentum for norm in norms]
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # the running value becomes this batch's
            functional_call(model.base.module, {**own, **fresh}, (images,))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.eval()
                norm.momentum = momentum
            for handle in handles:
                handle.remove()
        for key, value in fresh.items():
            sums[key] = sums[key] + value if key in sums else value.clone()
        count += 1
    for key, total in sums.items():
        tensors[key].copy_(total / count)
    return count


def merge_tensors(base: Base, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``base.module`` with ``tensors`` in it, explicit scales folded into kernels."""
    module = copy.deepcopy(base.module)
    modules = dict(module.named_modules())
    for key, value in tensors.items():
        path, _, name = key.rpartition(".")
        layer: Any = modules[path]
        if name == "patch_scale":
            scale, bias = value.detach(), tensors[f"{path}.patch_bias"].detach()
            old = layer.bias if layer.bias is not None else torch.zeros_like(bias)
            layer.weight = _frozen(layer.weight * scale.reshape(-1, 1, 1, 1))
            layer.bias = _frozen(old * scale + bias)
        elif name in ("running_mean", "running_var"):
            setattr(layer, name, value.detach().clone())
        elif name != "patch_bias":
            setattr(layer, name, _frozen(value))
    head: Any = modules[base.head_name]
    for attribute in ("out_features", "out_channels"):
        if hasattr(head, attribute):
            setattr(head, attribute, head.weight.shape[0])
    return module


def _frozen(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)


def _is_explicit(key: str) -> bool:
    return key.endswith((".patch_scale", ".patch_bias"))


def _add_explicit_hooks(base: Base, tensors: Mapping[str, Tensor]) -> list[Any]:
    handles = []
    for key, scale in tensors.items():
        if not key.endswith(".patch_scale"):
            continue
        path = key.removesuffix(".patch_scale")
        bias = tensors[f"{path}.patch_bias"]

        def hook(
            _: nn.Module, __: Any, output: Tensor, scale: Tensor = scale, bias: Tensor = bias
        ) -> Tensor:
            return output * scale.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)

        handles.append(base.module.get_submodule(path).register_forward_hook(hook))
    return handles


def _everything(config: PatchConfig) -> PatchConfig:
    return PatchConfig(("scale_bias", "depthwise", "head"), head_seed=config.head_seed)
