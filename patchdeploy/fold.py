"""Graph + patch -> every convolution with its effective scale[c] and bias[c].

In: a `Graph` and a patch's tensors by state-dict name. Out: a `FoldedNetwork`. Pure, NumPy,
float64 arithmetic. With gamma, beta, mu, var of the normalisation behind a convolution W with
bias cb (the paper, section 2: a patch is merged into the convolution and adds no layer):

    s[c] = gamma[c] / sqrt(var[c] + eps)        b[c] = beta[c] + (cb[c] - mu[c]) * s[c]

and where there is none, with the patch's explicit scale and bias:

    s[c] = patch_scale[c]  (1)                  b[c] = cb[c] * s[c] + patch_bias[c]  (0)

(a convolution that has both, as after a layer between them that does nothing in eval mode,
applies them in that order).

The first convolution also takes the preprocessing (p/255 - mean[i]) / std[i] of the pixel p:

    W'[o, i] = W[o, i] / (255 std[i])           b'[o] = b[o] - s[o] sum_{taps, i} W'[o, i] d[i]
    d[i] = 255 mean[i] - input_offset           input_offset = round(mean over i of 255 mean[i])

so that it runs on p - input_offset. Inside the image that is exact. Where the convolution pads
with zeros, a padded tap should add nothing (0 is the mean pixel, in normalised values) and adds
-s[o] W'[o, tap, i] d[i] instead: `border_error_bound` bounds that; it is 0 when 255 mean[i] is
the same integer for every channel, or when the graph was lowered with ``exact_border``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data import Preprocessing
from patchdeploy.errors import HeadCapacityError, NonFiniteError, PatchError, UnknownLayerError
from patchdeploy.graph import Conv2d, Graph

Float64Array = NDArray[np.float64]
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class FoldedConv:
    """``y[c] = scale[c] * (weight[c] * x) + bias[c]``, then the convolution's activation.

    Attributes:
        weight: float32 [O, kh, kw, I/groups], not scaled.
        scale: float64 [O], the effective s = gamma / sqrt(var + eps); may be of any sign.
        bias: float64 [O], the effective b = beta + (conv_bias - mu) * s.
        patched: the kernel is the task's own, not the base's.
    """

    weight: NDArray[np.float32]
    scale: NDArray[np.float64]
    bias: NDArray[np.float64]
    patched: bool


@dataclass(frozen=True)
class FoldedNetwork:
    """A graph and its folded convolutions; the input is raw uint8 pixels minus ``input_offset``.

    Attributes:
        graph: the structure.
        convs: by convolution name.
        input_offset: integer in [0, 255]: the pixel value that zero padding stands for.
        classes: rows of the head that this task uses.
    """

    graph: Graph
    convs: Mapping[str, FoldedConv]
    input_offset: int
    classes: int


def fold_patch(
    graph: Graph, tensors: Mapping[str, NDArray[Any]] | None = None, classes: int | None = None
) -> FoldedNetwork:
    """Fold ``tensors`` (a patch; None for the base itself) into the convolutions of ``graph``.

    Args:
        graph: a lowered base.
        tensors: state-dict name -> array: normalisation tensors, kernels, the head's weight and
            bias (which may have rows of their own), ``<site>.patch_scale``, ``<site>.patch_bias``.
        classes: rows of the head to keep, the first ones; all unless given.

    Raises:
        UnknownLayerError: a name that the graph does not read.
        PatchError: an array of another shape than the base's.
        NonFiniteError: NaN or infinity, or a variance that is not above -eps.
        HeadCapacityError: more classes than the head has rows.
    """
    given = dict(tensors or {})
    _check_names(graph, given)
    source = {**graph.parameters, **given}
    convs = {conv.name: _fold_conv(graph, conv, source, given) for conv in graph.convolutions()}
    offset = input_offset(graph.preprocessing)
    for conv in graph.convolutions():
        if conv.input == graph.input:
            convs[conv.name] = _fold_input(graph, conv, convs[conv.name])
    rows = int(convs[graph.head].scale.size)
    kept = rows if classes is None else classes
    if not 0 < kept <= rows:
        raise HeadCapacityError(
            f"{kept} classes asked of head {graph.head!r}, which has {rows} rows; "
            f"fold a patch whose head has at least {max(kept, 1)} rows, or ask for 1 to {rows}"
        )
    check_after_head(graph, kept)
    convs[graph.head] = _keep_rows(convs[graph.head], kept)
    return FoldedNetwork(graph, convs, offset, kept)


def check_after_head(graph: Graph, rows: int) -> None:
    """What runs on the scores takes ``rows`` of them.

    Raises:
        HeadCapacityError: a constant or a normalisation after the head is for another number.
    """
    head = next(conv for conv in graph.convolutions() if conv.name == graph.head)
    found = [head.norm.name] if head.norm is not None else []
    reached = {head.output}
    for operator in graph.operators:
        if operator.name != graph.head and reached & set(operator.inputs):
            reached.add(operator.output)
            found += [operator.name] if isinstance(operator, Conv2d) else []
    if found and rows != head.out_channels:
        raise HeadCapacityError(
            f"{rows} rows of head {graph.head!r}; {found[0]!r}, which runs after it, is made for "
            f"{head.out_channels} scores; make a base that ends with its last layer, or export "
            f"tasks of {head.out_channels} classes alone"
        )


def input_offset(preprocessing: Preprocessing) -> int:
    """round(mean over channels of 255 mean[i]), in [0, 255]: the pixel that padding stands for."""
    return int(np.clip(np.rint(255.0 * np.mean(preprocessing.mean)), 0, 255))


def border_error_bound(network: FoldedNetwork) -> Float64Array:
    """Largest difference of the first convolution's outputs to the unfolded ones, float64 [O].

    A padded tap should add 0 and adds -s[o] sum_i W'[o, tap, i] d[i]; every set of padded taps
    is bounded by all of them: |s[o]| sum_taps |sum_i W'[o, tap, i] d[i]|. Zero without padding.
    """
    graph = network.graph
    conv = next(c for c in graph.convolutions() if c.input == graph.input)
    folded = network.convs[conv.name]
    if not any(conv.padding):
        return np.zeros(folded.scale.size)
    mean, _ = _pixel_statistics(graph.preprocessing)
    shift = (255.0 * mean - network.input_offset)[_input_channels(conv, folded.scale.size)]
    taps = np.einsum("ohwi,oi->ohw", folded.weight.astype(np.float64), shift)
    return np.asarray(np.abs(folded.scale) * np.abs(taps).sum(axis=(1, 2)), np.float64)


def _addressable(graph: Graph) -> set[str]:
    """Every name that a patch may set."""
    names: set[str] = set()
    for conv in graph.convolutions():
        if conv.norm is not None:
            names.update(f"{conv.norm.name}.{part}" for part in NORM_TENSORS)
        if not conv.is_constant:
            names.update((f"{conv.module}.patch_scale", f"{conv.module}.patch_bias"))
            names.update(key for key in (conv.weight, conv.bias) if key is not None)
    return names


def _check_names(graph: Graph, given: Mapping[str, NDArray[Any]]) -> None:
    unknown = sorted(set(given) - _addressable(graph))
    if unknown:
        raise UnknownLayerError(
            f"patch tensor {unknown[0]!r} ({len(unknown)} unknown in all) is nothing that base "
            f"{graph.name!r} reads; a patch names normalisations, kernels, the head, or a site's "
            "patch_scale and patch_bias; make the patch with this base"
        )


def _read(source: Mapping[str, NDArray[Any]], name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The tensor ``name``, checked.

    Raises:
        UnknownLayerError: neither the base nor the patch has it.
        PatchError: another shape than ``shape``.
        NonFiniteError: NaN or infinity in it.
    """
    if name not in source:
        raise UnknownLayerError(
            f"tensor {name!r} is neither in the graph's parameters nor in the patch; folding "
            "needs every tensor of the base; lower the base again"
        )
    array = np.asarray(source[name])
    if array.shape != shape:
        raise PatchError(
            f"tensor {name!r} has shape {list(array.shape)}; the base's layer takes "
            f"{list(shape)}; make the patch with this base"
        )
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise NonFiniteError(
            f"tensor {name!r} holds {bad} of {array.size} values that are NaN or infinite; "
            "every parameter must be finite; train it again or restore the checkpoint"
        )
    return array


