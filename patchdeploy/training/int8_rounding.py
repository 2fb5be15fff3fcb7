"""The rounding steps of the int8 network, with gradients that pass straight through them.

In: float tensors. Out: whole numbers in float tensors, rounded half to even and clipped as the
integer executor does. Backward, rounding counts as the identity (Bengio et al. 2013, arXiv
1308.3432, the straight-through estimator) and what was clipped gets no gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

Context = Any
"""What autograd hands to both passes of a function; torch gives it no type."""


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor) -> Tensor:
        return torch.round(values)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        return grad


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, value: Tensor, surrogate: Tensor) -> Tensor:
        ctx.dtype = surrogate.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad.to(ctx.dtype)


class _RoundClip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.bounds = low, high
        return values.clamp(low, high).round_().float()

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, None, None]:
        (values,) = ctx.saved_tensors
        return _inside(grad.to(values.dtype), values, ctx.bounds), None, None


class _Requantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        accumulator: Tensor,
        multiplier: Tensor,
        bias: Tensor,
        low: float,
        high: float,
        passes: bool,
    ) -> Tensor:
        ctx.save_for_backward(accumulator, multiplier)
        ctx.bounds = (-math.inf, math.inf) if passes else (low, high)
        ctx.bias_dtype = bias.dtype
        return (accumulator * _rows(multiplier)).clamp_(low, high).round_()

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        accumulator, multiplier = ctx.saved_tensors
        grad = _inside(grad, accumulator * _rows(multiplier), ctx.bounds)
        # y = m * x is a normalisation in evaluation mode with mean 0 and variance 1: torch's
        # backward of that takes all three sums in one pass over memory.
        zero, one = torch.zeros_like(multiplier), torch.ones_like(multiplier)
        to_accumulator, to_multiplier, to_bias = torch.ops.aten.native_batch_norm_backward(
            grad, accumulator, multiplier, zero, one, None, None, False, 0.0, [True, True, True]
        )
        to_bias = (to_bias * multiplier).to(ctx.bias_dtype)
        return to_accumulator, to_multiplier, to_bias, None, None, None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, index: Tensor, steps: Tensor, table: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(index, slope)
        return table[index]

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[None, Tensor, None, None]:
        index, slope = ctx.saved_tensors
        return None, grad * slope[index], None, None


def _rows(vector: Tensor) -> Tensor:
    """[O] against [N, O, H, W]."""
    return vector.reshape(1, -1, 1, 1)


def _inside(grad: Tensor, values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """``grad`` where ``values`` lie strictly between the bounds, else 0."""
    inside: Tensor = torch.ops.aten.hardtanh_backward(grad, values, *bounds)
    return inside


def round_through(values: Tensor) -> Tensor:
    """``values`` rounded half to even; the gradient is that of the identity."""
    rounded: Tensor = _Round.apply(values)
    return rounded


def replace_value(value: Tensor, surrogate: Tensor) -> Tensor:
    """``value``, bit for bit; the gradient goes to ``surrogate``, which it stands for."""
    replaced: Tensor = _Replace.apply(value, surrogate)
    return replaced


def round_clip(values: Tensor, low: float, high: float) -> Tensor:
    """float32 clip(round(values), low, high), bounds whole; no gradient where it clips."""
    steps: Tensor = _RoundClip.apply(values, low, high)
    return steps


def requantize_through(
    accumulator: Tensor,
    multiplier: Tensor,
    bias: Tensor,
    low: float,
    high: float,
    passes: bool = False,
) -> Tensor:
    """clip(round(accumulator * multiplier[c]), low, high): `arithmetic.requantize` in steps.

    Args:
        accumulator: float32 [N, O, H, W], whole numbers, the bias in them.
        multiplier: float32 [O].
        bias: [O], as added to the accumulator by an operation that was not told to find its
            gradient: torch's convolution on a CPU finds the kernel's, too, when asked for that.
        low, high: bounds in steps from the output's zero point.
        passes: let gradients through where it clips, too.
    """
    steps: Tensor = _Requantize.apply(accumulator, multiplier, bias, low, high, passes)
    return steps


def look_up(steps: Tensor, first: float, table: Tensor, slope: Tensor) -> Tensor:
    """``table`` at each of ``steps``, whose least value is ``first``; gradient ``slope``.

    Args:
        steps: float32, whole numbers in [first, first + 255].
        table, slope: float32 [256].
    """
    index = (steps.detach() - first).to(torch.int64)
    found: Tensor = _Lookup.apply(index, steps, table, slope)
    return found
