"""From a patch's tensors to the scales and biases of every int8 row, with gradients.

In: a `QuantizedBase` and a patch's tensors by state-dict name. Out: per convolution the kernel's
codes, the requantisation multipliers and the biases, the same bits as `fold.fold_patch` and
`quantize.variant` give, but differentiable: rounding passes gradients straight through, and a
bound that makes a row safe for a runtime counts as the identity.

All rows of the network are computed as one flat vector, in float64 as the NumPy code does; a
mobile network has fifty convolutions, and fifty times thirty small operations would cost more
than the convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdeploy.errors import UnsupportedOperatorError
from patchdeploy.fold import FoldedNetwork, fold_patch, input_correction
from patchdeploy.graph import Conv2d, Graph
from patchdeploy.quantize.base import WEIGHT_MAX, WEIGHT_SCALE_FLOOR, row_signs
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.quantize.rows import INT32_MAX, MULTIPLIER_FLOOR, ROUND_UP
from patchdeploy.training.int8_rounding import replace_value, round_through

PARTS = 7
"""Vectors that make one convolution's scale and bias: see `_vectors`."""


@dataclass(frozen=True)
class Taps:
    """The kernel of one convolution as its rows need it.

    Attributes:
        kernel: float32 [O, I/groups, kh, kw], whole numbers in [-127, 127].
        weight_scale: float64 [O] > 0, of the kernel before any patch.
        signs: float64 [O], +1 or -1: how the row is stored against the float kernel.
        positive, negative: float64 [O], sums of the row's codes of that sign.
        reach: float64 [O], all equal: 255 * max over rows of sum|q|.
    """

    kernel: Tensor
    weight_scale: Tensor
    signs: Tensor
    positive: Tensor
    negative: Tensor
    reach: Tensor


@dataclass(frozen=True)
class RowStructure:
    """What stays the same while a patch over one base is trained.

    Attributes:
        convs: in graph order.
        rows: of each convolution; the head counts the task's classes.
        vectors: of each convolution, the state-dict name (None where there is no such tensor)
            and the base's value, float32 [O], of the seven vectors of `_vectors`.
        taps: of the convolutions whose kernel the base owns.
        eps, divisor, offset, correction: float64 [all rows]: of the normalisation, of a
            hard sigmoid (else 1 and 0), and `fold.input_correction` of what reads the image.
        x_site, y_site: int64 [all rows]: activation site of the input and of the output.
        kernels: of the convolutions whose kernel the task owns, the base's, float32.
    """

    convs: tuple[Conv2d, ...]
    rows: tuple[int, ...]
    vectors: tuple[tuple[tuple[str | None, Tensor], ...], ...]
    taps: Mapping[str, Taps]
    eps: Tensor
    divisor: Tensor
    offset: Tensor
    correction: Tensor
    x_site: Tensor
    y_site: Tensor
    kernels: Mapping[str, Tensor]


@dataclass(frozen=True)
class ConvRows:
    """One convolution, ready to run on steps (code - zero point).

    Attributes:
        kernel: float32 [O, I/groups, kh, kw], whole numbers.
        weight_scale: float32 [O] > 0.
        bias: float64 [O], whole numbers in the int32 range.
        multiplier: float32 [O]: (x_scale * weight_scale) / y_scale.
        sum: float64 [O], sum|q|.
    """

    kernel: Tensor
    weight_scale: Tensor
    bias: Tensor
    multiplier: Tensor
    sum: Tensor


def build_rows(base: QuantizedBase, classes: int, device: torch.device) -> RowStructure:
    """Lay out ``base``, whose graph holds its float parameters, for a task of ``classes``.

    Raises:
        UnsupportedOperatorError: the task would own the kernel that reads the image.
    """
    graph, network = base.graph, fold_patch(base.graph)
    convs = tuple(graph.convolutions())
    rows = tuple(classes if c.name == graph.head else len(base.weights[c.name]) for c in convs)
    layout = base.layout()

    def flat(values: Sequence[float | NDArray[np.float64]], dtype: torch.dtype) -> Tensor:
        parts = [np.broadcast_to(v, (count,)) for v, count in zip(values, rows, strict=True)]
        return torch.tensor(np.concatenate(parts), dtype=dtype, device=device)

    hard = [conv.activation == "hard_sigmoid" for conv in convs]
    sites = layout.activation_index
    owned = [conv for conv in convs if conv.name in base.patch_owned]
    shared = [conv for conv in convs if conv.name not in base.patch_owned]
    return RowStructure(
        convs=convs,
        rows=rows,
        vectors=tuple(
            _vectors(graph, c, count, device) for c, count in zip(convs, rows, strict=True)
        ),
        taps={conv.name: _shared_taps(base, network, conv, device) for conv in shared},
        eps=flat([conv.norm.eps if conv.norm else 0.0 for conv in convs], torch.float64),
        divisor=flat([6.0 if one else 1.0 for one in hard], torch.float64),
        offset=flat([0.5 if one else 0.0 for one in hard], torch.float64),
        correction=flat([_correction(base, network, c) for c in convs], torch.float64),
        x_site=flat([sites[conv.input] for conv in convs], torch.int64),
        y_site=flat([sites[conv.output] for conv in convs], torch.int64),
        kernels={
            conv.name: torch.tensor(graph.parameters[conv.weight], device=device) for conv in owned
        },
    )


