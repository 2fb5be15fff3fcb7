"""The float32 numbers of a stand-alone file: one task, its scales folded into the kernels.

In: a `FoldedNetwork`. Out: tensors of float32 constants. Pixels are cast and lose
``input_offset`` first, so that zero padding pads with the mean pixel as in training.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from patchdeploy.fold import FoldedNetwork
from patchdeploy.graph import Activation, Conv2d
from patchdeploy_tflite.operators import FUSED, Draft
from patchdeploy_tflite.plan import Array, Pool, Tensor
from patchdeploy_tflite.quantized import kernel_shape


@dataclass
class FloatNumbers:
    """Implements `operators.Numbers` for a float32 file; every resolution shares the kernels.

    A hard_sigmoid is relu6(x + 3) / 6: 3 goes into the bias, RELU6 is fused, a MUL divides.
    """

    network: FoldedNetwork
    pool: Pool
    dtype: str = "FLOAT32"
    int8: int = 0
    _tensors: dict[str, Tensor] = field(default_factory=dict)

    def quantization(self, value: str) -> None:
        return None

    def kernel(self, conv: Conv2d) -> Tensor:
        """weight[c] * scale[c], multiplied in float64 and rounded once."""
        name = f"{conv.name}.weight"
        if name not in self._tensors:
            folded = self.network.convs[conv.name]
            scaled = folded.weight.astype(np.float64) * folded.scale[:, None, None, None]
            stored = scaled.transpose(3, 1, 2, 0) if conv.is_depthwise else scaled
            self._tensors[name] = self._constant(
                name, stored.reshape(kernel_shape(conv, len(folded.scale)))
            )
        return self._tensors[name]

    def bias(self, conv: Conv2d) -> Tensor:
        shift = 3.0 if conv.activation == "hard_sigmoid" else 0.0
        return self._constant(f"{conv.name}.bias", self.network.convs[conv.name].bias + shift)

    def lowest(self, value: str) -> Tensor:
        return self._constant("lowest", np.array(np.finfo(np.float32).min))

    def fused(self, activation: Activation) -> int:
        return FUSED["relu6" if activation == "hard_sigmoid" else activation]

    def open(self, draft: Draft) -> None:
        value = draft.graph.input
        pixels = draft.tensor(value, f"{value}:float")
        image = Tensor("image", pixels.shape, "UINT8")
        draft.subgraph.inputs["image"] = draft.subgraph.tensor(image)
        cast = draft.emit("CAST", 1, (draft.subgraph.inputs["image"],), pixels)
        offset = draft.subgraph.constant(
            self._constant("input_offset", np.array(self.network.input_offset))
        )
        output = draft.tensor(value)
        draft.index[value] = draft.emit("SUB", 1, (cast, offset), output, FusedActivationFunction=0)

    def after_conv(self, draft: Draft, conv: Conv2d, index: int) -> int:
        if conv.activation != "hard_sigmoid":
            return index
        sixth = draft.subgraph.constant(self._constant("sixth", np.array(1 / 6)))
        output = draft.tensor(conv.output, f"{conv.output}:hard_sigmoid")
        return draft.emit("MUL", 1, (index, sixth), output, FusedActivationFunction=0)

    def close(self, draft: Draft, scores: int, rows: int) -> None:
        shape = draft.integers(np.array([1, rows]), "scores:shape")
        output = Tensor("scores", (1, rows), "FLOAT32")
        draft.subgraph.outputs["scores"] = draft.emit("RESHAPE", 1, (scores, shape), output)

    def _constant(self, name: str, values: Array) -> Tensor:
        data = np.asarray(values, np.float32)
        return Tensor(name, data.shape, "FLOAT32", None, self.pool.constant(data))
