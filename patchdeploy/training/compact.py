"""Training a patch that codes small: its forward pass rounds as the coder does, and the loss
counts what the deltas cost.

In: the tensors that a task trains, and a step. Out: the tensors that its forward pass uses, and a
term for its loss. Rounding is straight-through: gradients pass as if it were not there (Bengio et
al. 2013, arXiv 1308.3432). The count is lambda * mean log2(1 + |delta| / step), a smooth stand-in
for the bits of an integer whose size is not known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.patch.forward import run_structure
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training.compact_code import (
    OCTAVE_BITS,
    CodedPatch,
    Steps,
    code_patch,
    coded_bytes,
    count_scale_steps,
    count_steps,
    decode_scales,
    decode_values,
    is_scale,
    part_of,
    reference_of,
    round_patch,
    uniform_steps,
)
from patchdeploy.training.config import TrainConfig

__all__ = (
    "CodedPatch",
    "Compact",
    "Steps",
    "code_patch",
    "coded_bytes",
    "compact_forward",
    "make_compact",
    "round_patch",
    "training_steps",
    "uniform_steps",
)

PENALTY_STEP = 0.125
"""The step that a size penalty counts in where nothing is rounded while training."""
TINY = 1e-12
"""Added to both scales of a ratio, so that a scale of 0 has a logarithm."""


@dataclass(frozen=True)
class _Group:
    """Tensors of one kind in one flat vector, so that a step costs a few operations in all.

    Attributes:
        names, sizes: the tensors in order, and how many values each has.
        reference: float32 [n], what they are coded against.
        step: for scales int64 [n] exponents k, else float64 [n] steps 2^e.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    reference: Tensor
    step: Tensor

    def gather(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([tensors[name].reshape(-1) for name in self.names])


@dataclass(frozen=True)
class Compact:
    """What a step of training does for a small patch; see `make_compact`.

    Attributes:
        steps: of each tensor that is coded in steps.
        rounds: whether the forward pass uses rounded values.
        penalty: weight of the count in the loss.
    """

    steps: Steps
    rounds: bool
    penalty: float
    scales: _Group | None
    shifts: _Group | None

    def forward_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` with the coded ones rounded, for the forward pass; gradients pass through."""
        out = dict(tensors)
        if not self.rounds:
            return out
        for group, scales in ((self.scales, True), (self.shifts, False)):
            if group is None:
                continue
            value = group.gather(tensors)
            rounded = _rounded(group, value.detach(), scales)
            # value - value.detach() is 0, so the forward pass has the decoded bits.
            passed = (value - value.detach()) + rounded
            pieces = torch.split(passed, list(group.sizes))
            for name, flat in zip(group.names, pieces, strict=True):
                out[name] = flat.view_as(tensors[name])
        return out

    def size_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """penalty * mean log2(1 + |delta| / step) over all coded values, a scalar."""
        counts = [torch.zeros(0, device=next(iter(tensors.values())).device)]
        if self.scales is not None:
            value, one = self.scales.gather(tensors), self.scales
            octaves = torch.log2((value.abs() + TINY) / (one.reference.abs() + TINY))
            counts.append(octaves.abs() / torch.exp2((one.step - OCTAVE_BITS).float()))
        if self.shifts is not None:
            value, one = self.shifts.gather(tensors), self.shifts
            counts.append((value - one.reference).abs() / one.step.float())
        every = torch.cat(counts)
        return self.penalty * torch.log2(1.0 + every).sum() / max(every.numel(), 1)

    @torch.no_grad()
    def finish(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the rounded values into ``tensors``, in place: what a patch is then made of."""
        for name, value in self.forward_tensors(tensors).items():
            if value is not tensors[name]:
                tensors[name].copy_(value)


def compact_forward(
    model: PatchedModel, tensors: Mapping[str, Tensor], compact: Compact
) -> Callable[[Tensor], Tensor]:
    """Images -> scores of ``model``'s active task, through the rounded ``tensors``."""

    def forward(images: Tensor) -> Tensor:
        used = compact.forward_tensors(tensors)
        scores: Tensor = run_structure(
            model.structure, used, images, model.config(), model.training
        )
        return scores

    return forward


def make_compact(
    base: Base,
    tensors: Mapping[str, Tensor],
    config: TrainConfig,
    first: Mapping[str, Tensor] | None = None,
) -> Compact | None:
    """What ``config.rounding_step`` and ``config.size_penalty`` ask for; None if nothing.

    Everything that is trained but the head is coded. Statistics that a patch measures anew are
    rounded only by the coder.

    Args:
        tensors: of the task at one resolution; those that need gradients are trained.
        first: the finished tensors of the task's largest resolution, which others are coded
            against.
    """
    if config.rounding_step == 0 and config.size_penalty == 0:
        return None
    trained = [
        name
        for name, value in tensors.items()
        if value.requires_grad and part_of(base, name) != "head"
    ]
    if not trained:
        return None
    steps = training_steps(base, {name: tensors[name] for name in trained}, config)
    known = first or {}

    def group(scales: bool) -> _Group | None:
        names = tuple(name for name in trained if is_scale(base, name) == scales)
        if not names:
            return None
        device = tensors[names[0]].device
        sizes = tuple(tensors[name].numel() for name in names)
        references = [
            known[name].detach() if name in known else reference_of(base, name, tensors[name].shape)
            for name in names
        ]
        exponents = [steps.exponents[name] for name in names]
        counts = torch.tensor(sizes)
        step = (
            torch.tensor(exponents)
            if scales
            else torch.tensor([math.ldexp(1.0, e) for e in exponents], dtype=torch.float64)
        )
        return _Group(
            names,
            sizes,
            torch.cat([one.reshape(-1).to(device) for one in references]),
            step.repeat_interleave(counts).to(device),
        )

    return Compact(steps, config.rounding_step > 0, config.size_penalty, group(True), group(False))


def training_steps(base: Base, tensors: Mapping[str, Tensor], config: TrainConfig) -> Steps:
    """The steps that a run with ``config`` trains for: they follow from the base and
    ``rounding_step`` alone, so that a patch can be coded with the very same.
    """
    own = {name: value for name, value in tensors.items() if part_of(base, name) != "head"}
    return uniform_steps(base, own, config.rounding_step or PENALTY_STEP)


def _rounded(group: _Group, value: Tensor, scales: bool) -> Tensor:
    if scales:
        number = count_scale_steps(value, group.reference, group.step)
        return decode_scales(number, group.reference, group.step)
    return decode_values(
        count_steps(value, group.reference, group.step), group.reference, group.step
    )
