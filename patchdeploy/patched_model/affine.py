"""A scale and a bias for each sample's own task, in the epilogue of a shared convolution.

In: activations of a batch whose images belong to several tasks, and a row of scales and biases for
each group of images. Out: the same activations scaled and shifted, with gradients for each row; or
the mean and variance of each task's images.

Why a function of its own: PyTorch's batch normalisation knows one row of scales for the whole
batch. Running it once a task costs a call a task and layer; the gathered multiply-add costs one
call, but its own gradient passes four times over memory. `_GroupAffine` goes through the batch in
blocks that stay in the processor's cache, takes the activation function after it along, and keeps
the convolution's output alone for the way back. On a GPU the plain expression is best: one launch
forward, four backward, and torch.compile fuses it with the activation after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

BLOCK_BYTES = 2 << 20
"""Of activations that one step works on: what a core's second-level cache holds. 1 to 4 MB were
equally fast within noise."""


def scale_groups(
    x: Tensor, scale: Tensor, shift: Tensor, limits: tuple[float, float] | None = None
) -> Tensor:
    """y[n, c] = scale[g, c] * x[n, c] + shift[g, c], where g = n // (N / G), within ``limits``.

    Args:
        x: [N, C, H, W], channels last or first in memory; G equal groups of images in a row.
        scale, shift: float32 [G, C]; G divides N. With G = N each image has a row of its own.
        limits: lowest and highest value of an activation function after it, as nn.Hardtanh has
            them: (0, 6) is ReLU6, (0, inf) is ReLU. At a limit the gradient is 0.

    Returns:
        As ``x`` in shape, type and memory order. Half-precision ``x`` is computed in float32.
    """
    assert len(x) % len(scale) == 0, (len(x), len(scale))
    plain = x.dtype != scale.dtype or x.device.type != "cpu" or torch.compiler.is_compiling()
    if not plain:
        result: Tensor = _GroupAffine.apply(x, scale, shift, limits)
        return result
    per_group = len(x) // len(scale)
    if per_group > 1:
        scale, shift = (one.repeat_interleave(per_group, 0) for one in (scale, shift))
    scaled = torch.addcmul(shift[:, :, None, None], x, scale[:, :, None, None])
    if limits is not None:
        scaled = functional.hardtanh(scaled, *limits, inplace=True)
    return scaled.to(x.dtype)


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
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, limits: tuple[float, float] | None
    ) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        x = x if last else x.contiguous()
        ctx.save_for_backward(x, scale, shift)
        ctx.last, ctx.limits = last, limits
        out = torch.empty_like(x)
        for rows, made, row_scale, row_shift in _blocks((x, out), (scale, shift), last):
            torch.addcmul(row_shift, rows, row_scale, out=made)
            if limits is not None:
                made.clamp_(*limits)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """dx = scale * g; dscale = sum of g x and dshift = sum of g, over each group's images and
        pixels, with g the gradient where the result is within the limits, else 0.
        """
        x, scale, shift = ctx.saved_tensors
        order = torch.channels_last if ctx.last else torch.contiguous_format
        grad = grads[0].contiguous(memory_format=order)
        grad_x = torch.empty_like(x)
        axes = (1,) if ctx.last else (1, 3)
        sums = []
        for g, rows, out, row_scale, row_shift in _blocks(
            (grad, x, grad_x), (scale, shift), ctx.last
        ):
            if ctx.limits is not None:
                scaled = torch.addcmul(row_shift, rows, row_scale, out=out)
                g = torch.ops.aten.hardtanh_backward(g, scaled, *ctx.limits)
            dshift = g.sum(axes)
            sums.append((torch.mul(g, rows, out=out).sum(axes), dshift))
            if ctx.needs_input_grad[0]:
                torch.mul(g, row_scale, out=out)
        groups = len(scale)
        dscale, dshift = (
            torch.cat(one).reshape(groups, -1, x.shape[1]).sum(1) for one in zip(*sums, strict=True)
        )
        return (grad_x if ctx.needs_input_grad[0] else None), dscale, dshift, None


def _blocks(
    activations: Sequence[Tensor], tables: Sequence[Tensor], last: bool
) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same block of all activations (`_rows`) and tables (`_beside`), block by block.

    A block is all groups where the whole fits into `BLOCK_BYTES`, whole groups where one of them
    does, else single images, each with its group's row of the tables.
    """
    x, groups = activations[0], len(tables[0])
    parts = 1 if x.nbytes // groups <= BLOCK_BYTES else len(x) // groups
    blocks = groups * parts
    per_step = max(1, BLOCK_BYTES * blocks // x.nbytes)
    views = [_rows(one, blocks, last) for one in activations]
    for table in tables:
        views.append(_beside(table if parts == 1 else table.repeat_interleave(parts, 0), last))
    return zip(*(torch.split(one, per_step) for one in views), strict=True)


def _rows(x: Tensor, blocks: int, last: bool) -> Tensor:
    """A view in memory order: [blocks, images * H * W, C], or [blocks, images, C, H * W]."""
    _, channels, height, width = x.shape
    if last:
        return x.permute(0, 2, 3, 1).view(blocks, -1, channels)
    return x.view(blocks, -1, channels, height * width)


def _beside(rows: Tensor, last: bool) -> Tensor:
    """[blocks, C] so that it broadcasts over `_rows`."""
    return rows[:, None] if last else rows[:, None, :, None]
