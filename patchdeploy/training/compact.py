"""Training a patch that codes small: its forward pass rounds on the file's own grid, and the loss
counts what the deltas cost.

In: the tensors that a task trains, the base's coding table, a step. Out: the tensors that its
forward pass uses, and a term for its loss. What a file codes is the scale and the shift that a
convolution has in the end (`coding.grid`), so these are rounded, and the difference goes into the
tensor that is trained: gamma or the explicit scale, beta or the explicit bias. A patch that was
trained on such steps is coded without a second rounding, whatever its statistics are.

Rounding is straight-through: gradients pass as if it were not there (Bengio et al. 2013, arXiv
1308.3432). The count is lambda * mean log2(1 + |delta| / step), a smooth stand-in for the bits of
an integer whose size is not known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from patchdeploy.coding.grid import (
    EXACT_BIASES,
    EXACT_SCALES,
    MAX_BIAS_STEP,
    MAX_SCALE_STEP,
    MIN_BIAS_STEP,
    RATIOS,
    UNITS,
    CodingSteps,
)
from patchdeploy.coding.make_table import SMALLEST_SCALE, make_coding_table
from patchdeploy.coding.table import CodingTable
from patchdeploy.graph import Conv2d, Graph
from patchdeploy.patch import PatchConfig
from patchdeploy.patch.forward import run_structure
from patchdeploy.patched_model import PatchedModel
from patchdeploy.quantize.base import quantize_base
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.int8_rows import RowStructure, build_rows, row_steps

PENALTY_STEP = 0.125
"""The step that a size penalty counts in where nothing is rounded while training."""
TINY = 1e-12
"""Added to both scales of a ratio, so that a scale of 0 has a logarithm."""


@dataclass(frozen=True)
class _Grid:
    """The coding table and the steps, a value for each row; float64 [rows] but for ``t``.

    Attributes:
        scale, beta, slope: the table's.
        t: int64 [rows]: a scale's step is 2^t / 256 octave.
        e_step: 2^e, the step of a shift.
    """

    scale: Tensor
    beta: Tensor
    slope: Tensor
    t: Tensor
    e_step: Tensor
    ratios: Tensor

    @classmethod
    def of(cls, table: CodingTable, steps: CodingSteps, device: torch.device) -> _Grid:
        conv = table.row_conv
        # The head's rows are never rounded: any finite step does.
        t = np.array([0 if one == EXACT_SCALES else one for one in steps.scale])[conv]
        e = np.array([0 if one == EXACT_BIASES else one for one in steps.bias])[conv]
        wide = (table.scale, table.beta, table.slope, np.ldexp(1.0, e), RATIOS)
        scale, beta, slope, e_step, ratios = (
            torch.tensor(one, dtype=torch.float64, device=device) for one in wide
        )
        return cls(scale, beta, slope, torch.tensor(t, device=device), e_step, ratios)

    def round_scales(self, scale: Tensor) -> Tensor:
        """The nearest scale that decodes (`coding.grid.scales_from`), float64 [rows]; > 0."""
        octaves = torch.log2(scale / self.scale)
        units = torch.round(octaves * UNITS / torch.exp2(self.t.double())).long() << self.t
        powers = torch.exp2((units >> 8).double())
        return (self.scale * self.ratios[units & (UNITS - 1)] * powers).float().double()

    def shifts(self, scale: Tensor, bias: Tensor) -> Tensor:
        """What of ``bias`` is not the base's and does not follow from ``scale``."""
        return bias - self.slope * scale - self.beta


@dataclass(frozen=True)
class _Targets:
    """Which trained tensors take what rounding moves.

    Attributes:
        scales, shifts: by tensor name, the slice of the rows that it acts on.
        scale_rows, shift_rows: bool [rows]: those of some name.
        kernels: by tensor name, the trained kernel's convolution and the base's codes of it,
            float32 [O, I/groups, kh, kw].
    """

    scales: Mapping[str, slice]
    shifts: Mapping[str, slice]
    scale_rows: Tensor
    shift_rows: Tensor
    kernels: Mapping[str, tuple[Conv2d, Tensor]]


