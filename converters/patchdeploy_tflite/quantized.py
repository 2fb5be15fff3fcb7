"""The int8 numbers of a file: shared kernels, and every slot of one resolution.

In: a `QuantizedBase` and one task's flat values. Out: tensors whose blobs are kernels that all
subgraphs share, or slots (weight scale, bias, bias scale, activation scale and zero point).
Quantisation as LiteRT's 8-bit specification has it: kernels int8 symmetric per output channel,
biases int32 with scale x_scale * weight_scale[c], activations int8 per tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from patchdeploy.errors import QuantizationError
from patchdeploy.graph import Activation, Conv2d, Pointwise, tied_values
from patchdeploy.quantize.model import (
    SIGMOID_SCALE,
    ActivationParams,
    QuantizedBase,
    QuantizedVariant,
    flatten_variant,
)
from patchdeploy.slots import SLOT_DTYPES, PatchValues, Slot, SlotKind, slot_values
from patchdeploy_tflite.operators import FUSED, Draft
from patchdeploy_tflite.plan import Blob, Pool, Quantization, Tensor

Kernels = Mapping[str, Blob]


def kernel_layout(conv: Conv2d) -> str:
    """Key of WEIGHT_LAYOUTS: TFLite's depthwise kernels are [1, kh, kw, O]."""
    return "1hwo" if conv.is_depthwise else "ohwi"


def kernel_shape(conv: Conv2d, rows: int) -> tuple[int, ...]:
    """Shape of the kernel tensor in the file."""
    inner = conv.in_channels // conv.groups
    return (1, *conv.kernel, rows) if conv.is_depthwise else (rows, *conv.kernel, inner)


def kernel_slot(base: QuantizedBase, conv: Conv2d, start: int, resolution: int | None) -> Slot:
    """The slot of a kernel that every task brings along."""
    shape = base.weights[conv.name].shape
    count = int(np.prod(shape))
    layout = kernel_layout(conv)
    return _slot(conv.name, "weight", resolution, start, count, "i8", layout=layout, shape=shape)


def shared_kernels(base: QuantizedBase, pool: Pool) -> dict[str, Blob]:
    """The base's own kernels, one blob each for all resolutions."""
    kernels = {}
    for conv in base.graph.convolutions():
        if conv.name not in base.patch_owned:
            kernel = base.weights[conv.name]
            stored = kernel.transpose(3, 1, 2, 0) if conv.is_depthwise else kernel
            kernels[conv.name] = pool.constant(stored)
    return kernels


def fixed_activations(base: QuantizedBase) -> dict[str, ActivationParams]:
    """Activation sites that no patch sets: the input's, and those of LOGISTIC's output."""
    ties = tied_values(base.graph)
    fixed = {
        ties[base.graph.input]: ActivationParams(np.float32(1.0), base.input_zero_point),
    }
    for operator in base.graph.operators:
        if isinstance(operator, Pointwise) and operator.kind == "sigmoid":
            fixed[ties[operator.output]] = ActivationParams(SIGMOID_SCALE, -128)
    return fixed


def check_fixed(base: QuantizedBase, variant: QuantizedVariant, resolution: int) -> None:
    """Check that ``variant`` has the activation parameters that the base fixes.

    Raises:
        QuantizationError: naming the site.
    """
    for site, params in fixed_activations(base).items():
        found = variant.activations[site]
        if found != params:
            raise QuantizationError(
                f"task {variant.task!r} at {resolution} px sets {site!r} to scale {found.scale}, "
                f"zero point {found.zero_point}; the base fixes scale {params.scale}, zero point "
                f"{params.zero_point} there; quantise the task with this base"
            )


