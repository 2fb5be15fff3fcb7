"""What one task at one resolution adds to the base: scales, biases, activation parameters.

In: a `QuantizedBase`, the task's `FoldedNetwork`, calibration ranges. Out: a
`QuantizedVariant`. The base's integers are not looked at beyond their signs:

    weight_scale_t[c] = float32(w_scale[c] * s_t[c])                     > 0
    bias_t[c]         = round(b_t[c] / (x_scale_t * weight_scale_t[c]))  int32

Only kernels that the task owns (its head, depthwise kernels where the base has slots for them)
are quantised here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import (
    HeadCapacityError,
    NegativeScaleError,
    PatchError,
    QuantizationError,
    WrongBaseError,
)
from patchdeploy.fold import FoldedConv, FoldedNetwork
from patchdeploy.graph import Conv2d, Shape, fix_size, infer_shapes, tied_values, window_output
from patchdeploy.quantize.base import orient, quantize_kernel, row_signs
from patchdeploy.quantize.model import (
    ActivationParams,
    Int8Array,
    QuantizedBase,
    QuantizedVariant,
)
from patchdeploy.quantize.ranges import Calibration, Range, choose_activations
from patchdeploy.quantize.rows import QuantizedRows, mask_rows, quantize_rows

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """One convolution as the integers see it: y = step * (kernel * (x - zero_point)) + bias.

    Attributes:
        kernel: int8 [O, kh, kw, I/groups], the base's or the task's own.
        weight_scale: float64 [O] > 0: the folded kernel ~ weight_scale * kernel, up to sign.
        step: float64 [O]: weight_scale * s; negative where a shared row would have to flip.
        bias: float64 [O], of the task.
    """

    kernel: Int8Array
    weight_scale: Float64Array
    step: Float64Array
    bias: Float64Array


def quantize_variant(
    base: QuantizedBase,
    network: FoldedNetwork,
    ranges: Mapping[str, Range],
    task: str,
    resolution: int,
    bias_correction: bool = False,
) -> QuantizedVariant:
    """Quantise ``network`` (a patch folded into the base's graph) over ``base``.

    Args:
        ranges: (low, high) of every value; from `calibrate` also the channel means.
        bias_correction: where ``ranges`` is a `Calibration` with means, add to each bias the
            mean that rounding the kernel took away (`weight_rounding_bias`). Off by default:
            on the embedded base it did not lower the logits' error.

    Raises:
        WrongBaseError: ``network`` was folded into another base.
        HeadCapacityError: the task has more classes than the head has rows.
        PatchError: the patch brings a kernel that this base shares.
        NegativeScaleError: the effective scale of a shared row is negative.
        QuantizationError: a range is missing or not finite, or a scale cannot be represented.
    """
    _check_fits(base, network, task)
    graph = fix_size(base.graph, resolution, resolution)
    means = ranges.means if bias_correction and isinstance(ranges, Calibration) else {}
    shapes = infer_shapes(graph, resolution, resolution) if means else {}
    taps = {
        conv.name: mean_by_tap(conv, means[conv.input], shapes[conv.input])
        for conv in graph.convolutions()
        if conv.input in means
    }
    affines = make_affines(base, network, taps)
    steps = {name: float(np.max(affine.step, initial=0.0)) for name, affine in affines.items()}
    activations = choose_activations(graph, base.input_zero_point, ranges, steps)
    ties = tied_values(graph)
    rows = {}
    for conv in graph.convolutions():
        x, y = activations[ties[conv.input]], activations[ties[conv.output]]
        rows[conv.name] = _quantize_conv(base, conv, affines[conv.name], (x, y), task)
    return QuantizedVariant(
        task=task,
        resolution=resolution,
        activations=activations,
        weight_scale={name: row.weight_scale for name, row in rows.items()},
        bias={name: row.bias for name, row in rows.items()},
        weights={
            conv.name: _owned_kernel(base, conv, affines[conv.name])
            for conv in graph.convolutions()
            if conv.name in base.patch_owned
        },
    )


def _check_fits(base: QuantizedBase, network: FoldedNetwork, task: str) -> None:
    if network.graph.base_sha256 != base.graph.base_sha256:
        raise WrongBaseError(
            f"task {task!r} was folded into base {network.graph.base_sha256[:16]}; the quantised "
            f"base is {base.graph.base_sha256[:16]}; fold the patch into the base that it was "
            "trained on"
        )
    if network.classes > base.head_capacity:
        raise HeadCapacityError(
            f"task {task!r} has {network.classes} classes; the head has {base.head_capacity} "
            f"rows; export the base again with head_capacity >= {network.classes}"
        )
    brought = [name for name, conv in network.convs.items() if conv.patched]
    foreign = [name for name in brought if name not in base.patch_owned]
    if foreign:
        raise PatchError(
            f"task {task!r} brings its own kernels for {len(foreign)} convolutions that this base "
            f"shares ({foreign[0]!r} first); a task may only set kernels that are slots; quantise "
            "the base with depthwise slots (patch_owned_depthwise=True), or train without them"
        )


def _absorb_hard_sigmoid(conv: Conv2d, folded: FoldedConv) -> FoldedConv:
    """relu6(y + 3) / 6 is y / 6 + 0.5 saturated to [0, 1], which is the output's whole range."""
    if conv.activation != "hard_sigmoid":
        return folded
    return FoldedConv(folded.weight, folded.scale / 6.0, folded.bias / 6.0 + 0.5, folded.patched)


def make_affines(
    base: QuantizedBase, network: FoldedNetwork, taps: Mapping[str, Float64Array] | None = None
) -> dict[str, Affine]:
    """Every convolution of ``network`` as the integers of ``base`` see it, by name.

    Args:
        taps: from `mean_by_tap`, by convolution; those named get the bias of rounding.

    Raises:
        QuantizationError: a scale or a bias that is not finite.
    """
    return {
        conv.name: _make_affine(
            base,
            conv,
            _absorb_hard_sigmoid(conv, network.convs[conv.name]),
            (taps or {}).get(conv.name),
        )
        for conv in base.graph.convolutions()
    }


def _make_affine(
    base: QuantizedBase, conv: Conv2d, folded: FoldedConv, tap_means: Float64Array | None
) -> Affine:
    if not (np.isfinite(folded.scale).all() and np.isfinite(folded.bias).all()):
        raise QuantizationError(
            f"site {conv.name!r} has a scale or bias that is NaN or infinite; every parameter "
            "must be finite; train the patch again"
        )
    if conv.name in base.patch_owned:
        kernel, scales = quantize_kernel(conv.name, folded.weight)
        signs = np.where(folded.scale < 0, -1, 1)
        kernel = orient(kernel, signs)
    else:
        kernel, scales = base.weights[conv.name], base.weight_scales[conv.name]
        signs = row_signs(kernel, folded.weight)
    weight_scale = scales.astype(np.float64)
    bias = folded.bias
    if tap_means is not None:
        bias = bias + weight_rounding_bias(conv, folded, kernel, weight_scale * signs, tap_means)
    return Affine(kernel, weight_scale, weight_scale * folded.scale * signs, bias)


def mean_by_tap(conv: Conv2d, x_mean: Float64Array, shape: Shape) -> Float64Array:
    """What each tap of ``conv`` meets on average: E[x] times the share of positions inside.

    Padding adds 0, so a tap that often lands outside counts for less: on a map of 2 x 2 a
    padded 3 x 3 kernel's corners meet a value at one position of four.

    Args:
        x_mean: float64 [C], the channel means of the input.
        shape: (height, width, channels) of the input.

    Returns:
        float64 [kh, kw, C].
    """
    shares = []
    for k, (before, after) in enumerate((conv.zeros[:2], conv.zeros[2:])):
        size, stride, dilation = shape[k], conv.stride[k], conv.dilation[k]
        count = window_output(size, conv.kernel[k], stride, before, after, dilation, False)
        starts = np.arange(count) * stride - before
        taps = starts[:, None] + np.arange(conv.kernel[k]) * dilation
        shares.append(np.mean((taps >= 0) & (taps < size), axis=0))
    return np.asarray(shares[0][:, None, None] * shares[1][:, None] * x_mean, np.float64)


def weight_rounding_bias(
    conv: Conv2d,
    folded: FoldedConv,
    kernel: Int8Array,
    weight_scale: Float64Array,
    tap_means: Float64Array,
) -> Float64Array:
    """s[c] * sum((W[c] - weight_scale[c] * kernel[c]) * E[x]): what rounding takes from the mean.

    Nagel et al. 2019 (arXiv 1906.04721), section 4.2, with E[x] from the calibration pass.

    Args:
        weight_scale: float64 [O], signed as ``kernel`` is oriented.
        tap_means: float64 [kh, kw, C], from `mean_by_tap`.

    Returns:
        float64 [O].
    """
    lost = folded.weight - kernel * weight_scale.astype(np.float32)[:, None, None, None]
    rows, columns = len(lost), lost.shape[3]
    if conv.groups == 1:
        mean_lost = lost.reshape(rows, -1).astype(np.float64) @ tap_means.reshape(-1)
    else:
        group = np.arange(rows) // (rows // conv.groups)
        channel = group[:, None] * columns + np.arange(columns)
        mean_lost = np.einsum("ohwi,hwoi->o", lost, tap_means[:, :, channel])
    return np.asarray(folded.scale * mean_lost, np.float64)


def _quantize_conv(
    base: QuantizedBase,
    conv: Conv2d,
    affine: Affine,
    params: tuple[ActivationParams, ActivationParams],
    task: str,
) -> QuantizedRows:
    """The rows of one convolution; refuses negative scales that matter, masks spare head rows."""
    rows = quantize_rows(affine.kernel, affine.step, affine.bias, *params)
    refused = (affine.step < 0) & (rows.error_lsb >= 0.5)
    if refused.any():
        _refuse_negative(conv, affine, refused, task)
    missing = base.rows(conv.name) - len(rows.bias)
    return mask_rows(rows, missing, *params) if missing else rows


def _refuse_negative(conv: Conv2d, affine: Affine, refused: NDArray[np.bool_], task: str) -> None:
    channels = np.flatnonzero(refused)
    shown = ", ".join(str(channel) for channel in channels[:8])
    values = affine.step[channels[0]] / affine.weight_scale[channels[0]]
    raise NegativeScaleError(
        f"task {task!r}, site {conv.name!r}: the effective scale of {channels.size} channels "
        f"({shown}{', ...' if channels.size > 8 else ''}) is negative against the base's kernel "
        f"({values:.6g} in channel {channels[0]}); tasks share these int8 rows, whose sign is "
        "fixed; train with keep_sign (the default), or let the patch own this kernel"
    )


def _owned_kernel(base: QuantizedBase, conv: Conv2d, affine: Affine) -> Int8Array:
    """The task's own kernel, padded with rows of zeros to the base's."""
    kernel = np.zeros_like(base.weights[conv.name])
    kernel[: len(affine.kernel)] = affine.kernel
    return kernel
