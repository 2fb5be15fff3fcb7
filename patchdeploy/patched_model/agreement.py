"""A batch of several tasks scores as each task alone: looked at once, before anything is trained.

In: a base, what its patches own, and the function that runs a mixed batch. Out: nothing, or a
PatchError. Why: layers are replaced for a mixed batch, and a module that does more than it seems
(a class of its own, a hook, a forward that mixes the images of a batch) would change the scores
without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.errors import PatchError
from patchdeploy.patch import PatchConfig
from patchdeploy.patch.forward import run_structure, share_structure
from patchdeploy.patch.tensors import initial_tensors

TASKS, IMAGES = 2, 2
STRENGTHS = (0.2, 0.0)
"""Of the change of each tensor; 0 where a network leaves the range of float32 with the first."""
TOLERANCE = 1e-3
"""Of the largest score. Both ways round in float32, some 1e-6 of a value a layer; a layer that is
left out or runs with another task's tensors changes scores by far more."""

RunMixed = Callable[[Sequence[Mapping[str, Tensor]], Tensor], Tensor]


@torch.no_grad()
def check_agreement(
    base: Base, config: PatchConfig, classes: int, side: int, run_mixed: RunMixed
) -> None:
    """Compare two tasks, far from the base in every tensor, in one batch and each alone.

    Args:
        classes: of both tasks.
        side: of the images, px.
        run_mixed: (tensors of each task by state-dict name, images [4, 3, side, side], two of
            each task in order) -> scores [4, classes].

    Raises:
        PatchError: the scores differ.
    """
    structure = share_structure(base.module).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(TASKS * IMAGES, 3, side, side, generator=generator)
    tensors = initial_tensors(base, config, classes)
    for strength in STRENGTHS:
        tasks = [_move(tensors, strength, generator) for _ in range(TASKS)]
        device = next(iter(tasks[0].values())).device
        parts = torch.split(images.to(device), IMAGES)
        alone = torch.cat(
            [
                run_structure(structure, one, part, config, training=False)
                for one, part in zip(tasks, parts, strict=True)
            ]
        )
        if bool(torch.isfinite(alone).all()):
            _compare(base, alone, run_mixed(tasks, torch.cat(parts)))
            return


def _compare(base: Base, alone: Tensor, mixed: Tensor) -> None:
    largest = float(alone.abs().max())
    difference = float((mixed - alone).abs().max()) if mixed.shape == alone.shape else float("inf")
    if not difference <= TOLERANCE * largest:
        raise PatchError(
            f"base {base.name!r} scores otherwise in a batch of several tasks than with each alone "
            f"(by {difference:.3g}, the largest score is {largest:.3g}); a module of it does more "
            "than its class says, or mixes the images of a batch; train the tasks one by one "
            "(train_patch), or use PatchedModel"
        )


def _move(
    tensors: Mapping[str, Tensor], strength: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Every tensor changed; a mean and a shift by a share of the deviation and the scale beside
    it, so that no layer's values leave the range of those after it."""
    moved = {}
    for key, value in tensors.items():
        stem, _, name = key.rpartition(".")
        noise = (torch.rand(value.shape, generator=generator) - 0.5).to(value.device) * strength
        if name == "running_mean":
            moved[key] = value + noise * tensors[f"{stem}.running_var"].sqrt()
        elif name == "bias" and f"{stem}.running_mean" in tensors:
            moved[key] = value + noise * tensors[f"{stem}.weight"].abs()
        elif name in ("patch_bias", "bias"):
            moved[key] = value + noise
        else:
            moved[key] = value * (1 + noise)
    return moved
