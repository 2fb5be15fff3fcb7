"""A scale and a bias for each sample's own task, in the epilogue of a shared convolution.

In: activations of a batch whose images belong to several tasks, and a row of scales and biases for
each group of images. Out: the same activations scaled and shifted, with gradients for each row; or
the mean and variance of each task's images.

Why a function of its own: PyTorch's batch normalisation knows one row of scales for the whole
batch. Running it once a task costs a call a task and layer; the gathered multiply-add costs one
call, but its own gradient passes four times over memory. `_GroupAffine` goes through the batch in
blocks that stay in the processor's cache. On a GPU the plain expression is best: one launch
forward, four backward, and torch.compile fuses it with the activation after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK_BYTES = 2 << 20
"""Of activations that one step of the backward pass works on: what a core's second-level cache
holds. 1 to 4 MB were equally fast within noise."""


def scale_groups(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """y[n, c] = scale[g, c] * x[n, c] + shift[g, c], where g = n // (N / G).

    Args:
        x: [N, C, H, W], channels last or first in memory; G equal groups of images in a row.
        scale, shift: float32 [G, C]; G divides N. With G = N each image has a row of its own.

    Returns:
        As ``x`` in shape, type and memory order. Half-precision ``x`` is computed in float32.
    """
    assert len(x) % len(scale) == 0, (len(x), len(scale))
    plain = x.dtype != scale.dtype or x.device.type != "cpu" or torch.compiler.is_compiling()
    if not plain:
        result: Tensor = _GroupAffine.apply(x, scale, shift)
        return result
    per_group = len(x) // len(scale)
    if per_group > 1:
        scale, shift = (one.repeat_interleave(per_group, 0) for one in (scale, shift))
    return torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None]).to(x.dtype)


def segment_moments(x: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [T, C] over the images and pixels of each segment.

    Args:
        x: [N, C, H, W]; ``counts[t]`` images in a row belong to segment t, and sum to N.
    """
    x = x.float()
    if len(set(counts)) == 1:
        parts = x.reshape(len(counts), counts[0], *x.shape[1:])
        var, mean = torch.var_mean(parts, (1, 3, 4), correction=0)
        return mean, var
    pairs = [torch.var_mean(part, (0, 2, 3), correction=0) for part in torch.split(x, list(counts))]
    return torch.stack([mean for _, mean in pairs]), torch.stack([var for var, _ in pairs])


class _GroupAffine(torch.autograd.Function):
    """`scale_groups` on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        x = x if last else x.contiguous()
        ctx.save_for_backward(x, scale)
        ctx.last = last
        out = torch.empty_like(x)
        rows = _rows(x, len(scale), last)
        beside = (_beside(shift, last), rows, _beside(scale, last))
        torch.addcmul(*beside, out=_rows(out, len(scale), last))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        order = torch.channels_last if ctx.last else torch.contiguous_format
        grad = grads[0].contiguous(memory_format=order)
        return _gradients(x, scale, grad, ctx.last, ctx.needs_input_grad[0])


def _gradients(
    x: Tensor, scale: Tensor, grad: Tensor, last: bool, wants_x: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """dx = scale * g; dscale = sum of g x and dshift = sum of g, over each group's images and
    pixels.

    Block by block: all at once where the whole fits into `BLOCK_BYTES`, whole groups where one of
    them does, else single images, whose sums are then added up.
    """
    groups = len(scale)
    grad_x = torch.empty_like(x)
    if x.nbytes <= BLOCK_BYTES:
        g, rows, out = (_rows(one, groups, last) for one in (grad, x, grad_x))
        sums = _block_gradients(g, rows, out, _beside(scale, last), last, wants_x)
        return (grad_x if wants_x else None), *sums
    parts = 1 if x.nbytes // groups <= BLOCK_BYTES else len(x) // groups
    blocks = groups * parts
    per_step = max(1, BLOCK_BYTES // (x.nbytes // blocks))
    scales = scale if parts == 1 else scale.repeat_interleave(parts, 0)
    steps = zip(
        *(torch.split(_rows(one, blocks, last), per_step) for one in (grad, x, grad_x)),
        torch.split(_beside(scales, last), per_step),
        strict=True,
    )
    found = [_block_gradients(g, v, out, row, last, wants_x) for g, v, out, row in steps]
    dscale, dshift = (torch.cat(one) for one in zip(*found, strict=True))
    if parts > 1:
        dscale, dshift = (one.reshape(groups, parts, -1).sum(1) for one in (dscale, dshift))
    return (grad_x if wants_x else None), dscale, dshift


def _block_gradients(
    grad: Tensor, x: Tensor, out: Tensor, scale: Tensor, last: bool, wants_x: bool
) -> tuple[Tensor, Tensor]:
    """(dscale, dshift) of each group; ``out`` is where g x is held, and then dx."""
    axes = (1,) if last else (1, 3)
    dshift = grad.sum(axes)
    dscale = torch.mul(grad, x, out=out).sum(axes)
    if wants_x:
        torch.mul(grad, scale, out=out)
    return dscale, dshift


def _rows(x: Tensor, blocks: int, last: bool) -> Tensor:
    """A view in memory order: [blocks, images * H * W, C], or [blocks, images, C, H * W]."""
    _, channels, height, width = x.shape
    if last:
        return x.permute(0, 2, 3, 1).view(blocks, -1, channels)
    return x.view(blocks, -1, channels, height * width)


def _beside(rows: Tensor, last: bool) -> Tensor:
    """[blocks, C] so that it broadcasts over `_rows`."""
    return rows[:, None] if last else rows[:, None, :, None]