@dataclass(frozen=True)
class Compact:
    """What a step of training does for a small patch; see `make_compact`.

    Attributes:
        steps: of each convolution; the head is coded exactly.
        rounds: whether the forward pass uses rounded values.
        penalty: weight of the count in the loss.
        structure: how tensors make the rows of the network.
        reference: (scale, shift) float64 [rows] that deltas are counted from.
    """

    steps: CodingSteps
    rounds: bool
    penalty: float
    structure: RowStructure
    grid: _Grid
    targets: _Targets
    reference: tuple[Tensor, Tensor]

    def forward_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` with the coded ones rounded, for the forward pass; gradients pass through."""
        out = dict(tensors)
        if not self.rounds:
            return out
        for name, rounded in self._round(tensors).items():
            # value - value.detach() is 0, so the forward pass has the rounded bits.
            out[name] = (tensors[name] - tensors[name].detach()) + rounded
        return out

    @torch.no_grad()
    def _round(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rounded tensors by name: kernels, then scales, then shifts, as each follows from
        those before it."""
        found = {
            name: self._round_kernel(name, conv, tensors)
            for name, (conv, _) in self.targets.kernels.items()
        }
        step, _, _ = row_steps(self.structure, {**tensors, **found})
        least = float(SMALLEST_SCALE)  # a row that is switched off keeps its scale
        size = step.abs().clamp(min=least)
        live = self.targets.scale_rows & (step.abs() >= least)
        factor = torch.where(live, self.grid.round_scales(size) / size, 1.0)
        for name, rows in self.targets.scales.items():
            value = found.get(name, tensors[name]).double()
            shape = (-1, *(1 for _ in value.shape[1:]))
            found[name] = (value * factor[rows].reshape(shape)).to(tensors[name].dtype)
        step, bias, _ = row_steps(self.structure, {**tensors, **found})
        shift = self.grid.shifts(step, bias)
        nearest = torch.round(shift / self.grid.e_step) * self.grid.e_step
        moved = (nearest - shift) * self.structure.divisor
        for name, rows in self.targets.shifts.items():
            found[name] = (tensors[name].double() + moved[rows]).to(tensors[name].dtype)
        return found

    def _round_kernel(self, name: str, conv: Conv2d, tensors: Mapping[str, Tensor]) -> Tensor:
        """An int8 file's kernel: whole numbers in [-127, 127] times the row's step."""
        codes, step = self._kernel_codes(conv, tensors[name])
        rounded = torch.round(codes) * step
        return rounded.to(tensors[name].dtype).view_as(tensors[name])

    @staticmethod
    def _kernel_codes(conv: Conv2d, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(codes before rounding, step) float64 [O, I/groups, kh, kw] and [O, 1, 1, 1]."""
        kernel = weight.reshape(len(weight), -1, *conv.kernel).double()
        peak = kernel.detach().flatten(1).abs().amax(1).clamp(min=float(SMALLEST_SCALE))
        step = (peak / 127).reshape(-1, 1, 1, 1)
        return kernel / step, step

    def size_loss(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """penalty * mean log2(1 + |delta| / step) over all coded values, a scalar."""
        step, bias, _ = row_steps(self.structure, tensors)
        scale, shift = self.reference
        octaves = torch.log2((step.abs() + TINY) / (scale.abs() + TINY))
        moved = self.grid.shifts(step, bias) - shift
        counts = [
            (octaves.abs() * UNITS / torch.exp2(self.grid.t.double()))[self.targets.scale_rows],
            (moved.abs() / self.grid.e_step)[self.targets.shift_rows],
        ]
        for name, (conv, own) in self.targets.kernels.items():
            counts.append((self._kernel_codes(conv, tensors[name])[0] - own).abs().flatten())
        every = torch.cat(counts)
        return (self.penalty * torch.log2(1.0 + every).sum() / max(every.numel(), 1)).float()

    @torch.no_grad()
    def finish(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the rounded values into ``tensors``, in place: what a patch is then made of."""
        if self.rounds:
            for name, value in self._round(tensors).items():
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


def is_compact(config: TrainConfig) -> bool:
    """Whether ``config`` asks for anything that `make_compact` does."""
    return config.rounding_step > 0 or config.size_penalty > 0


def make_compact(
    graph: Graph,
    tensors: Mapping[str, Tensor],
    config: TrainConfig,
    patch_config: PatchConfig,
    classes: int,
    first: Mapping[str, Tensor] | None = None,
) -> Compact | None:
    """What ``config.rounding_step`` and ``config.size_penalty`` ask for; None if nothing.

    Everything that is trained but the head is coded: scales, shifts, depthwise kernels.

    Args:
        graph: the lowered base, with its parameters.
        tensors: of the task at one resolution; those that need gradients are trained.
        first: the finished tensors of the task's largest resolution, which others are coded
            against.
    """
    trained = {name for name, value in tensors.items() if value.requires_grad}
    if not is_compact(config) or not trained:
        return None
    device = next(iter(tensors.values())).device
    # A spare row of the head changes no other row: one for each class will do.
    quantized = quantize_base(graph, classes, "depthwise" in patch_config.kinds)
    table, structure = make_coding_table(quantized), build_rows(quantized, classes, device)
    targets = _find_targets(graph, table, structure, trained)
    if not (targets.scales or targets.shifts or targets.kernels):
        return None
    steps = training_steps(graph, table, config.rounding_step or PENALTY_STEP)
    grid = _Grid.of(table, steps, device)
    reference = (grid.scale, torch.zeros_like(grid.scale))
    if first is not None:
        with torch.no_grad():
            step, bias, _ = row_steps(structure, first)
            reference = (step.abs(), grid.shifts(step, bias))
    return Compact(
        steps, config.rounding_step > 0, config.size_penalty, structure, grid, targets, reference
    )


def training_steps(graph: Graph, table: CodingTable, rounding_step: float) -> CodingSteps:
    """The steps that a run trains for: they follow from the base and ``rounding_step`` alone.

    Scales: ``rounding_step`` octaves, which is a share of ``rounding_step`` * ln 2 of the scale.
    Shifts: the same share of what the layer puts out, whose standard deviation is the root mean
    square of the base's gamma; without a normalisation, of the kernel's rows, which it would be
    for inputs of variance 1. Each rounded down to a power of two that the format has.
    """
    t = min(max(UNITS.bit_length() - 1 + floor_log2(rounding_step), 0), MAX_SCALE_STEP)
    scales, biases = [], []
    for conv, coded in zip(graph.convolutions(), table.convs, strict=True):
        exact = conv.name == graph.head
        share = 6.0 if conv.activation == "hard_sigmoid" else 1.0  # quantize.variant: y / 6 + 0.5
        e = floor_log2(rounding_step * math.log(2.0) * _spread(graph, conv, coded.rows) / share)
        scales.append(EXACT_SCALES if exact else t)
        biases.append(EXACT_BIASES if exact else e)
    return CodingSteps(tuple(scales), tuple(biases))


def floor_log2(value: float) -> int:
    """Exponent of the largest power of two not above ``value`` > 0, in -126..127."""
    return min(max(math.frexp(value)[1] - 1, MIN_BIAS_STEP), MAX_BIAS_STEP)


def _spread(graph: Graph, conv: Conv2d, rows: int) -> float:
    """See `training_steps`; 1 where it would be 0."""
    if conv.norm is not None:
        power = float(np.mean(np.square(graph.parameters.get(f"{conv.norm.name}.weight", 1.0))))
    else:
        power = float(np.sum(np.square(graph.parameters[conv.weight].astype(np.float64)))) / rows
    return math.sqrt(power) or 1.0


def _find_targets(
    graph: Graph, table: CodingTable, structure: RowStructure, trained: set[str]
) -> _Targets:
    """Where a convolution has both, a normalisation's tensors before the explicit ones."""
    scales: dict[str, slice] = {}
    shifts: dict[str, slice] = {}
    kernels: dict[str, tuple[Conv2d, Tensor]] = {}
    device = structure.eps.device
    scale_rows = torch.zeros(len(table.row_conv), dtype=torch.bool, device=device)
    shift_rows = torch.zeros_like(scale_rows)
    row = element = 0
    for conv, coded in zip(graph.convolutions(), table.convs, strict=True):
        rows, row = slice(row, row + coded.rows), row + coded.rows
        elements = slice(element, element + coded.rows * coded.taps)
        element = elements.stop if coded.owned else element
        if conv.name == graph.head:
            continue
        module = conv.module
        norm = conv.norm.name if conv.norm is not None else None
        for found, mask, names in (
            # Where the scale is not trained, the task's own kernel takes its factor in.
            (scales, scale_rows, (f"{norm}.weight", f"{module}.patch_scale", conv.weight)),
            (shifts, shift_rows, (f"{norm}.bias", f"{module}.patch_bias")),
        ):
            name = next((one for one in names if one in trained), None)
            if name is not None:
                found[name] = rows
                mask[rows] = True
        if coded.owned and conv.weight in trained:
            own = table.kernels[elements].reshape(coded.rows, *conv.kernel, -1)
            codes = torch.tensor(own.transpose(0, 3, 1, 2), dtype=torch.float32, device=device)
            kernels[conv.weight] = (conv, codes)
    return _Targets(scales, shifts, scale_rows, shift_rows, kernels)
