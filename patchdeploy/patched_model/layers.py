"""The layers of a network whose images belong to different tasks.

In: a base's modules and, for each pass, a `Pass`: the rows of the tasks in the batch and how many
images each has. Out: a structure over the base's own tensors in which normalisations, depthwise
kernels and the last layer are each task's own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from patchdeploy.base import Base
from patchdeploy.errors import PatchError
from patchdeploy.patch.forward import share_structure
from patchdeploy.patch.joined import find_partners, join_moments
from patchdeploy.patch.tails import Tail, find_tail, is_hooked, is_plain_norm
from patchdeploy.patched_model.affine import scale_groups, segment_moments
from patchdeploy.patched_model.rows import HEAD, RowLayout, Rows

Activations = dict[nn.Module, tuple[nn.Module, tuple[float, float]]]


@dataclass(frozen=True)
class Pass:
    """What the layers read while one batch runs.

    Attributes:
        rows: of the tasks in the batch, in their order.
        counts: images of each; the batch is sorted by task.
        layout: of the rows.
        learns: normalise by the batch's statistics.
        kernels: of each task, its depthwise kernels by site.
        scales, biases: by site, [G, C] with the statistics in them, or [T, C] where ``learns``.
        moments: filled where ``learns``, as normalisations run: path, and the batch's mean and
            unbiased variance [T, C].
    """

    rows: Sequence[Rows]
    counts: list[int]
    layout: RowLayout
    learns: bool
    kernels: Sequence[Sequence[Tensor]] = ()
    scales: Sequence[Tensor] = ()
    biases: Sequence[Tensor] = ()
    moments: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def gather(self, table: Tensor) -> Tensor:
        """[T, C] -> a row for each group of images: the tasks themselves where they have equally
        many images and a CPU runs them in blocks, else one for each image."""
        if table.device.type == "cpu" and len(set(self.counts)) == 1:
            return table
        return table.index_select(0, self.segments().to(table.device, non_blocking=True))

    def segments(self) -> Tensor:
        """int64 [N], on the CPU: the place in ``rows`` of each image's task."""
        places = torch.arange(len(self.counts))
        return torch.repeat_interleave(places, torch.tensor(self.counts))


class Current:
    """The pass that is running, for the layers; nothing between passes."""

    def __init__(self) -> None:
        self._now: Pass | None = None

    @property
    def now(self) -> Pass:
        """The running pass."""
        assert self._now is not None
        return self._now

    @contextmanager
    def set_to(self, now: Pass) -> Iterator[None]:
        """``now`` is running within the block."""
        self._now = now
        try:
            yield
        finally:
            self._now = None


class _MixedNorm(nn.Module):
    """In place of a normalisation, and of the activation function after it; what a derived class
    runs after normalising (`find_tail`) runs here too."""

    def __init__(
        self,
        current: Current,
        site: int,
        path: str,
        epsilon: float,
        limits: tuple[float, float] | None,
        tail: Tail,
    ) -> None:
        super().__init__()
        self._current, self._site = current, site
        self._path, self._epsilon, self._limits = path, epsilon, limits
        self._tail = tail

    def forward(self, x: Tensor) -> Tensor:
        scaled = self._scale(x)
        for one in self._tail:
            scaled = one(scaled)
        return scaled

    def _scale(self, x: Tensor) -> Tensor:
        now = self._current.now
        scale, bias = now.scales[self._site], now.biases[self._site]
        if not now.learns:
            return scale_groups(x, scale, bias, self._limits)
        pixels = x.shape[2] * x.shape[3]
        values = [count * pixels for count in now.counts]
        if min(values) < 2:
            raise PatchError(
                f"normalisation {self._path!r}: a task has 1 value a channel in the batch; batch "
                "statistics need at least 2; give each task 2 images or more, or larger images"
            )
        mean, var = segment_moments(x, now.counts)
        # Running variances are unbiased (torch's BatchNorm2d): n / (n - 1).
        if partners := find_partners():
            mean, var, unbiased = join_moments(mean, var, values, partners)
        else:
            unbiased = torch.tensor([n / (n - 1) for n in values]).to(x.device)[:, None]
        now.moments.append((self._path, mean.detach(), var.detach() * unbiased))
        folded = scale * torch.rsqrt(var + self._epsilon)
        shift = bias - mean * folded
        return scale_groups(x, now.gather(folded), now.gather(shift), self._limits)


class _MixedDepthwise(nn.Module):
    """In place of a depthwise convolution whose kernels the tasks own: one call a task."""

    def __init__(self, current: Current, conv: nn.Conv2d, site: int) -> None:
        super().__init__()
        self._current, self._site = current, site
        self._conv = [conv]  # in a list, so that it is no submodule

    def forward(self, x: Tensor) -> Tensor:
        now, conv = self._current.now, self._conv[0]
        return torch.cat(
            [
                _run_layer(conv, part, kernels[self._site], conv.bias)
                for part, kernels in zip(torch.split(x, now.counts), now.kernels, strict=True)
            ]
        )