def _vectors(
    graph: Graph, conv: Conv2d, rows: int, device: torch.device
) -> tuple[tuple[str | None, Tensor], ...]:
    """patch_scale, patch_bias, bias, gamma, beta, mu, var: what they are called, and the base's
    values; 1 or 0, the neutral one, for what the convolution has not.
    """
    module = conv.module
    norm = conv.norm.name if conv.norm else None
    named: list[tuple[str | None, float]] = [
        (f"{module}.patch_scale", 1.0),
        (f"{module}.patch_bias", 0.0),
        (conv.bias, 0.0),
        (norm and f"{norm}.weight", 1.0),
        (norm and f"{norm}.bias", 0.0),
        (norm and f"{norm}.running_mean", 0.0),
        (norm and f"{norm}.running_var", 1.0),
    ]
    assert len(named) == PARTS
    found = []
    for key, neutral in named:
        value = np.full(rows, neutral, np.float32)
        given = graph.parameters.get(key or "")
        if given is not None and len(given) == rows:
            value = given
        found.append((key, torch.tensor(value, device=device)))
    return tuple(found)


def _correction(
    base: QuantizedBase, network: FoldedNetwork, conv: Conv2d
) -> float | NDArray[np.float64]:
    if conv.input != base.graph.input:
        return 0.0
    if conv.name in base.patch_owned:
        raise UnsupportedOperatorError(
            f"convolution {conv.name!r} reads the image and its kernel belongs to the task; "
            "training through int8 or with rounding_step or size_penalty needs a first kernel that "
            "the base owns; train this task without these settings, or without kind 'depthwise'"
        )
    return input_correction(base.graph, conv, network.convs[conv.name].weight)


def _shared_taps(
    base: QuantizedBase, network: FoldedNetwork, conv: Conv2d, device: torch.device
) -> Taps:
    codes = base.weights[conv.name]
    kernel = torch.tensor(codes, dtype=torch.float32, device=device).permute(0, 3, 1, 2)
    signs = row_signs(codes, network.convs[conv.name].weight).astype(np.float64)
    scale = base.weight_scales[conv.name].astype(np.float64)
    return _measure(
        kernel.contiguous(memory_format=torch.channels_last),
        torch.tensor(scale, device=device),
        torch.tensor(signs, device=device),
    )


def _measure(kernel: Tensor, weight_scale: Tensor, signs: Tensor) -> Taps:
    flat = kernel.detach().flatten(1).double()
    positive, negative = flat.clamp(min=0).sum(1), flat.clamp(max=0).sum(1)
    reach = 255.0 * (positive - negative).amax().expand(len(flat))
    return Taps(kernel, weight_scale, signs, positive, negative, reach)


def _owned_taps(conv: Conv2d, weight: Tensor, scale: Tensor) -> Taps:
    """`quantize.base.quantize_kernel` and `orient` of the task's own kernel.

    q = round(127 W / max|W|) passes gradients through; the step max|W| / 127 counts as constant.
    """
    kernel = weight.reshape(len(weight), -1, *conv.kernel)
    floor = WEIGHT_MAX * float(WEIGHT_SCALE_FLOOR)
    peak = kernel.detach().flatten(1).abs().amax(1).double().clamp(min=floor)
    codes = round_through(kernel.double() * (WEIGHT_MAX / peak).reshape(-1, 1, 1, 1))
    signs = torch.where(scale.detach() < 0, -1.0, 1.0).double()
    codes = (codes * signs.reshape(-1, 1, 1, 1)).float()
    return _measure(codes, (peak / WEIGHT_MAX).float().double(), signs)


