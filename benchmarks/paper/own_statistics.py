"""A shared network with the statistics of one task's, or one resolution's, own images.

In: a base that several tasks or resolutions trained together, a patch that owns a head alone, the
images that the statistics are measured on. Out: the same weights with mean and variance measured
anew. Why: where tasks or resolutions share all but a head, each trains on its own batch statistics
and then answers with one running mean and variance that all of them wrote; measured anew, what is
left of the gap to a patch is not statistics.
"""

from __future__ import annotations

import numpy as np
import torch

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.patch import Patch, PatchConfig
from patchdeploy.patched_model import PatchedModel, reestimate_statistics
from patchdeploy.training.preparation import make_samples
from patchdeploy.training.statistics import draw_statistics_batches

BATCH = 64


def with_own_statistics(
    base: Base, patch: Patch, images: ImageDataset, px: int, seed: int
) -> PatchedModel:
    """``patch``'s head over ``base`` at ``px``, with the mean and variance of ``images``.

    ``images`` are training images, in batches that ``seed`` draws; nothing is trained. Weights,
    scales, biases are ``base``'s.
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
    samples = make_samples(images, px, base, model.device)
    reestimate_statistics(model, draw_statistics_batches(samples, BATCH, seed, model.device))
    return model
