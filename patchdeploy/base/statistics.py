"""A base with its normalisations' statistics measured on images: what random weights need.

In: a base and pixels. Out: a new module whose mu and var are those of the pixels. Why: a network
with random weights has mu = 0 and var = 1, which its signals have not. torchvision's start of a
depthwise kernel (He, fan out) takes all channels for its fan, so signals shrink from block to
block; where a scale of 1 meets a signal of 1e-8, nothing learns.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from patchdeploy.base.layers import NORMS
from patchdeploy.data import Pixels, Preprocessing, normalize_batch
from patchdeploy.errors import DataError

BATCH = 64
"""Images at a time; more take more memory, fewer make the mean over batches less exact."""


@torch.no_grad()
def measure_statistics(
    module: nn.Module, preprocessing: Preprocessing, pixels: Pixels
) -> nn.Module:
    """A copy of ``module`` with mu and var of uint8 [N, px, px, 3], layer after layer.

    Each normalisation sees what those before it give when they normalise by the batch. mu and var
    are the means over batches of each batch's mean and unbiased variance (torch's BatchNorm with
    momentum=None). Up to `BATCH` images are one batch, whose statistics they are exactly.

    Raises:
        DataError: fewer than 2 images.
    """
    if len(pixels) < 2:
        raise DataError(
            f"statistics of {len(pixels)} images; a variance needs at least 2; give more images"
        )
    measured = copy.deepcopy(module).eval()
    norms = [layer for layer in measured.modules() if isinstance(layer, NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    batches = -(-len(pixels) // BATCH)
    for first in range(batches):  # every batch spans the whole: images often lie class by class
        batch = normalize_batch(pixels[first::batches], preprocessing)
        measured(torch.from_numpy(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return measured