def effective_affine(
    structure: RowStructure, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """s and b of all rows, float64, as `fold.fold_patch` computes them (see there)."""
    columns = [
        torch.cat(
            [default if key is None else tensors.get(key, default) for key, default in column]
        ).double()
        for column in zip(*structure.vectors, strict=True)
    ]
    patch_scale, patch_bias, conv_bias, gamma, beta, mean, variance = columns
    factor = gamma / torch.sqrt(variance + structure.eps)
    bias = beta + (conv_bias * patch_scale + patch_bias - mean) * factor
    scale = patch_scale * factor
    bias = bias - scale * structure.correction
    return scale / structure.divisor, bias / structure.divisor + structure.offset


def row_steps(
    structure: RowStructure, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor, list[Taps]]:
    """Step and bias of all rows, float64, before they are made safe for a runtime, and the taps of
    each convolution: `quantize.variant.make_affines`. A step is weight_scale * s.
    """
    scale, bias = effective_affine(structure, tensors)
    taps = dict(structure.taps)
    for conv, own_scale in zip(structure.convs, _by_conv(structure, scale), strict=True):
        if conv.name in structure.kernels:
            weight = tensors.get(conv.weight, structure.kernels[conv.name])
            taps[conv.name] = _owned_taps(conv, weight, own_scale)
    ordered = [taps[conv.name] for conv in structure.convs]
    weight_scale = torch.cat([one.weight_scale for one in ordered])
    return weight_scale * scale * torch.cat([one.signs for one in ordered]), bias, ordered


def compute_rows(
    structure: RowStructure, tensors: Mapping[str, Tensor], scales: Tensor, zero_points: Tensor
) -> dict[str, ConvRows]:
    """Every convolution of the network with ``tensors`` folded in, by name.

    Args:
        tensors: of a patch, float32, by state-dict name; what it has not is the base's.
        scales, zero_points: float32 [activation sites].
    """
    step, bias, ordered = row_steps(structure, tensors)
    weight_scale, bias = _quantize_rows(structure, ordered, step, bias, (scales, zero_points))
    multiplier = scales[structure.x_site] * weight_scale / scales[structure.y_site]
    pieces = zip(
        structure.convs,
        ordered,
        *(_by_conv(structure, vector) for vector in (weight_scale, bias, multiplier)),
        strict=True,
    )
    return {
        conv.name: ConvRows(one.kernel, scale, bias, multiplier, one.positive - one.negative)
        for conv, one, scale, bias, multiplier in pieces
    }


def _by_conv(structure: RowStructure, flat: Tensor) -> tuple[Tensor, ...]:
    return torch.split(flat, list(structure.rows))


def _quantize_rows(
    structure: RowStructure,
    taps: Sequence[Taps],
    step: Tensor,
    bias: Tensor,
    params: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """`quantize.rows.quantize_rows` of all convolutions: float32 scales, whole float64 biases."""
    x_scale, y_scale = (params[0][site].double() for site in (structure.x_site, structure.y_site))
    x_zero, y_zero = (params[1][site].double() for site in (structure.x_site, structure.y_site))
    reach = torch.cat([one.reach for one in taps])
    limit = INT32_MAX - 3 * reach
    fixed = step.detach()
    swing = fixed.abs() * x_scale * reach + 2.0 * y_scale
    low, high = (-128 - y_zero) * y_scale, (127 - y_zero) * y_scale
    bias = replace_value(bias.detach().clamp(low - swing, high + swing), bias)
    needed = bias.detach().abs() / (x_scale * limit)
    floor = torch.maximum(needed, MULTIPLIER_FLOOR * y_scale / x_scale) * ROUND_UP
    weight_scale = replace_value(torch.maximum(fixed.abs(), floor).float(), step)
    scale = weight_scale.double()
    units = bias / (x_scale * scale)
    excess = torch.where(fixed < floor, 1.0 - fixed / scale.detach(), 0.0)
    return weight_scale, round_through(units - excess * _middle(taps, x_zero))


def _middle(taps: Sequence[Taps], zero_point: Tensor) -> Tensor:
    """Middle of what sum(q * (x - zero_point)) reaches over every int8 x; float64."""
    positive = torch.cat([one.positive for one in taps])
    negative = torch.cat([one.negative for one in taps])
    least, most = -128.0 - zero_point, 127.0 - zero_point
    return (positive * least + negative * most + (positive * most + negative * least)) / 2
