"""Tasks attached to one shared base: attach, switch, merge, take off again.

In: a `Base` and patches. Out: a module that runs the active task. The base's tensors are never
copied or written; each task has tensors of its own, put in place for one forward pass by
``torch.func.functional_call``. That swaps them in and out of a module, so each model has a module
structure of its own over the base's tensors: two models over one base run in two threads without
disturbing each other or the base (one model belongs to one thread at a time). Parameter-efficient
fine-tuning users know the verbs: add, set active, merge, unmerge, save.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.errors import (
    AlreadyAttachedError,
    PatchError,
    UnknownLayerError,
    UnknownTaskError,
)
from patchdeploy.patch import Patch, PatchConfig, check_reach, recognise_patch
from patchdeploy.patch.forward import (
    reestimate_tensors,
    run_patched,
    run_structure,
    share_structure,
)
from patchdeploy.patch.tensors import (
    initial_tensors,
    merge_tensors,
    random_head,
    trained_names,
)

__all__ = [
    "PatchedModel",
    "attach_patch",
    "initial_tensors",
    "merge_tensors",
    "random_head",
    "reestimate_statistics",
    "run_patched",
    "trained_names",
]


class PatchedModel(nn.Module):
    """A base with any number of tasks attached; runs the active one.

    Input float32 [N, 3, H, W], normalised by ``base.preprocessing``; output [N, classes]. The base
    is always in evaluation mode. ``train()`` and ``eval()`` matter to a task whose statistics are
    "batch" alone: in training mode (torch's default) with gradients enabled, its normalisations
    use and learn the statistics of the batch; else those learned so far.

    Args:
        base: shared, never written.
        device: where the tasks run; elsewhere than on the CPU the base is copied there once.
    """

    def __init__(self, base: Base, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._device = torch.device(device)
        if self._device.type != "cpu":
            base = replace(base, module=copy.deepcopy(base.module).to(self._device))
        # In lists, so that they are no submodules: the base's tensors belong to no task, and
        # train() and eval() do not reach them.
        self._shared: list[Base] = [base]
        self._structure = [share_structure(base.module)]
        self._merged: list[nn.Module] = []
        self._tasks: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._configs: dict[str, PatchConfig] = {}
        self._classes: dict[str, tuple[str, ...]] = {}
        self._active: tuple[str, int] | None = None

    @property
    def base(self) -> Base:
        """The shared base."""
        return self._shared[0]

    @property
    def structure(self) -> nn.Module:
        """This model's own modules over the base's tensors; the place for a caller's hooks."""
        return self._structure[0]

    @property
    def device(self) -> torch.device:
        """Where the tasks run."""
        return self._device

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
            PatchError: other classes or another ``config`` than the task has at a resolution
                attached before, settings that would do nothing (`check_reach`), or a tensor that
                ``start`` lacks.
        """
        px = resolution or self.base.preprocessing.input_size
        self._check_free(task, px)
        config = config or self._configs.get(task, PatchConfig())
        self._check_same(task, classes, config)
        check_reach(self.base, config, len(classes))
        tensors = initial_tensors(self.base, config, len(classes))
        if start is not None:
            for key, value in tensors.items():
                if key not in start or start[key].shape != value.shape:
                    raise PatchError(
                        f"task {task!r}: start has no {key!r} of shape {list(value.shape)}; it "
                        "must hold what the patch owns; give another resolution's tensors"
                    )
            tensors = {key: start[key].detach().clone() for key in tensors}
        self._attach(task, px, config, classes, tensors)

    def load_patch(self, patch: Patch) -> None:
        """Attach every resolution of ``patch``.

        Raises:
            WrongBaseError: it was trained on another base.
            AlreadyAttachedError: the task is attached at one of its resolutions.
            UnknownLayerError: a tensor that the base has no site for.
            PatchError: a tensor is missing, or of another shape; nothing is attached then.
        """
        patch = recognise_patch(self.base, patch, "attach it to the base that it was trained on")
        self._check_same(patch.task, patch.classes, patch.config)
        for resolution in patch.resolutions:
            self._check_free(patch.task, resolution)
        for resolution in patch.resolutions:
            self._check_fit(patch, resolution)
        for resolution in patch.resolutions:
            tensors = patch.tensors(resolution)
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
            self._active = next(iter(self._tasks), None)
            self._merged.clear()
        if not any(name == task for name, _ in self._tasks):
            del self._configs[task], self._classes[task]

    def set_active_task(self, task: str, resolution: int | None = None) -> None:
        """Choose what `forward` runs; by default the task's first resolution.

        Raises:
            UnknownTaskError: it is not attached.
            PatchError: a task is merged; unmerge first.
        """
        if self._merged:
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
        name = task or self.active[0]
        if name not in self._configs:
            self._unknown(name, None)
        return self._configs[name]

    def classes(self, task: str | None = None) -> tuple[str, ...]:
        """A task's labels."""
        name = task or self.active[0]
        if name not in self._classes:
            self._unknown(name, None)
        return self._classes[name]

    def forward(self, images: Tensor) -> Any:
        """Class scores [N, classes] of the active task."""
        if self._merged:
            return self._merged[0](images)
        return run_structure(
            self.structure, self._tasks[self.active], images, self.config(), self.training
        )

    def merge(self) -> None:
        """Put the active task's tensors into one plain module, which `forward` then runs.

        Raises:
            PatchError: a task is merged already.
        """
        if self._merged:
            raise PatchError(f"task {self.active[0]!r} is merged already; unmerge it first")
        self._merged.append(merge_tensors(self.base, self._tasks[self.active]))

    def unmerge(self) -> None:
        """Undo `merge`. The base was never written, so this restores it to the last bit.

        Raises:
            PatchError: no task is merged.
        """
        if not self._merged:
            raise PatchError("no task is merged; merge one first")
        self._merged.clear()

    def merge_and_unload(self) -> nn.Module:
        """The active task as a plain module of the base's architecture, sharing nothing."""
        return merge_tensors(self.base, self._tasks[self.active])

    def to_patch(self, task: str | None = None, metrics: Mapping[str, Any] | None = None) -> Patch:
        """All resolutions of a task as a `Patch`."""
        name = task or self.active[0]
        variants = {
            px: {key: value.detach().cpu().numpy().copy() for key, value in tensors.items()}
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
        if not self._merged:
            self._active = (task, px)

    def _check_free(self, task: str, px: int) -> None:
        if (task, px) in self._tasks:
            raise AlreadyAttachedError(
                f"task {task!r} is attached at {px} px already; each pair is attached once; detach "
                "it first or choose another name"
            )

    def _check_same(self, task: str, classes: tuple[str, ...], config: PatchConfig) -> None:
        if task not in self._configs:
            return
        for what, old, new in (
            ("classes", self._classes[task], tuple(classes)),
            ("settings", self._configs[task], config),
        ):
            if old != new:
                raise PatchError(
                    f"task {task!r} is attached with {what} {old}, not {new}; every resolution of "
                    "a task has the same; choose another name or detach it first"
                )

    def _check_fit(self, patch: Patch, resolution: int) -> None:
        tensors = patch.tensors(resolution)
        known = initial_tensors(self.base, _everything(patch.config), len(patch.classes))
        strangers = sorted(set(tensors) - set(known))
        if strangers:
            raise UnknownLayerError(
                f"patch {patch.task!r} has tensor {strangers[0]!r}, which base "
                f"{self.base.name!r} has no site for; use the base that it was trained on"
            )
        needed = initial_tensors(self.base, patch.config, len(patch.classes))
        for key, value in (needed | {key: known[key] for key in tensors}).items():
            found = list(tensors[key].shape) if key in tensors else "missing"
            if found != list(value.shape):
                raise PatchError(
                    f"patch {patch.task!r} at {resolution} px: tensor {key!r} is {found}; base "
                    f"{self.base.name!r} needs {list(value.shape)}; save the patch again"
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


def reestimate_statistics(model: PatchedModel, batches: Iterable[Tensor]) -> int:
    """Set the active task's mu and var to those of ``batches``; see `reestimate_tensors`."""
    return reestimate_tensors(model.structure, model.tensors(), batches)


def _everything(config: PatchConfig) -> PatchConfig:
    return PatchConfig(("scale_bias", "depthwise", "head"), head_seed=config.head_seed)
