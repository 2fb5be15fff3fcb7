"""Batch statistics of a batch whose images several processes hold.

In: within `joined_with`, each process's own images. Out: normalisation by the mean and variance of
all images of the batch, forward and backward, so that a batch divided among ranks trains what the
whole batch trains (torch's SyncBatchNorm does this on GPUs alone, and not for several tasks).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from patchdeploy.patch.tails import Tail, find_tail


@dataclass(frozen=True)
class Partners:
    """The processes that hold parts of one batch, as one of them sees them.

    Attributes:
        place: of this process among them, 0 to count - 1.
        count: how many there are.
        add: makes a tensor its sum over all of them, in place; each calls it as often as the
            others, in the same order.
    """

    place: int
    count: int
    add: Callable[[Tensor], None]


_partners: ContextVar[Partners | None] = ContextVar("partners", default=None)


@contextmanager
def joined_with(partners: Partners | None) -> Iterator[None]:
    """Within the block batch statistics are those of all ``partners``; None for this process's
    own. A backward pass may run after the block."""
    token = _partners.set(partners)
    try:
        yield
    finally:
        _partners.reset(token)


def find_partners() -> Partners | None:
    """Whose images the statistics of the running batch are of; None: this process's alone."""
    return _partners.get()


@contextmanager
def normalizing_jointly(norms: Iterable[nn.Module]) -> Iterator[None]:
    """Within the block ``norms``, in training mode, normalise by all partners' images, where there
    are partners."""
    partners = find_partners()
    changed: list[Any] = []
    try:
        if partners is not None:
            for place, norm in enumerate(norms):
                run = partial(_normalize, norm, find_tail(norm, f"number {place}"), partners)
                changed.append(norm)
                changed[-1].forward = run
        yield
    finally:
        for norm in changed:
            del norm.forward


def join_moments(
    mean: Tensor, var: Tensor, values: Sequence[int], partners: Partners
) -> tuple[Tensor, Tensor, Tensor]:
    """Moments of all partners' values, from each one's own; the same bits in every process.

    With n_r values of mean m_r and biased variance v_r in process r, N = sum n_r:
    m = sum n_r m_r / N and v = sum n_r (v_r + (m_r - m)^2) / N (Chan, Golub, LeVeque 1983).

    Args:
        mean, var: float [T, C], of this process; gradients reach them.
        values: T numbers of values a channel, at least 1, of this process.

    Returns:
        mean and biased variance [T, C] in the dtype given, and N / (N - 1) [T, 1] in it, which
        makes that variance unbiased.
    """
    return _JoinMoments.apply(mean, var, list(values), partners)  # type: ignore[no-any-return]


class _JoinMoments(torch.autograd.Function):
    """`join_moments`, in float64; the joined moments' gradients in all processes count."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, var: Tensor, values: list[int], partners: Partners
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = torch.tensor(values, dtype=torch.float64, device=mean.device)[:, None]
        mine = torch.cat([count, mean.double(), var.double()], 1)
        all_parts = mine.new_zeros(partners.count, *mine.shape)
        all_parts[partners.place] = mine
        partners.add(all_parts)
        counts, means, variances = torch.split(all_parts, [1, mean.shape[1], mean.shape[1]], 2)
        total = counts.sum(0)
        shares = counts / total
        joined_mean = (shares * means).sum(0)
        joined_var = (shares * (variances + (means - joined_mean) ** 2)).sum(0)
        ctx.partners, ctx.share = partners, shares[partners.place]
        ctx.offset = means[partners.place] - joined_mean
        unbiased = (total / (total - 1)).to(var.dtype)
        ctx.mark_non_differentiable(unbiased)
        return joined_mean.to(mean.dtype), joined_var.to(var.dtype), unbiased

    @staticmethod
    def backward(ctx: Any, to_mean: Tensor, to_var: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # dm/dm_r = n_r / N; dv/dm_r = 2 n_r (m_r - m) / N (what comes through m is a multiple of
        # sum n_r (m_r - m), which is 0); dv/dv_r = n_r / N
        both = torch.stack([to_mean, to_var]).double()
        ctx.partners.add(both)
        all_mean, all_var = both
        own_mean = ctx.share * (all_mean + 2 * ctx.offset * all_var)
        return own_mean.to(to_mean.dtype), (ctx.share * all_var).to(to_var.dtype), None, None


def _normalize(norm: nn.Module, tail: Tail, partners: Partners, x: Tensor) -> Tensor:
    assert isinstance(norm, nn.BatchNorm2d)
    x = normalize_joined(norm, x, partners)
    for one in tail:
        x = one(x)
    return x


@torch.compiler.disable  # type: ignore[untyped-decorator]
def normalize_joined(norm: nn.BatchNorm2d, x: Tensor, partners: Partners) -> Tensor:
    """What ``norm`` makes of ``x`` [N, C, H, W] in training mode if the batch were in one process.

    Its running statistics learn as torch's do: momentum None is the plain average, and the running
    variance is the unbiased one.
    """
    own = x.to(torch.promote_types(x.dtype, torch.float32))
    own_var, own_mean = torch.var_mean(own, (0, 2, 3), correction=0)
    values = x.numel() // x.shape[1]
    mean, var, unbiased = join_moments(own_mean[None], own_var[None], [values], partners)
    _learn(norm, mean[0].detach(), (var * unbiased)[0].detach())
    scale = torch.rsqrt(var[0] + norm.eps)
    shift = -mean[0] * scale
    if norm.affine:
        scale, shift = scale * norm.weight, norm.bias + shift * norm.weight
    return (own * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


@torch.no_grad()
def _learn(norm: nn.BatchNorm2d, mean: Tensor, unbiased: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    share = batch_share(norm)
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(unbiased, share)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def batch_share(norm: nn.Module) -> float:
    """Of a batch in the running statistics; momentum None is a plain average, as torch counts."""
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.momentum is not None:
        return float(norm.momentum)
    counter = norm.num_batches_tracked
    assert isinstance(counter, Tensor)
    return 1.0 / (int(counter) + 1)
