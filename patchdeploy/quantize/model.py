"""The quantised values that everything after calibration works on.

`QuantizedBase` is made once per base and never changes: int8 kernels and the graph.
`QuantizedVariant` is what one task at one resolution adds: per-channel weight scales, int32
biases, activation parameters, and the int8 kernels that the task owns (its head, and its
depthwise kernels where the base was quantised with them as slots).

The int8 domain is [-128, 127] for activations and [-127, 127] for weights; a runtime that
wants uint8 activations adds 128 to integers and zero points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.graph import Graph, Pointwise, tied_values
from patchdeploy.slots import PatchValues

Int8Array = NDArray[np.int8]
Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]

SIGMOID_SCALE = np.float32(1.0 / 256.0)
"""LiteRT's LOGISTIC fixes its int8 output to scale 1/256, zero point -128."""


@dataclass(frozen=True)
class ActivationParams:
    """real = scale * (q - zero_point), q int8; scale float32, positive and normal."""

    scale: np.float32
    zero_point: int


@dataclass(frozen=True)
class QuantizedBase:
    """The integers that every task and every resolution share.

    Attributes:
        graph: the lowered base; ``graph.parameters`` may be empty after loading from a bundle.
        weights: int8 [O, kh, kw, I/groups] by convolution name, the head padded to
            ``head_capacity`` rows; entries of ``patch_owned`` are placeholders (zeros).
        weight_scales: float32 [O]: W[c] ~ weight_scales[c] * weights[c], before any patch.
        patch_owned: convolutions whose int8 kernel every task brings along (always the head).
        head_capacity: rows of the head; tasks with fewer classes have the rest masked out.
        input_zero_point: of the uint8 input, minus 128: the int8 that zero padding pads with.
    """

    graph: Graph
    weights: Mapping[str, Int8Array]
    weight_scales: Mapping[str, Float32Array]
    patch_owned: frozenset[str]
    head_capacity: int
    input_zero_point: int

    def activation_sites(self) -> tuple[str, ...]:
        """Representatives of the values that carry activation parameters, in graph order."""
        ties = tied_values(self.graph)
        return tuple(dict.fromkeys(ties[value] for value in self.graph.channels))

    def rows(self, conv: str) -> int:
        """Output channels of convolution ``conv`` (the head counts its capacity)."""
        return int(self.weights[conv].shape[0])

    def layout(self) -> FlatLayout:
        """Where each site starts in the arrays of `PatchValues`."""
        row_start: dict[str, int] = {}
        weight_start: dict[str, int] = {}
        rows = elements = 0
        for conv in self.graph.convolutions():
            row_start[conv.name] = rows
            rows += self.rows(conv.name)
            if conv.name in self.patch_owned:
                weight_start[conv.name] = elements
                elements += self.weights[conv.name].size
        sites = self.activation_sites()
        ties = tied_values(self.graph)
        index = {site: k for k, site in enumerate(sites)}
        activation_index = {value: index[ties[value]] for value in self.graph.channels}
        return FlatLayout(row_start, rows, weight_start, elements, activation_index, sites)


@dataclass(frozen=True)
class FlatLayout:
    """Site order of the flat arrays: convolutions and activation sites in graph order.

    Attributes:
        row_start: first row of each convolution; ``rows`` in all.
        weight_start: first element of each patch-owned kernel; ``elements`` in all.
        activation_index: index of every VALUE's activation site (tied values share one).
        sites: the activation sites in order.
    """

    row_start: Mapping[str, int]
    rows: int
    weight_start: Mapping[str, int]
    elements: int
    activation_index: Mapping[str, int]
    sites: tuple[str, ...]


@dataclass(frozen=True)
class QuantizedVariant:
    """One task at one resolution, over a `QuantizedBase`.

    Attributes:
        task: task name.
        resolution: side of the square input in pixels.
        activations: by activation site (see ``QuantizedBase.activation_sites``).
        weight_scale: float32 [O] by convolution: weight_scales[c] * s[c], positive, normal.
        bias: int32 [O] by convolution: round(b[c] / (x_scale * weight_scale[c])).
        weights: int8 [O, kh, kw, I/groups] of the patch-owned convolutions.
    """

    task: str
    resolution: int
    activations: Mapping[str, ActivationParams]
    weight_scale: Mapping[str, Float32Array]
    bias: Mapping[str, Int32Array]
    weights: Mapping[str, Int8Array]


def bias_scale(x_scale: np.float32, weight_scale: Float32Array) -> Float32Array:
    """x_scale * weight_scale[c], rounded once to float32 (LiteRT quantisation spec, bias)."""
    return np.multiply(np.float32(x_scale), weight_scale, dtype=np.float32)


def neutral_variant(base: QuantizedBase, resolution: int) -> QuantizedVariant:
    """What the slots of a base file hold before any patch: valid, deterministic, no task's data.

    Weight scales are the base's own, biases 0, activation parameters scale 1 and zero point 0
    (the input's and a sigmoid's are fixed by the graph), patch-owned kernels 0.
    """
    graph = base.graph
    ties = tied_values(graph)
    activations = {site: ActivationParams(np.float32(1.0), 0) for site in base.activation_sites()}
    activations[ties[graph.input]] = ActivationParams(np.float32(1.0), base.input_zero_point)
    for operator in graph.operators:
        if isinstance(operator, Pointwise) and operator.kind == "sigmoid":
            activations[ties[operator.output]] = ActivationParams(SIGMOID_SCALE, -128)
    return QuantizedVariant(
        task="",
        resolution=resolution,
        activations=activations,
        weight_scale={name: base.weight_scales[name] for name in base.weights},
        bias={name: np.zeros(base.rows(name), np.int32) for name in base.weights},
        weights={name: np.zeros_like(base.weights[name]) for name in base.patch_owned},
    )


def flatten_variant(base: QuantizedBase, variant: QuantizedVariant) -> PatchValues:
    """``variant`` as the flat arrays that patch files hold and slots take."""
    names = [conv.name for conv in base.graph.convolutions()]
    owned = [name for name in names if name in base.patch_owned]
    params = [variant.activations[site] for site in base.activation_sites()]
    return PatchValues(
        weight_scale=np.concatenate([variant.weight_scale[name] for name in names]),
        bias=np.concatenate([variant.bias[name] for name in names]),
        activation_scale=np.array([p.scale for p in params], np.float32),
        activation_zero_point=np.array([p.zero_point for p in params], np.int8),
        weights=np.concatenate([variant.weights[name].reshape(-1) for name in owned]),
    )


def unflatten_variant(
    base: QuantizedBase, values: PatchValues, task: str, resolution: int
) -> QuantizedVariant:
    """The inverse of `flatten_variant`."""
    layout = base.layout()
    weight_scale, bias, weights = {}, {}, {}
    for name, start in layout.row_start.items():
        run = slice(start, start + base.rows(name))
        weight_scale[name] = values.weight_scale[run]
        bias[name] = values.bias[run]
    for name, start in layout.weight_start.items():
        shape = base.weights[name].shape
        weights[name] = values.weights[start : start + base.weights[name].size].reshape(shape)
    activations = {
        site: ActivationParams(
            np.float32(values.activation_scale[k]), int(values.activation_zero_point[k])
        )
        for k, site in enumerate(layout.sites)
    }
    return QuantizedVariant(task, resolution, activations, weight_scale, bias, weights)