class _MixedHead(nn.Module):
    """In place of the last layer: each task's own, padded to the largest with minus infinity."""

    def __init__(self, current: Current, layer: nn.Module) -> None:
        super().__init__()
        self._current = current
        self._layer = [layer]

    def forward(self, x: Tensor) -> Tensor:
        parts, now = [], self._current.now
        for part, row in zip(torch.split(x, now.counts), now.rows, strict=True):
            weight, bias = row[f"{HEAD}weight"], row.get(f"{HEAD}bias")
            parts.append(_run_layer(self._layer[0], part, weight, bias))
        widest = max(part.shape[1] for part in parts)
        return torch.cat([_pad(part, widest) for part in parts])


def _run_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``layer`` with another task's tensors; a derived class and hooks run as they are."""
    if type(layer) is nn.Conv2d and not is_hooked(layer):
        result: Tensor = layer._conv_forward(x, weight, bias)
        return result
    if type(layer) is nn.Linear and not is_hooked(layer):
        return functional.linear(x, weight, bias)
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    result = functional_call(layer, tensors, (x,))
    return result


def _pad(scores: Tensor, width: int) -> Tensor:
    missing = width - scores.shape[1]
    if not missing:
        return scores
    shape = (len(scores), missing, *scores.shape[2:])
    return torch.cat([scores, scores.new_full(shape, -torch.inf)], 1)


def mask_scores(scores: Tensor, now: Pass) -> Tensor:
    """Minus infinity beyond each task's classes, whatever ran after the head."""
    classes = [len(row[f"{HEAD}weight"]) for row in now.rows]
    if len(set(classes)) == 1:
        return scores
    each = torch.tensor(classes)[now.segments()]
    beyond = torch.arange(scores.shape[1]) >= each[:, None]
    return scores.masked_fill(beyond.to(scores.device), -torch.inf)


def pick(batch: Tensor, order: Tensor) -> Tensor:
    """``batch[order]``, in the same memory order."""
    order = order.to(batch.device)
    if batch.ndim == 4 and batch.is_contiguous(memory_format=torch.channels_last):
        return batch.permute(0, 2, 3, 1).index_select(0, order).permute(0, 3, 1, 2)
    return batch.index_select(0, order)


def build_structure(base: Base, layout: RowLayout, current: Current) -> nn.Module:
    """The base's modules over its own tensors, those that tasks own replaced.

    Raises:
        PatchError: a normalisation that does more than `find_tail` knows.
    """
    structure = share_structure(base.module).eval()
    modules = dict(structure.named_modules())
    sites = layout.sites
    activations = find_activations(structure, base.preprocessing.input_size)
    places: dict[nn.Module, nn.Module] = {}
    for site, path in enumerate(sites.norms):
        norm = modules[path]
        assert isinstance(norm, nn.BatchNorm2d)
        limits = None
        if norm in activations:
            activation, limits = activations[norm]
            places[activation] = nn.Identity()
        places[norm] = _MixedNorm(current, site, path, norm.eps, limits, find_tail(norm, path))
    for site, path in enumerate(sites.depthwise):
        conv = modules[path]
        assert isinstance(conv, nn.Conv2d)
        places[conv] = _MixedDepthwise(current, conv, site)
    for site, path in enumerate(sites.explicit, len(sites.norms)):
        module = places[modules[path]] if modules[path] in places else modules[path]
        module.register_forward_hook(_explicit_hook(current, site))
    places[modules[base.head_name]] = _MixedHead(current, modules[base.head_name])
    for parent in list(structure.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in places:
                setattr(parent, name, places[child])
    return structure


@torch.no_grad()
def find_activations(structure: nn.Module, side: int) -> Activations:
    """By normalisation: the ReLU, ReLU6 or Hardtanh that follows it, and its lowest and highest
    value. Only where nothing else can read what is between them: both stand in one nn.Sequential
    and nowhere else, and run when it runs and at no other time.

    Args:
        structure: in evaluation mode; runs once.
        side: of an image that it takes, in pixels.
    """
    parents = list(structure.modules())
    uses = Counter(child for parent in parents for child in parent._modules.values())
    pairs = [
        (parent, norm, activation, limits)
        for parent in parents
        if type(parent).forward is nn.Sequential.forward
        for norm, activation in pairwise(parent._modules.values())
        if norm is not None and is_plain_norm(norm) and uses[norm] == uses[activation] == 1
        if activation is not None and not is_hooked(activation)
        if (limits := _limits(activation)) is not None
    ]
    runs: Counter[nn.Module] = Counter()
    watched = {module for pair in pairs for module in pair[:3]}
    hooks = [one.register_forward_hook(lambda one, *_: runs.update([one])) for one in watched]
    try:
        structure(torch.zeros(1, 3, side, side, device=next(structure.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        norm: (activation, limits)
        for parent, norm, activation, limits in pairs
        if runs[parent] == runs[norm] == runs[activation] > 0
    }


def _limits(activation: nn.Module) -> tuple[float, float] | None:
    if type(activation) is nn.ReLU:
        return 0.0, math.inf
    if isinstance(activation, nn.Hardtanh) and type(activation) in (nn.ReLU6, nn.Hardtanh):
        return activation.min_val, activation.max_val
    return None


def _explicit_hook(current: Current, site: int) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        now = current.now
        scale, bias = now.scales[site], now.biases[site]
        if now.learns:  # scales of normalisations wait for the batch's statistics, these do not
            scale, bias = now.gather(scale), now.gather(bias)
        return scale_groups(output, scale, bias)

    return hook
