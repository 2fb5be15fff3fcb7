"""The TFLite converter: a quantised base and its variants -> one .tflite and its slot table.

Each resolution is a subgraph and a signature ``classify_<px>`` over the same int8 buffers; what
is private to it is what a patch sets: weight scales, biases, bias scales, activation parameters.
The slots of a file are its `SlotTable`; the bytes outside them depend on the base alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from patchdeploy.convert import WrittenModel
from patchdeploy.errors import QuantizationError, UnknownResolutionError
from patchdeploy.fold import FoldedNetwork
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant
from patchdeploy.slots import PatchValues, SlotTable, slot_values
from patchdeploy.slots_views import find_views
from patchdeploy.storage import sha256_hex
from patchdeploy_tflite.flatfile import LaidOut, lay_out
from patchdeploy_tflite.floating import FloatNumbers
from patchdeploy_tflite.operators import draft_subgraph
from patchdeploy_tflite.plan import Blob, Pool, Subgraph
from patchdeploy_tflite.quantized import (
    QuantizedNumbers,
    flat_values,
    kernel_slot,
    shared_kernels,
)

DESCRIPTION = "patchdeploy: one int8 base, a signature per resolution"
FLOAT_DESCRIPTION = "patchdeploy: stand-alone float32; it shares nothing with other tasks"


@dataclass(frozen=True)
class TFLiteConverter:
    """Implements `patchdeploy.convert.Converter`.

    Attributes:
        head_per_resolution: give every resolution a head kernel of its own. By default the
            resolutions of a task share one, and their scales and biases differ.
    """

    head_per_resolution: bool = False
    name: str = "tflite"
    suffix: str = ".tflite"

    def write(self, base: QuantizedBase, variants: Mapping[int, QuantizedVariant]) -> WrittenModel:
        """The int8 file with a signature per resolution, in ascending order, and its slots.

        Raises:
            QuantizationError: the variants' head kernels differ though one is shared, or a
                variant sets an activation site that the base fixes.
            UnknownResolutionError: no resolution, or one that the network cannot run at.
        """
        resolutions = tuple(sorted(variants))
        subgraphs, blobs = self.plan(base, variants)
        laid_out = lay_out(subgraphs, blobs, DESCRIPTION)
        return WrittenModel(laid_out.data, _slot_table(laid_out, resolutions))

    def plan(
        self, base: QuantizedBase, variants: Mapping[int, QuantizedVariant]
    ) -> tuple[list[Subgraph], list[Blob]]:
        """What `write` lays out: the subgraphs in ascending resolution, the blobs in file order.

        Raises:
            QuantizationError, UnknownResolutionError: as `write`.
        """
        _check_resolutions(tuple(variants))
        resolutions = tuple(sorted(variants))
        values = {px: flat_values(base, variants[px], px) for px in resolutions}
        pool = Pool()
        kernels = shared_kernels(base, pool)
        if not self.head_per_resolution:
            kernels[base.graph.head] = _shared_head(base, values, pool)
        subgraphs = []
        for px in resolutions:
            numbers = QuantizedNumbers(base, pool, kernels, values[px], px)
            rows = base.rows(base.graph.head)
            subgraphs.append(draft_subgraph(base.graph, px, numbers, rows))
        return subgraphs, _ordered(pool, resolutions)

    def write_float(self, network: FoldedNetwork, resolutions: Sequence[int]) -> bytes:
        """A stand-alone float32 file of one folded task, with the same signatures.

        Raises:
            UnknownResolutionError: no resolution, or one that the network cannot run at.
        """
        _check_resolutions(resolutions)
        pool = Pool()
        numbers = FloatNumbers(network, pool)
        subgraphs = [
            draft_subgraph(network.graph, px, numbers, network.classes)
            for px in sorted(set(resolutions))
        ]
        return lay_out(subgraphs, pool.blobs, FLOAT_DESCRIPTION).data


def _check_resolutions(resolutions: Sequence[int]) -> None:
    if not resolutions or min(resolutions) < 1:
        raise UnknownResolutionError(
            f"resolutions {list(resolutions)}; a file has one signature for each resolution, of "
            "1 px or more; name at least one"
        )


def _shared_head(base: QuantizedBase, values: Mapping[int, PatchValues], pool: Pool) -> Blob:
    """The head kernel of the task, one slot for all resolutions."""
    head = next(conv for conv in base.graph.convolutions() if conv.name == base.graph.head)
    slot = kernel_slot(base, head, base.layout().weight_start[head.name], None)
    kernels = {px: slot_values(slot, one) for px, one in values.items()}
    first, kernel = next(iter(kernels.items()))
    for px, other in kernels.items():
        if not np.array_equal(kernel, other):
            raise QuantizationError(
                f"the int8 kernel of {head.name!r} at {px} px differs from the one at {first} px; "
                "a file keeps one head for all resolutions of a task; quantise the head once, or "
                "export with TFLiteConverter(head_per_resolution=True)"
            )
    return pool.slot(slot, kernel)


def _ordered(pool: Pool, resolutions: Sequence[int]) -> list[Blob]:
    """Blobs in file order: constants, shared slots, then each resolution's slots together."""
    order = {None: 0} | {px: 1 + index for index, px in enumerate(resolutions)}
    return sorted(pool.blobs, key=lambda blob: order[blob.slot.resolution] if blob.slot else -1)


def _slot_table(laid_out: LaidOut, resolutions: tuple[int, ...]) -> SlotTable:
    slots = [
        replace(blob.slot, offset_bytes=offset)
        for blob, offset in laid_out.offsets.items()
        if blob.slot is not None
    ]
    return SlotTable(
        runtime="tflite",
        base_sha256=sha256_hex(laid_out.data),
        base_bytes=len(laid_out.data),
        resolutions=resolutions,
        slots=tuple(sorted(slots, key=lambda slot: slot.offset_bytes)),
        views=find_views(laid_out.data, resolutions),
    )
