"""Several tasks or resolutions over one network whose weights they share and train together.

In: a base, and what each member owns. Out: tensors by state-dict name, shared ones and each
member's own, a forward pass for each member, and at the end a new `Base` with a `Patch` a task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdeploy.base import Base
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patch.forward import run_structure, share_structure
from patchdeploy.patch.reach import check_classes
from patchdeploy.patch.tensors import (
    STATISTIC_TENSORS,
    initial_tensors,
    is_explicit,
    trained_names,
)
from patchdeploy.training.config import Scope
from patchdeploy.training.optimizer import choose_scope
from patchdeploy.training.preparation import scale_floors

SHARED, PRIVATE = "shared", "private"
"""How the names of a run's tensors begin; a task may have any name of its own after it."""


@dataclass(frozen=True)
class Member:
    """One task, or one resolution of a task, of a joint run.

    Attributes:
        name: its source's.
        classes: how many.
        config: what it owns; all members have the same statistics.
    """

    name: str
    classes: int
    config: PatchConfig


@dataclass(frozen=True)
class JointModel:
    """The network of a joint run.

    Attributes:
        base: where it began.
        structure: modules over the base's tensors, which every call replaces.
        device: where all tensors are.
        shared: what all members read, by state-dict name.
        learned: names in ``shared`` that gradients reach.
        private: each member's own tensors, by its name.
        members: by name.
        run: `run_structure`, or its compiled form.
    """

    base: Base
    structure: nn.Module
    device: torch.device
    shared: Mapping[str, Tensor]
    learned: frozenset[str]
    private: Mapping[str, Mapping[str, Tensor]]
    members: Mapping[str, Member]
    run: Callable[..., Any] = run_structure

    def forward(self, name: str, images: Tensor) -> Any:
        """Scores [N, classes] of member ``name``; batch statistics while gradients are on."""
        tensors = {**self.shared, **self.private[name]}
        config = self.members[name].config
        return self.run(self.structure, tensors, images, config, training=True)

    def groups(self) -> dict[Scope, dict[str, Tensor]]:
        """What gradients reach, by the rate that suits it.

        Weights of the base have one, what is each member's own another. A head begins at random,
        so it learns like the private ones also where all members share it. Over a frozen base
        everything is a patch.
        """
        head = f"{self.base.head_name}."
        shared: dict[str, Tensor] = {}
        private: dict[str, Tensor] = {}
        for key in sorted(self.learned):
            group = private if key.startswith(head) else shared
            group[f"{SHARED}/{key}"] = self.shared[key]
        for name, tensors in self.private.items():
            private |= {f"{PRIVATE}/{name}/{key}": tensors[key] for key in self._own(name)}
        if not shared:
            return {choose_scope(self.base, "patch"): private}
        return {"shared": shared, "private": private} if private else {"shared": shared}

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the run, by its owner and name."""
        kept = {f"{SHARED}/{key}": value for key, value in self.shared.items()}
        for name, tensors in self.private.items():
            kept |= {f"{PRIVATE}/{name}/{key}": value for key, value in tensors.items()}
        return kept

    def floors(self) -> dict[str, Tensor]:
        """Bounds of all trained scales, by state name."""
        shared = {key: self.shared[key] for key in self.learned}
        made = {f"{SHARED}/{key}": one for key, one in scale_floors(self.base, shared).items()}
        for name, tensors in self.private.items():
            floors = scale_floors(self.base, {key: tensors[key] for key in self._own(name)})
            made |= {f"{PRIVATE}/{name}/{key}": one for key, one in floors.items()}
        return made

    def _own(self, name: str) -> list[str]:
        """What gradients reach of member ``name``'s own tensors."""
        names = trained_names(self.base, self.members[name].config)
        return sorted(names & set(self.private[name]))

    def owners(self) -> dict[str, int]:
        """The source that each private tensor belongs to."""
        return {
            f"{PRIVATE}/{name}/{key}": source
            for source, (name, tensors) in enumerate(self.private.items())
            for key in tensors
        }

    def make_base(self, name: str) -> Base:
        """A base with the shared weights. A tensor that every member has of its own is the mean
        of theirs, so that each patch is a small step from it.
        """
        module = copy.deepcopy(self.base.module)
        state = dict(module.state_dict())
        for key, value in {**self._means(), **self.shared}.items():
            if key in state and state[key].shape == value.shape:
                state[key] = value.detach().cpu()
        module.load_state_dict(state)
        return Base.from_module(module, self.base.preprocessing, name, self.base.head_name)

    def _means(self) -> dict[str, Tensor]:
        first, *others = self.private.values()
        head = f"{self.base.head_name}."
        names = [key for key in first if not key.startswith(head) and not is_explicit(key)]
        return {
            key: torch.stack([first[key], *(other[key] for other in others)]).mean(0)
            for key in names
            if all(key in other for other in others)
        }

    def make_patch(
        self,
        base: Base,
        task: str,
        classes: tuple[str, ...],
        variants: Mapping[int, str],
        config: PatchConfig,
        metrics: Mapping[str, Any],
    ) -> Patch:
        """The patch of ``task`` over ``base``: ``variants`` names the member at each resolution.

        The head is always in it, whoever trained it.
        """
        head = {
            key: value
            for key, value in self.shared.items()
            if key.startswith(f"{self.base.head_name}.")
        }
        arrays = {}
        for px, name in variants.items():
            tensors = {**head, **self.private[name]}
            arrays[px] = {
                key: np.array(value.detach().cpu().numpy()) for key, value in tensors.items()
            }
        return Patch(task, base.sha256, config, classes, arrays, dict(metrics))


