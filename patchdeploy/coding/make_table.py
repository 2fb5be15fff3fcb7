"""The coding table of a base: its own scale, shift and kernel at every row.

In: a `QuantizedBase` with the float parameters of its graph. Out: a `CodingTable`. A row's real
bias follows its scale, b = beta + slope * weight_scale, because the normalisation subtracts its
mean before it scales (shared with `fold`: b = beta + (conv_bias - mu) * s); both numbers are read
off two foldings, one of the base and one with every scale doubled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.layout import patch_layout
from patchdeploy.coding.table import CodedConv, CodingTable
from patchdeploy.fold import fold_patch
from patchdeploy.graph import Conv2d, Graph, tied_values
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.quantize.variant import Affine, make_affines
from patchdeploy.reference import reference_sha256

HEAD_SCALE = np.float32(2.0**-7)
"""What head rows are coded against: no task's head is like another's."""
SMALLEST_SCALE = np.float32(2.0**-40)
"""Least reference of a row that the base itself switched off."""


def make_coding_table(base: QuantizedBase) -> CodingTable:
    """The table that every patch of ``base`` is coded against.

    A base without float parameters (one that was loaded from a bundle, whose own table should be
    used) refers to the shared kernels' scales and to shifts of 0: patches of it code larger.
    """
    graph = base.graph
    layout, ties = base.layout(), tied_values(graph)
    site = {name: k for k, name in enumerate(layout.sites)}
    convs = tuple(
        CodedConv(
            name=conv.name,
            rows=base.rows(conv.name),
            taps=int(np.prod(base.weights[conv.name].shape[1:])),
            x_index=site[ties[conv.input]],
            y_index=site[ties[conv.output]],
            owned=conv.name in base.patch_owned,
        )
        for conv in graph.convolutions()
    )
    once = twice = None
    if graph.parameters:
        once = make_affines(base, fold_patch(graph))
        twice = make_affines(base, fold_patch(graph, doubled_scales(graph)))
    rows = [_reference_rows(base, conv, once, twice) for conv in graph.convolutions()]
    scale, beta, slope = (np.concatenate(one) for one in zip(*rows, strict=True))
    owned = [_reference_kernel(base, conv, once) for conv in convs if conv.owned]
    return CodingTable(
        reference_sha256=reference_sha256(base),
        layout=patch_layout(base),
        output_index=site[ties[graph.output]],
        convs=convs,
        scale=scale,
        beta=beta,
        slope=slope,
        kernels=np.concatenate(owned),
    )


def doubled_scales(graph: Graph) -> dict[str, NDArray[Any]]:
    """A patch that doubles the effective scale of every convolution and moves no shift."""
    tensors: dict[str, NDArray[Any]] = {}
    for conv in graph.convolutions():
        if conv.norm is not None:
            key = f"{conv.norm.name}.weight"
            own = graph.parameters.get(key)
            tensors[key] = np.full(conv.out_channels, 2.0) if own is None else 2.0 * own
        elif not conv.is_constant:
            name = conv.module
            tensors[f"{name}.patch_scale"] = np.full(conv.out_channels, 2.0)
    return tensors


def _reference_rows(
    base: QuantizedBase,
    conv: Conv2d,
    once: Mapping[str, Affine] | None,
    twice: Mapping[str, Affine] | None,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """scale, beta, slope of one convolution."""
    rows = base.rows(conv.name)
    zeros = np.zeros(rows, np.float32)
    if conv.name == base.graph.head:
        return np.full(rows, HEAD_SCALE), zeros, zeros
    if once is None or twice is None:
        own = base.weight_scales[conv.name].astype(np.float32)
        return np.maximum(own, SMALLEST_SCALE), zeros, zeros
    first, second = once[conv.name], twice[conv.name]
    moved = second.step - first.step
    live = np.abs(moved) >= SMALLEST_SCALE
    exact = np.zeros(rows)
    np.divide(second.bias - first.bias, moved, out=exact, where=live)
    slope = exact.astype(np.float32)
    beta = first.bias - slope.astype(np.float64) * first.step
    scale = np.maximum(np.abs(first.step), SMALLEST_SCALE).astype(np.float32)
    return scale, beta.astype(np.float32), slope


def _reference_kernel(
    base: QuantizedBase, conv: CodedConv, once: Mapping[str, Affine] | None
) -> NDArray[np.int8]:
    if conv.name == base.graph.head or once is None:
        return np.zeros(conv.rows * conv.taps, np.int8)
    return once[conv.name].kernel.reshape(-1)
