"""A shared network with the statistics of one task's, or one resolution's, own images.

In: a base that several tasks or resolutions trained together, a patch that owns a head alone, the
images that the statistics are measured on. Out: the same weights with mean and variance measured
anew. Why: head-only sharing trains on each task's batch statistics and then answers with one
running mean and variance that all tasks wrote; measured anew, what is left of the gap to a patch
is not statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, normalize_batch
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, reestimate_statistics

BATCH = 64


def with_own_statistics(base: Base, patch: Patch, images: ImageDataset, px: int) -> PatchedModel:
    """``patch``'s head over ``base`` at ``px``, with the mean and variance of ``images``.

    ``images`` are training images; nothing is trained. Weights, scales, biases are ``base``'s.
    """
    config = PatchConfig(("statistics", "head"), statistics="reestimated")
    model = PatchedModel(base)
    model.add_task(patch.task, patch.classes, config, px)
    own = model.tensors()
    head = f"{base.head_name}."
    with torch.no_grad():
        for key, value in patch.tensors(px).items():
            if key.startswith(head):
                own[key].copy_(torch.from_numpy(np.array(value)))
    reestimate_statistics(model, mixed_batches(base, images, px))
    return model


def mixed_batches(base: Base, images: ImageDataset, px: int) -> Iterator[Tensor]:
    """Float32 [N, 3, px, px], N at most `BATCH`; each batch spans the whole set.

    Packaged images often lie class by class. A batch of one class varies less than the set does,
    and the mean over such batches is a variance too small.
    """
    pixels = images.at(px, base.preprocessing)
    count = -(-len(images) // BATCH)
    for first in range(count):
        yield torch.from_numpy(normalize_batch(pixels[first::count], base.preprocessing))