def make_joint(
    base: Base,
    members: Sequence[Member],
    device: torch.device,
    *,
    shared_head: Mapping[str, Tensor] | None = None,
    learn_shared: bool = True,
    run: Callable[..., Any] = run_structure,
) -> JointModel:
    """The network of a joint run, at the base's values.

    Args:
        shared_head: a head that all members share (resolutions of one task); it learns.
        learn_shared: train every weight that no member owns; else the base stays frozen and the
            shared head alone is trained beside the members' own.
    """
    for classes in {one.classes for one in members}:
        check_classes(base, classes)
    batch = members[0].config.statistics == "batch"
    shared: dict[str, Tensor] = {}
    learned: set[str] = set()
    head = f"{base.head_name}."
    if learn_shared:
        weights = {
            key
            for key, _ in base.module.named_parameters()
            if not key.startswith(head) and key.rpartition(".")[0] not in base.unused
        }
        statistics = {
            key
            for key, _ in base.module.named_buffers()
            if batch and key.rpartition(".")[2] in STATISTIC_TENSORS
        }
        state = base.module.state_dict()
        shared = {key: _placed(state[key], device) for key in sorted(weights | statistics)}
        learned = set(weights)
    if shared_head is not None:
        shared |= {key: _placed(value, device) for key, value in shared_head.items()}
        learned |= set(shared_head)
    private = {one.name: _own(base, one, device, shared_head is not None) for one in members}
    everywhere = set.intersection(*(set(tensors) for tensors in private.values()))
    shared = {key: value for key, value in shared.items() if key not in everywhere}
    learned &= set(shared)
    model = JointModel(
        base,
        share_structure(copy.deepcopy(base.module).to(device)),
        device,
        shared,
        frozenset(learned),
        private,
        {one.name: one for one in members},
        run,
    )
    for group in model.groups().values():
        for value in group.values():
            value.requires_grad_(True)
    return model


def _own(
    base: Base, member: Member, device: torch.device, head_is_shared: bool
) -> dict[str, Tensor]:
    tensors = initial_tensors(base, member.config, member.classes)
    head = f"{base.head_name}."
    return {
        key: _placed(value, device)
        for key, value in tensors.items()
        if not (head_is_shared and key.startswith(head))
    }


def _placed(value: Tensor, device: torch.device) -> Tensor:
    return value.detach().clone().to(device)