def _fold_conv(
    graph: Graph,
    conv: Conv2d,
    source: Mapping[str, NDArray[Any]],
    given: Mapping[str, NDArray[Any]],
) -> FoldedConv:
    """Kernel in OHWI, effective scale and bias of one convolution."""
    rows, columns = conv.out_channels, conv.in_channels // conv.groups
    shape: tuple[int, ...] = (rows, columns, *conv.kernel)
    if conv.weight in graph.parameters:
        shape = graph.parameters[conv.weight].shape  # a linear layer's has two dimensions
    if conv.name == graph.head and np.ndim(source.get(conv.weight, 0.0)) == len(shape):
        rows = int(np.shape(source[conv.weight])[0])
    kernel = _read(source, conv.weight, (rows, *shape[1:])).astype(np.float32)
    kernel = kernel.reshape(rows, columns, *conv.kernel)
    scale, bias = _effective_affine(conv, source, rows)
    return FoldedConv(
        weight=np.ascontiguousarray(kernel.transpose(0, 2, 3, 1)),
        scale=scale,
        bias=bias,
        patched=conv.weight in given,
    )


def _effective_affine(
    conv: Conv2d, source: Mapping[str, NDArray[Any]], rows: int
) -> tuple[Float64Array, Float64Array]:
    """s and b of the module's formulas, float64 [rows]."""

    def vector(name: str, default: float | None) -> Float64Array:
        if name not in source and default is not None:
            return np.full(rows, default)
        return _read(source, name, (rows,)).astype(np.float64)

    conv_bias = np.zeros(rows) if conv.bias is None else vector(conv.bias, None)
    scale = vector(f"{conv.module}.patch_scale", 1.0)
    bias = conv_bias * scale + vector(f"{conv.module}.patch_bias", 0.0)
    if conv.norm is None:
        return scale, bias
    norm = conv.norm.name
    variance = vector(f"{norm}.running_var", None)
    if variance.min() + conv.norm.eps <= 0:
        raise NonFiniteError(
            f"tensor {norm + '.running_var'!r} holds {variance.min():g}; a variance lies above "
            f"-eps = -{conv.norm.eps:g}; train it again or restore the checkpoint"
        )
    # gamma and beta may be missing: a normalisation with affine=False.
    factor = vector(f"{norm}.weight", 1.0) / np.sqrt(variance + conv.norm.eps)
    centred = bias - vector(f"{norm}.running_mean", None)
    return scale * factor, vector(f"{norm}.bias", 0.0) + centred * factor


