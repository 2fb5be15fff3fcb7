"""Images and labels in memory, and the batch that each step takes of them.

In: arrays, a batch size, a seed. Out: for any step, the same `Batch` on every machine: the order
of the images and their augmentation come from the seed and the step's number alone, so a run can
go on from any step, and ranks that split a batch take parts of the very same one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdeploy.data import Preprocessing
from patchdeploy.errors import TrainingError
from patchdeploy.training.augment import augment
from patchdeploy.training.config import TrainConfig

PASS_STRIDE, STREAM_STRIDE = 1_000_003, 7_368_787
"""Primes that keep the seeds of passes and streams apart."""


@dataclass(frozen=True)
class Samples:
    """Inputs and labels, resident in memory.

    Attributes:
        inputs: uint8 [N, px, px, 3] RGB, or float32 features [N, F].
        labels: int64 [N].
        preprocessing: for images; None for features.
        image_name: index -> the file, or the position in the set that the user gave, for messages;
            None where only ``index`` is known.
    """

    inputs: Tensor
    labels: Tensor
    preprocessing: Preprocessing | None
    image_name: Callable[[int], str] | None = field(default=None, compare=False, repr=False)

    @classmethod
    def from_arrays(
        cls, pixels: NDArray[np.uint8], labels: NDArray[np.int64], preprocessing: Preprocessing
    ) -> Samples:
        """From a data set's arrays: copied, but for a memory-mapped one, which may exceed memory.

        The tensor over a mapped file must not be written to; `batch` reads and copies.
        """
        if isinstance(pixels, np.memmap):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return cls(torch.from_numpy(pixels), torch.tensor(labels), preprocessing)
        return cls(torch.tensor(pixels), torch.tensor(labels), preprocessing)

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Samples:
        """The same, on ``device``; uint8 images take a quarter of what float32 would."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def name(self, index: int) -> str:
        """The image's, for messages."""
        return self.image_name(index) if self.image_name else str(index)

    def batch(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised inputs (channels last) and labels of ``index``, on ``device``."""
        index = index.to(self.inputs.device)
        inputs, labels = self.inputs[index].to(device), self.labels[index].to(device)
        return normalize(inputs, self.preprocessing), labels


@contextmanager
def name_memory(what: str) -> Iterator[None]:
    """Memory that runs out inside, of the processor or of a GPU, is said of ``what``.

    Raises:
        TrainingError: instead of what Python, NumPy and torch raise each in its own way.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(
            f"{what} need more memory than there is ({str(error).splitlines()[0][:200]}); all must "
            "fit at once; choose a smaller batch_size or resolution"
        ) from error


def normalize(inputs: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """[N, H, W, 3] RGB in 0..255 -> float32 [N, 3, H, W], channels last; features pass through."""
    if preprocessing is None:
        return inputs
    if preprocessing.channel_order == "BGR":
        inputs = inputs.flip(-1)
    mean = torch.tensor(preprocessing.mean, device=inputs.device)
    std = torch.tensor(preprocessing.std, device=inputs.device)
    return ((inputs.float() / 255.0 - mean) / std).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Source:
    """Where one task's (or one resolution's) batches come from.

    Attributes:
        name: task and resolution, in records.
        train, validation: they share no image.
        classes: of the task.
        batch_size: images a step.
        weight: of its loss in the step's sum.
        stream: sources of one stream draw the same images in the same order with the same
            augmentation (resolutions of one set); give different tasks different streams.
        config: augmentation of this source alone; None for the run's.
    """

    name: str
    train: Samples
    validation: Samples
    classes: int
    batch_size: int
    weight: float = 1.0
    stream: int = 0
    config: TrainConfig | None = None

    @property
    def steps(self) -> int:
        """Batches in one pass over the images."""
        return count_batches(len(self.train), self.batch_size)

    @property
    def images_per_step(self) -> float:
        """On average over a pass."""
        return len(self.train) / self.steps

    def indices(self, step: int, seed: int) -> Tensor:
        """int64 [n]: the images of global step ``step``; each pass is a new permutation."""
        steps = self.steps
        passes, within = divmod(step, steps)
        order = _permutation(len(self.train), self._seed(seed) * PASS_STRIDE + passes)
        return _batch_of(order, self.batch_size, steps, within)

    def _seed(self, seed: int) -> int:
        return seed + self.stream * STREAM_STRIDE


@lru_cache(maxsize=64)
def _permutation(count: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Share:
    """What one rank does of one source in each step: part ``part`` of ``parts`` of its batch."""

    source: int
    part: int = 0
    parts: int = 1

    def of(self, count: int) -> tuple[int, int]:
        """(k, n): every n-th of ``count`` images from the k-th on.

        Each rank takes 2 at least, as one image has no variance to normalise by. A batch too small
        for that is computed whole by each, (0, 1).
        """
        return (self.part, self.parts) if count >= 2 * self.parts else (0, 1)


@dataclass(frozen=True)
class Batch:
    """One source's images in one step (or this rank's part of them).

    Attributes:
        source: index among the trainee's sources.
        inputs: normalised float32 [n, 3, H, W], channels last in memory, or features [n, F].
        targets: int64 [n], or float32 [n, classes] after mixup or cutmix.
        share: of the batch's mean loss that is this rank's; the shares of all ranks sum to 1.
        parts: ranks among which the images are divided; 1 where they are all here.
    """

    source: int
    inputs: Tensor
    targets: Tensor
    share: float = 1.0
    parts: int = 1


def draw_batch(
    source: Source, share: Share, step: int, config: TrainConfig, device: torch.device
) -> Batch:
    """The part of ``source``'s batch at global step ``step`` that ``share`` names (`Share.of`)."""
    index = source.indices(step, config.seed)
    part = share.of(len(index))
    seed = source._seed(config.seed) * PASS_STRIDE + step
    config = source.config or config
    train, mixes = source.train, config.mixup > 0 or config.cutmix > 0
    if train.preprocessing is None or (config.augment == "none" and not mixes):
        mine = index[part[0] :: part[1]]
        inputs, targets = train.batch(mine, device)
    else:
        chosen = index.to(train.inputs.device)
        pixels, targets = augment(
            train.inputs[chosen].to(device),
            train.labels[chosen].to(device),
            config,
            seed=seed,
            classes=source.classes,
            part=part,
        )
        inputs = normalize(pixels, train.preprocessing)
    alone = part[1] == 1
    own = 1 / share.parts if alone else len(inputs) / len(index)
    return Batch(share.source, inputs, targets, own, part[1])


def count_batches(count: int, batch_size: int) -> int:
    """Batches of ``count`` images; a last one of a single image joins the one before it, since one
    image has no variance to normalise by.
    """
    whole, left = divmod(count, batch_size)
    batches = whole + (left > 0)
    alone = count - (batches - 1) * batch_size == 1
    return batches - 1 if batches > 1 and alone else max(1, batches)


def _batch_of(order: Tensor, batch_size: int, steps: int, k: int) -> Tensor:
    """Batch ``k`` of ``steps``; the last one takes all that is left."""
    start = k * batch_size
    return order[start:] if k == steps - 1 else order[start : start + batch_size]
