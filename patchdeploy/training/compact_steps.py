"""Which step each tensor of a patch can afford: greedy, under a floor on validation accuracy.

In: a trained patch, validation images that training did not see, the accuracy that must remain.
Out: steps. Never give it test images: it chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset
from patchdeploy.errors import ConfigError, DataError
from patchdeploy.patch import Patch
from patchdeploy.patch.forward import run_structure
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training.compact_code import Integers, Steps, code_patch, part_of
from patchdeploy.training.samples import Samples, normalize

Measure = Callable[[Patch], tuple[float, float]]
"""A patch -> (top-1 in [0, 1], mean cross entropy in nats) on validation images."""

BATCH_IMAGES = 256


def measure_on(base: Base, images: ImageDataset, device: torch.device | str = "cpu") -> Measure:
    """Top-1 and cross entropy on ``images``, the mean over a patch's resolutions.

    Raises:
        DataError: no image.
    """
    if not len(images):
        raise DataError(f"{images.name}: 0 images; accuracy needs at least 1; add some")
    model = PatchedModel(base, device)
    resident: dict[int, Samples] = {}

    @torch.no_grad()
    def measure(patch: Patch) -> tuple[float, float]:
        right = nats = 0.0
        for px in patch.resolutions:
            if px not in resident:
                pixels = images.at(px, base.preprocessing)
                samples = Samples.from_arrays(pixels, images.labels, base.preprocessing)
                resident[px] = samples.to(model.device)
            samples = resident[px]
            tensors = {
                key: torch.tensor(value, device=model.device)
                for key, value in patch.tensors(px).items()
            }
            for index in torch.split(torch.arange(len(images), device=model.device), BATCH_IMAGES):
                inputs = normalize(samples.inputs[index], samples.preprocessing)
                scores = run_structure(model.structure, tensors, inputs, patch.config, False)
                labels = samples.labels[index]
                right += float((scores.argmax(1) == labels).sum())
                nats += float(functional.cross_entropy(scores, labels, reduction="sum"))
        count = len(images) * len(patch.resolutions)
        return right / count, nats / count

    return measure


def choose_steps(
    base: Base,
    patch: Patch,
    measure: Measure,
    lowest_top1: float,
    start: Steps,
    *,
    groups: Sequence[Sequence[str]] | None = None,
    rounds: int = 6,
) -> Steps:
    """Double steps, those first that harm least for the bytes that they save, while ``measure``
    stays at ``lowest_top1`` or above.

    A round tries each group alone with twice its step, orders them by the rise of the cross entropy
    per byte saved (accuracy alone is too coarse to order by), and keeps the longest run of them,
    found by bisection, that keeps the accuracy. It ends when a round keeps none. Cost: about as
    many calls of ``measure`` as groups, a round.

    Args:
        start: fine steps to begin with.
        groups: names that share each doubling; by default one tensor each. The head's steps stay.
        rounds: at most.

    Raises:
        ConfigError: ``start`` itself does not reach ``lowest_top1``.
    """
    steps, current = start, measure(code_patch(base, patch, start).patch)
    if current[0] < lowest_top1:
        raise ConfigError(
            f"steps to begin with leave a validation accuracy of {current[0]:.4f}; it must be at "
            f"least {lowest_top1:.4f}; begin with finer steps or allow a lower accuracy"
        )
    groups = groups or [[key] for key in start.exponents if part_of(base, key) != "head"]
    for _ in range(rounds):
        order = _order(base, patch, measure, steps, current[1], groups)
        kept = _longest(base, patch, measure, lowest_top1, steps, order)
        if kept == 0:
            break
        for group in order[:kept]:
            steps = steps.coarser(group)
        current = measure(code_patch(base, patch, steps).patch)
    return steps


def _order(
    base: Base,
    patch: Patch,
    measure: Measure,
    steps: Steps,
    loss: float,
    groups: Sequence[Sequence[str]],
) -> list[Sequence[str]]:
    """Groups that would save bytes, the least harm per byte first."""
    now = code_patch(base, patch, steps).integers
    prices = _unit_prices(base, now)
    ranks: list[tuple[float, int]] = []
    for index, group in enumerate(groups):
        trial = code_patch(base, patch, steps.coarser(group))
        saved = sum(
            prices[part_of(base, name)]
            * (_size(now.values(), [name]) - _size(trial.integers.values(), [name]))
            for name in group
        )
        if saved > 0:
            ranks.append(((measure(trial.patch)[1] - loss) / saved, index))
    return [groups[index] for _, index in sorted(ranks)]


def _unit_prices(base: Base, integers: Mapping[int, Integers]) -> dict[str, float]:
    """By part: bytes that one more unit of an integer's size costs in the part's stream.

    Were the integers two-sided geometric, p(n) proportional to t^|n|, the price would be -log2 t
    bits a unit; E|n| = m = 2t / (1 - t^2) gives t = (sqrt(1 + m^2) - 1) / m.
    """
    totals: dict[str, tuple[int, int]] = {}
    for variant in integers.values():
        for name, numbers in variant.items():
            size, count = totals.get(part_of(base, name), (0, 0))
            totals[part_of(base, name)] = (size + _size([variant], [name]), count + numbers.size)
    prices = {}
    for part, (size, count) in totals.items():
        mean = size / count if count else 0.0
        share = (math.sqrt(1.0 + mean * mean) - 1.0) / mean if mean else 0.0
        prices[part] = -math.log2(share) / 8.0 if share else 0.0
    return prices


def _size(variants: Iterable[Integers], names: Iterable[str]) -> int:
    """Sum of the integers' sizes."""
    return sum(int(np.abs(variant[name]).sum()) for variant in variants for name in names)


def _longest(
    base: Base,
    patch: Patch,
    measure: Measure,
    lowest_top1: float,
    steps: Steps,
    order: Sequence[Sequence[str]],
) -> int:
    """How many groups, from the first, can take twice their step: bisection, as if accuracy only
    fell along the way. What is returned was measured to be good.
    """
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        trial = steps.coarser(name for group in order[:middle] for name in group)
        if measure(code_patch(base, patch, trial).patch)[0] >= lowest_top1:
            low = middle
        else:
            high = middle - 1
    return low
