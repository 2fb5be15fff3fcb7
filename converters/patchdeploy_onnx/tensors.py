"""The tensors of the file: constants by name, and which of them are slots.

In: a quantised base and the variant whose values the file holds. Out: onnx-graphsurgeon
constants and variables, each made once and shared by whoever asks for the name. Names of slots
are ``<site>.<kind>``, names of activations ``/<value>``: they cannot meet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant
from patchdeploy.slots import WEIGHT_LAYOUTS, Slot, SlotKind
from patchdeploy_onnx.clamps import find_clamped
from patchdeploy_onnx.sizes import Dims, symbolic_sizes

INPUT, OUTPUT = "image", "scores"
KERNEL_LAYOUT = "oihw"


def value_name(value: str, graph_input: str) -> str:
    """Name in the file of a graph value."""
    return INPUT if value == graph_input else f"/{value}"


class TensorPool:
    """Constants and activations of one file, each made when it is first asked for."""

    def __init__(self, base: QuantizedBase, variant: QuantizedVariant) -> None:
        self.base = base
        self.variant = variant
        self.layout = base.layout()
        self.clamped = find_clamped(base.graph)
        self.slots: dict[str, Slot] = {}
        rows = {name: base.rows(name) for name in base.weights}
        self._sizes: dict[str, Dims] = symbolic_sizes(base.graph, rows)
        self._made: dict[str, Any] = {}

    def value(self, value: str, suffix: str = "", dtype: type = np.uint8) -> Any:
        """The activation ``value``, [N, H, W, C], uint8 = int8 + 128; with ``suffix`` an
        intermediate of the same shape."""
        name = value_name(value, self.base.graph.input) + suffix
        if name not in self._made:
            self._made[name] = gs.Variable(name, dtype=dtype, shape=list(self._sizes[value]))
        return self._made[name]

    def constant(self, name: str, values: NDArray[Any]) -> Any:
        """A constant that no patch sets."""
        if name not in self._made:
            self._made[name] = gs.Constant(name, np.asarray(values, order="C"))
        return self._made[name]

    def params(self, value: str) -> tuple[Any, Any]:
        """Scale (float32) and zero point (uint8) of ``value``: scalars, one pair a site."""
        index = self.layout.activation_index[value]
        site = self.layout.sites[index]
        params = self.variant.activations[site]
        scale = np.array(params.scale, np.float32)
        zero_point = np.array(params.zero_point + 128, np.uint8)
        return (
            self._slot(site, "activation_scale", index, scale, "f32"),
            self._slot(site, "activation_zero_point", index, zero_point, "u8"),
        )

    def kernel(self, conv: str) -> Any:
        """int8 kernel [O, I/groups, kh, kw]; a slot where the task owns it."""
        owned = conv in self.base.patch_owned
        weights = (self.variant if owned else self.base).weights[conv]
        values = np.ascontiguousarray(weights.transpose(WEIGHT_LAYOUTS[KERNEL_LAYOUT]))
        if not owned:
            return self.constant(f"{conv}.weight", values)
        start = self.layout.weight_start[conv]
        return self._slot(conv, "weight", start, values, "i8", tuple(weights.shape))

    def weight_scale(self, conv: str) -> Any:
        """float32 [O]."""
        scale = self.variant.weight_scale[conv].astype(np.float32, copy=False)
        return self._slot(conv, "weight_scale", self.layout.row_start[conv], scale, "f32")

    def bias(self, conv: str) -> Any:
        """int32 [O], in units of x_scale * weight_scale[c]."""
        bias = self.variant.bias[conv].astype(np.int32, copy=False)
        return self._slot(conv, "bias", self.layout.row_start[conv], bias, "i32")

    def _slot(
        self,
        site: str,
        kind: SlotKind,
        start: int,
        values: NDArray[Any],
        dtype: str,
        shape: tuple[int, ...] = (),
    ) -> Any:
        name = f"{site}.{kind}"
        if name not in self._made:
            self.slots[name] = Slot(
                site=site,
                kind=kind,
                resolution=None,
                offset_bytes=-1,
                start=start,
                count=values.size,
                dtype=dtype,
                layout=KERNEL_LAYOUT if shape else "",
                shape=tuple(int(n) for n in shape),
                name=name,
            )
        return self.constant(name, values)
