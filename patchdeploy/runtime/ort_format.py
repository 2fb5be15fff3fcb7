"""ONNX Runtime's own file format, which it opens faster: no protobuf to parse, no shapes to infer.

In: a .onnx file and its slot table. Out: the same model as the installed onnxruntime writes it
(.ort, made when a back end opens and never stored: another version may not read it) and the slot
table that goes with it. Slots are found by the initialisers' names; where one is not found with
the very bytes that the .onnx holds, there is no .ort and the .onnx serves.

The format is a FlatBuffer (https://flatbuffers.dev/internals; fields as in onnxruntime's
core/flatbuffers/schema/ort.fbs, which only ever grows at the end).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

from patchdeploy import flatbuffer
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

IDENTIFIER = b"ORTM"
SESSION_MODEL, MODEL_GRAPH, GRAPH_INITIALIZERS = 1, 7, 0
TENSOR_NAME, TENSOR_RAW_DATA = 0, 4


def make_ort_model(
    module: ModuleType, model: bytes, table: SlotTable
) -> tuple[bytes, SlotTable] | None:
    """``model`` in the format of ``module``, which is onnxruntime, and its slot table.

    Returns:
        None where this build cannot write it, or writes it in a way that this version cannot
        place slots in: the .onnx then serves as well, and opens slower.
    """
    try:
        with TemporaryDirectory(prefix="patchdeploy-") as folder:
            path = Path(folder) / "base.ort"
            options = module.SessionOptions()
            options.intra_op_num_threads = 1
            options.graph_optimization_level = module.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            options.optimized_model_filepath = str(path)
            options.add_session_config_entry("session.save_model_format", "ORT")
            module.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            data = path.read_bytes()
    except Exception:  # a build without the writer, or no room; its errors have no common base
        return None
    moved = move_table(model, table, data)
    return None if moved is None else (data, moved)


def move_table(model: bytes, table: SlotTable, ort_model: bytes) -> SlotTable | None:
    """``table`` of ``model`` with the places that its initialisers have in ``ort_model``.

    Returns:
        None unless every slot is there, whole, with the bytes that ``model`` holds.
    """
    try:
        places = find_ort_initializers(ort_model)
    except (struct.error, ValueError, UnicodeDecodeError):
        return None
    slots = []
    for slot in table.slots:
        start, end = places.get(slot.name, (0, 0))
        source = model[slot.offset_bytes : slot.offset_bytes + slot.length_bytes]
        if end - start != slot.length_bytes or ort_model[start:end] != source:
            return None
        slots.append(replace(slot, offset_bytes=start))
    return replace(
        table,
        runtime="ort",
        base_sha256=sha256_hex(ort_model),
        base_bytes=len(ort_model),
        slots=tuple(sorted(slots, key=lambda slot: slot.offset_bytes)),
    )


def find_ort_initializers(data: bytes) -> dict[str, tuple[int, int]]:
    """First byte and end of every initialiser's raw data, by name.

    Raises:
        ValueError, struct.error, UnicodeDecodeError: not an .ort file, or truncated.
    """
    position = flatbuffer.root(data, IDENTIFIER)
    for field in (SESSION_MODEL, MODEL_GRAPH):
        position = flatbuffer.required(data, position, field)
    places = {}
    for tensor in flatbuffer.tables(data, flatbuffer.required(data, position, GRAPH_INITIALIZERS)):
        name, raw = (
            flatbuffer.field(data, tensor, TENSOR_NAME),
            flatbuffer.field(data, tensor, TENSOR_RAW_DATA),
        )
        if name is not None and raw is not None:
            start, end = flatbuffer.vector(data, name)
            places[data[start:end].decode()] = flatbuffer.vector(data, raw)
    return places