def _pixel_statistics(preprocessing: Preprocessing) -> tuple[Float64Array, Float64Array]:
    """mean and std by the pixel's channel, R, G, B."""
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    return (mean, std) if preprocessing.channel_order == "RGB" else (mean[::-1], std[::-1])


def _input_channels(conv: Conv2d, rows: int) -> NDArray[np.int64]:
    """Which input channel each kernel column meets, int64 [O, I/groups]."""
    columns = conv.in_channels // conv.groups
    group = np.arange(rows) // (rows // conv.groups)
    return np.asarray(group[:, None] * columns + np.arange(columns), np.int64)


def _fold_input(graph: Graph, conv: Conv2d, folded: FoldedConv) -> FoldedConv:
    """Merge pixel scaling, mean, std and channel order into the first convolution."""
    _, std = _pixel_statistics(graph.preprocessing)
    kernel = folded.weight.astype(np.float64)
    if graph.preprocessing.channel_order != "RGB":
        assert conv.groups == 1  # lower.passes.isolate_input
        kernel = kernel[..., ::-1]
    channel = _input_channels(conv, folded.scale.size)
    weight = (kernel / (255.0 * std)[channel][:, None, None, :]).astype(np.float32)
    correction = input_correction(graph, conv, weight)
    return replace(folded, weight=weight, bias=folded.bias - folded.scale * correction)


def input_correction(graph: Graph, conv: Conv2d, weight: NDArray[np.float32]) -> Float64Array:
    """sum over taps and i of W'[o, i] d[i], float64 [O]: what the bias of the convolution that
    reads the image loses per unit of scale. ``weight`` is W', float32 [O, kh, kw, I/groups].
    """
    mean, _ = _pixel_statistics(graph.preprocessing)
    channel = _input_channels(conv, len(weight))
    shift = (255.0 * mean - input_offset(graph.preprocessing))[channel]
    return np.asarray(np.einsum("ohwi,oi->o", weight.astype(np.float64), shift), np.float64)


def _keep_rows(folded: FoldedConv, rows: int) -> FoldedConv:
    return replace(
        folded,
        weight=folded.weight[:rows],
        scale=folded.scale[:rows],
        bias=folded.bias[:rows],
    )
