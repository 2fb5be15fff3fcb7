"""The int8 file and its slot table.

In: a `QuantizedBase` and the variant whose values the file holds. Out: a `WrittenModel`. The
bytes outside slots depend on the base alone: the variant changes values, never structure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from patchdeploy.convert import WrittenModel
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant
from patchdeploy.slots import SlotTable, check_table
from patchdeploy.storage import sha256_hex
from patchdeploy_onnx.model_file import serialize_model
from patchdeploy_onnx.operators import write_operator
from patchdeploy_onnx.sizes import BATCH
from patchdeploy_onnx.tensors import OUTPUT, TensorPool
from patchdeploy_onnx.wire import find_initializers

INT8_NOTE = "patchdeploy int8 base file"


def write_int8(base: QuantizedBase, variant: QuantizedVariant) -> WrittenModel:
    """The file with ``variant``'s values, and where they lie in it.

    Raises:
        UnsupportedOperatorError: an operator that has no quantised ONNX form.
    """
    pool = TensorPool(base, variant)
    nodes = [node for op in base.graph.operators for node in write_operator(op, pool)]
    scores = _write_scores(pool, nodes)
    image = pool.value(base.graph.input)
    data = serialize_model(base.graph.name, nodes, image, scores, INT8_NOTE)
    return WrittenModel(data, _slot_table(data, pool))


def _write_scores(pool: TensorPool, nodes: list[Any]) -> Any:
    """uint8 [N, 1, 1, capacity] -> float32 [N, capacity]."""
    value, capacity = pool.base.graph.output, pool.base.head_capacity
    flat = gs.Variable("/scores/flat", dtype=np.uint8, shape=[BATCH, capacity])
    scores = gs.Variable(OUTPUT, dtype=np.float32, shape=[BATCH, capacity])
    shape = pool.constant("scores.shape", np.array([0, capacity], np.int64))
    nodes.append(gs.Node("Reshape", "scores/flat", {}, [pool.value(value), shape], [flat]))
    dequantize = [flat, *pool.params(value)]
    nodes.append(gs.Node("DequantizeLinear", "scores", {}, dequantize, [scores]))
    return scores


def _slot_table(data: bytes, pool: TensorPool) -> SlotTable:
    spans = find_initializers(data)
    slots = [replace(slot, offset_bytes=spans[name].start) for name, slot in pool.slots.items()]
    slots.sort(key=lambda slot: slot.offset_bytes)
    assert all(spans[slot.name].length_bytes == slot.length_bytes for slot in slots)
    table = SlotTable("onnx", sha256_hex(data), len(data), (), tuple(slots), {})
    check_table(table)
    return table
