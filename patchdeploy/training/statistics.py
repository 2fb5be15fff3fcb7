"""The batches that a task's mean and variance are measured on, in an order that the seed draws.

In: training samples, a batch size, the run's seed. Out: normalised batches, each a random part of
the whole set. Why: class folders are read class by class. A batch of one class varies less than the
set does, and the mean over such batches is a variance that lacks what lies between the classes; the
layers behind it see a batch that no other image resembles.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from patchdeploy.training.samples import STREAM_STRIDE, Samples, normalize


def draw_statistics_batches(
    samples: Samples, batch_size: int, seed: int, device: torch.device, stream: int = 0
) -> Iterator[Tensor]:
    """Each image once: normalised float32 [n, 3, H, W] on ``device``.

    One permutation from a generator of ``seed`` and ``stream`` (`Source.stream`): the same on every
    rank, in a run that goes on, and for a task alone or among others. Batch k of K takes every K-th
    image of it from the k-th on, so that sizes differ by at most 1 (`reestimate_tensors` counts
    each batch alike); K is as few as ``batch_size`` allows, or fewer, so that a batch has at least
    2 images.
    """
    count = len(samples)
    generator = torch.Generator().manual_seed(seed + stream * STREAM_STRIDE)
    order = torch.randperm(count, generator=generator).to(samples.inputs.device)
    batches = max(1, min(-(-count // batch_size), count // 2))
    for first in range(batches):
        inputs = samples.inputs[order[first::batches]].to(device)
        yield normalize(inputs, samples.preprocessing)