@dataclass
class QuantizedNumbers:
    """One resolution of an int8 file: implements `operators.Numbers`.

    Attributes:
        kernels: blobs of kernels that other resolutions read too.
        values: what this resolution's slots hold.
    """

    base: QuantizedBase
    pool: Pool
    kernels: Kernels
    values: PatchValues
    resolution: int
    dtype: str = "INT8"
    int8: int = 1
    _activations: dict[str, Quantization] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._layout = self.base.layout()
        self._ties = tied_values(self.base.graph)
        self._fixed = fixed_activations(self.base)
        self._weight_scales: dict[str, Blob] = {}

    def quantization(self, value: str) -> Quantization:
        site = self._ties[value]
        if site not in self._activations:
            self._activations[site] = self._activation(site)
        return self._activations[site]

    def _activation(self, site: str) -> Quantization:
        if site in self._fixed:
            return self._constant_activation(self._fixed[site])
        start = self._layout.activation_index[site]
        scale = _slot(site, "activation_scale", self.resolution, start, 1, "f32")
        zero_point = _slot(site, "activation_zero_point", self.resolution, start, 1, "i64")
        return Quantization(self._place(scale), self._place(zero_point))

    def _constant_activation(self, params: ActivationParams, shift: int = 0) -> Quantization:
        return Quantization(
            self.pool.constant(np.array([params.scale], np.float32)),
            self.pool.constant(np.array([params.zero_point + shift], np.int64)),
        )

    def kernel(self, conv: Conv2d) -> Tensor:
        rows = self.base.rows(conv.name)
        blob = self.kernels.get(conv.name)
        if blob is None:
            start = self._layout.weight_start[conv.name]
            blob = self._place(kernel_slot(self.base, conv, start, self.resolution))
        start = self._layout.row_start[conv.name]
        scale = self._place(_slot(conv.name, "weight_scale", self.resolution, start, rows, "f32"))
        dimension = 3 if conv.is_depthwise else 0
        quantization = Quantization(scale, self._zeros(rows), dimension)
        shape = kernel_shape(conv, rows)
        return Tensor(f"{conv.name}.weight", shape, "INT8", quantization, blob)

    def bias(self, conv: Conv2d) -> Tensor:
        rows, start = self.base.rows(conv.name), self._layout.row_start[conv.name]
        bias = self._place(_slot(conv.name, "bias", self.resolution, start, rows, "i32"))
        x_index = self._layout.activation_index[conv.input]
        scale = self._place(
            _slot(conv.name, "bias_scale", self.resolution, start, rows, "f32", x_index)
        )
        quantization = Quantization(scale, self._zeros(rows))
        return Tensor(f"{conv.name}.bias", (rows,), "INT32", quantization, bias)

    def lowest(self, value: str) -> Tensor:
        buffer = self.pool.constant(np.array([-128], np.int8))
        return Tensor(f"{value}:lowest", (), "INT8", self.quantization(value), buffer)

    def fused(self, activation: Activation) -> int:
        """A quantised hard_sigmoid is plain saturation: its output range is [0, 1]."""
        return 0 if activation == "hard_sigmoid" else FUSED[activation]

    def open(self, draft: Draft) -> None:
        """uint8 pixels to int8: the same scale, both numbers 128 lower.

        By way of float32, where every step is exact (scale 1, whole numbers): XNNPACK takes these
        two operators and not the one QUANTIZE from uint8, whose own kernel costs 4 % of
        MobileNetV2's time at 224 px (see benchmarks/README.md).
        """
        value = draft.graph.input
        rows, columns, channels = draft.shapes[value]
        params = self._fixed[self._ties[value]]
        image = Tensor(
            "image", (1, rows, columns, channels), "UINT8", self._constant_activation(params, 128)
        )
        draft.subgraph.inputs["image"] = draft.subgraph.tensor(image)
        real = Tensor(f"{value}:float", image.shape, "FLOAT32")
        index = draft.emit("DEQUANTIZE", 2, (draft.subgraph.inputs["image"],), real)
        draft.index[value] = draft.emit(
            "QUANTIZE", 1, (index,), draft.tensor(value, f"{value}:int8")
        )

    def after_conv(self, draft: Draft, conv: Conv2d, index: int) -> int:
        """Nothing: saturation to int8 is the rest of a hard_sigmoid."""
        return index

    def close(self, draft: Draft, scores: int, rows: int) -> None:
        shape = draft.integers(np.array([1, rows]), "scores:shape")
        codes = Tensor("scores:int8", (1, rows), "INT8", self.quantization(draft.graph.output))
        flat = draft.emit("RESHAPE", 1, (scores, shape), codes)
        output = Tensor("scores", (1, rows), "FLOAT32")
        draft.subgraph.outputs["scores"] = draft.emit("DEQUANTIZE", 2, (flat,), output)

    def _zeros(self, rows: int) -> Blob:
        return self.pool.constant(np.zeros(rows, np.int64))

    def _place(self, slot: Slot) -> Blob:
        return self.pool.slot(slot, slot_values(slot, self.values))


def _slot(
    site: str,
    kind: SlotKind,
    resolution: int | None,
    start: int,
    count: int,
    dtype: str,
    x_index: int = -1,
    layout: str = "",
    shape: tuple[int, ...] = (),
) -> Slot:
    assert dtype in SLOT_DTYPES
    return Slot(site, kind, resolution, -1, start, count, dtype, x_index, layout, shape)


def flat_values(base: QuantizedBase, variant: QuantizedVariant, resolution: int) -> PatchValues:
    """``variant`` in flat order, checked against what the base fixes.

    Raises:
        QuantizationError: it sets an activation site that the base fixes.
    """
    check_fixed(base, variant, resolution)
    return flatten_variant(base, variant)
