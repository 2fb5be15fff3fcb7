"""Training a patch through the int8 base, so that it learns around the rounding.

In: a task attached to a `PatchedModel`, images to calibrate on. Out: a forward pass that is the
exported network's, with gradients, and the activation ranges that the training loop keeps.

Ranges are found again, on the same images and in the same way as `export` does, before each epoch
and before each validation: what is validated is what exporting the tensors of that epoch writes.
A run from a random head begins in float: while scales and scores still grow, ranges that stand
still for an epoch clip what should be learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing
from patchdeploy.errors import ConfigError
from patchdeploy.fold import fold_patch
from patchdeploy.graph import Graph
from patchdeploy.lower import lower_base
from patchdeploy.patched_model import PatchedModel
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import CalibrationConfig, calibrate, spread
from patchdeploy.quantize.variant import quantize_variant
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.int8_network import Int8Network, restore_pixels
from patchdeploy.training.objective import Forward

Used = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""A patch's tensors -> those that the forward pass uses (rounded ones, for small patches)."""
SCALES, ZERO_POINTS, BEGUN = "int8.scales", "int8.zero_points", "int8.begun"
"""Names in the training loop's state: the activation parameters, and whether epochs through int8
have begun (1 or 0)."""
FLOAT_SHARE = 0.5
"""Of a run's epochs that come before the first one through int8."""


@dataclass(frozen=True)
class Int8Plan:
    """How a run goes through int8.

    Attributes:
        calibration: the task's training images; give `export` the same, for the same ranges.
        float_share: of the epochs, in [0, 1], that run in float before.
        resolutions: those that will be exported together, in pixels; empty: the one that trains.
    """

    calibration: ImageDataset
    float_share: float = FLOAT_SHARE
    resolutions: tuple[int, ...] = ()
    _lowered: dict[tuple[str, tuple[int, ...]], Graph] = field(default_factory=dict)

    def lower(self, base: Base, px: int) -> Graph:
        """``base`` lowered for ``px`` as `export` lowers it, once for all resolutions.

        Raises:
            PatchdeployError: see `lower.lower_base`.
        """
        sides = self.resolutions if px in self.resolutions else (px,)
        if (base.sha256, sides) not in self._lowered:
            self._lowered[base.sha256, sides] = lower_base(base, sides)
        return self._lowered[base.sha256, sides]


@dataclass(frozen=True)
class Int8Forward:
    """Normalised images -> scores of one task at one resolution, as the exported network gives;
    with gradients on and before the first epoch through int8, as the float network gives.

    Attributes:
        network: the quantised base, and the activation parameters in use.
        tensors: the task's own, which training changes in place.
        used: see `Used`.
        task, px: for messages.
        images: uint8 [N, px, px, 3] to calibrate on.
        preprocessing: what the inputs were normalised by.
        config: how ranges are found, which is as `export` finds them.
        in_float: the float network.
        first_epoch: the first one through int8, from 0.
        begun: float32 scalar, 1 from that epoch on.
    """

    network: Int8Network
    tensors: Mapping[str, Tensor]
    used: Used
    task: str
    px: int
    images: NDArray[np.uint8]
    preprocessing: Preprocessing
    config: CalibrationConfig
    in_float: Forward
    first_epoch: int
    begun: Tensor
    _seen: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits float32 [n, classes] of ``inputs``, float32 [n, 3, px, px]."""
        if torch.is_grad_enabled() and not self.begun:
            return self.in_float(inputs)
        pixels = restore_pixels(inputs, self.preprocessing)
        return self.network(self.used(self.tensors), pixels)

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside the tensors (see `Trainee.state`)."""
        return {
            SCALES: self.network.scales,
            ZERO_POINTS: self.network.zero_points,
            BEGUN: self.begun,
        }

    @torch.no_grad()
    def prepare(self, epoch: int = 0) -> None:
        """Calibrate for the tensors as they are; see `Trainee.prepare`.

        Raises:
            QuantizationError, NegativeScaleError, PatchError: the patch cannot be exported; see
                `quantize.variant.quantize_variant`.
        """
        self.begun.fill_(float(epoch >= self.first_epoch))
        tensors = {key: value.detach().cpu() for key, value in self.used(self.tensors).items()}
        tensors |= {key: value.cpu() for key, value in self.state.items()}
        if self._seen.keys() == tensors.keys() and all(
            torch.equal(value, self._seen[key]) for key, value in tensors.items()
        ):
            return
        base = self.network.base
        patch = {key: tensors[key].numpy() for key in self.used(self.tensors)}
        folded = fold_patch(base.graph, patch, base.head_capacity)
        ranges = calibrate(folded, self.images, self.config.method)
        variant = quantize_variant(base, folded, ranges, self.task, self.px)
        self.network.set_activations(variant.activations)
        self._seen.clear()
        tensors |= {key: value.cpu() for key, value in self.state.items()}
        self._seen.update({key: value.clone() for key, value in tensors.items()})


def open_int8(
    model: PatchedModel,
    task: str,
    px: int,
    plan: Int8Plan | None,
    config: TrainConfig,
    in_float: Forward,
    used: Used = dict,
) -> Int8Forward:
    """The int8 forward pass of ``task``, which ``model`` runs at ``px``; not calibrated yet.

    Args:
        plan: None where the method has no int8 form.
        in_float: the float network with the same tensors.
        used: see `Used`.

    Raises:
        ConfigError: a setting that int8 cannot follow, or a method without an int8 form.
        UnsupportedOperatorError, LoweringMismatchError: the base cannot be lowered.
    """
    plan = _check(model, task, plan, config)
    depthwise = "depthwise" in model.config(task).kinds
    # One row of the head for each class: how many spare rows an export has changes no score.
    quantized = quantize_base(plan.lower(model.base, px), len(model.classes(task)), depthwise)
    settings = CalibrationConfig()
    chosen = spread(plan.calibration, settings.images)
    return Int8Forward(
        network=Int8Network(quantized, len(model.classes(task)), model.device),
        tensors=model.tensors(task, px),
        used=used,
        task=task,
        px=px,
        images=chosen.at(px, model.base.preprocessing),
        preprocessing=model.base.preprocessing,
        config=settings,
        in_float=in_float,
        first_epoch=round(plan.float_share * config.epochs),
        begun=torch.zeros((), device=model.device),
    )


def _check(model: PatchedModel, task: str, plan: Int8Plan | None, config: TrainConfig) -> Int8Plan:
    """``plan``, where int8 can follow the settings."""
    if plan is None:
        raise ConfigError(
            "training through_int8=True; this method has no int8 form, only patches over a frozen "
            "base have; set it to False, and re-tune the patch afterwards (retune_patch_int8)"
        )
    if config.compile:
        raise ConfigError(
            "training through_int8=True with compile=True; the int8 network reads its ranges "
            "between steps, so it is not compiled; set one of both to False"
        )
    if model.config(task).statistics == "batch":
        raise ConfigError(
            "training through_int8=True with patch statistics 'batch'; an int8 network's "
            "statistics are folded into its scales; choose frozen or reestimated"
        )
    return plan
