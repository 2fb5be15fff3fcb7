"""The base's integers, made once: every task and every resolution runs on these bytes.

In: a lowered `Graph` with its float parameters. Out: a `QuantizedBase`. Kernels are quantised
before any scale is applied, W[c] ~ w_scale[c] * q[c]; a task multiplies w_scale[c] and never
touches q. Where the base's own scale is negative, the row is stored negated, so that the
product of signs that a task usually has is positive.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import HeadCapacityError, QuantizationError
from patchdeploy.fold import FoldedConv, FoldedNetwork, check_after_head, fold_patch
from patchdeploy.graph import Conv2d, Graph
from patchdeploy.quantize.model import Float32Array, Int8Array, QuantizedBase

WEIGHT_MAX = 127
WEIGHT_SCALE_FLOOR = np.float32(2.0**-100)
"""Scale of a row whose kernel is all zeros (or below 2^-93): positive and normal."""


def quantize_base(
    graph: Graph, head_capacity: int, patch_owned_depthwise: bool = False
) -> QuantizedBase:
    """Quantise the kernels of ``graph`` with its own parameters.

    Args:
        head_capacity: rows of the exported head, the most classes that a task may have.
        patch_owned_depthwise: make every depthwise kernel a slot that tasks bring along.

    Raises:
        HeadCapacityError: ``head_capacity`` is below 1.
        QuantizationError: a kernel that is not finite.
    """
    return quantize_folded_base(fold_patch(graph), head_capacity, patch_owned_depthwise)


def quantize_folded_base(
    network: FoldedNetwork, head_capacity: int, patch_owned_depthwise: bool = False
) -> QuantizedBase:
    """`quantize_base` of a base that was folded without a patch."""
    if head_capacity < 1:
        raise HeadCapacityError(
            f"head capacity {head_capacity}; the exported head needs at least 1 row; pass the "
            "largest number of classes that a task will have"
        )
    graph = network.graph
    check_after_head(graph, head_capacity)
    weights: dict[str, Int8Array] = {}
    weight_scales: dict[str, Float32Array] = {}
    owned = set()
    for conv in graph.convolutions():
        folded = network.convs[conv.name]
        if is_patch_owned(graph, conv, patch_owned_depthwise):
            owned.add(conv.name)
            rows = head_capacity if conv.name == graph.head else len(folded.weight)
            weights[conv.name] = np.zeros((rows, *folded.weight.shape[1:]), np.int8)
            weight_scales[conv.name] = np.ones(rows, np.float32)
        else:
            weights[conv.name], weight_scales[conv.name] = _quantize_oriented(conv, folded)
    return QuantizedBase(
        graph=graph,
        weights=weights,
        weight_scales=weight_scales,
        patch_owned=frozenset(owned),
        head_capacity=head_capacity,
        input_zero_point=network.input_offset - 128,
    )


def is_patch_owned(graph: Graph, conv: Conv2d, patch_owned_depthwise: bool) -> bool:
    """Whether tasks bring the kernel of ``conv``: the head; depthwise ones if asked."""
    depthwise = patch_owned_depthwise and conv.is_depthwise and not conv.is_constant
    return conv.name == graph.head or depthwise


def quantize_kernel(name: str, weight: NDArray[np.float32]) -> tuple[Int8Array, Float32Array]:
    """Symmetric int8 per output channel: q = round(127 W / max|W|), scale = max|W| / 127.

    Rounds half to even in float64, so that a row times a power of two gives the same q. A row
    of zeros gets q = 0 and `WEIGHT_SCALE_FLOOR`.

    Args:
        name: of the convolution, for messages.
        weight: float32 [O, kh, kw, I/groups].

    Returns:
        int8 [O, kh, kw, I/groups] in [-127, 127], float32 [O], positive and normal.

    Raises:
        QuantizationError: NaN or infinity in ``weight``.
    """
    flat = weight.reshape(len(weight), -1)
    peak = np.max(np.abs(flat), axis=1, initial=0.0).astype(np.float64)
    if not np.isfinite(peak).all():
        rows = np.flatnonzero(~np.isfinite(peak))
        raise QuantizationError(
            f"kernel of {name!r} has NaN or infinity in row {rows[0]} ({rows.size} such rows); "
            "every weight must be finite; restore the checkpoint or train again"
        )
    peak = np.maximum(peak, WEIGHT_MAX * float(WEIGHT_SCALE_FLOOR))
    codes = np.rint(flat * (WEIGHT_MAX / peak)[:, None]).astype(np.int8)
    return codes.reshape(weight.shape), (peak / WEIGHT_MAX).astype(np.float32)


def _quantize_oriented(conv: Conv2d, folded: FoldedConv) -> tuple[Int8Array, Float32Array]:
    """`quantize_kernel`, rows with a negative scale of the base's own negated."""
    codes, scales = quantize_kernel(conv.name, folded.weight)
    return orient(codes, np.where(folded.scale < 0, -1, 1)), scales


def orient(codes: Int8Array, signs: NDArray[np.int64]) -> Int8Array:
    """int8 rows times ``signs`` (+1 or -1, [O]); codes lie in [-127, 127], so none overflows."""
    if (signs > 0).all():
        return codes
    return codes * signs.astype(np.int8).reshape(-1, 1, 1, 1)


def row_signs(codes: Int8Array, weight: NDArray[np.float32]) -> NDArray[np.int64]:
    """+1 where a row of ``codes`` points the way of ``weight``, -1 where it is negated; int64 [O].

    Read off the largest element of each row; a row of zeros counts as +1.
    """
    flat_codes, flat_weight = codes.reshape(len(codes), -1), weight.reshape(len(weight), -1)
    peak = np.argmax(np.abs(flat_codes), axis=1)[:, None]
    product = np.take_along_axis(flat_codes, peak, 1) * np.take_along_axis(flat_weight, peak, 1)
    return np.where(product[:, 0] < 0, -1, 1)
