"""Laying out a .tflite file: which byte each blob and each table is at.

In: subgraphs and the blobs that they name. Out: `LaidOut`: the file (identifier TFL3, schema
version 3) and the offset of every blob.

A flatbuffer is written back to front, and any number of tables may refer to one vector: blobs
come first (kernels, then the slots of each resolution together, so that setting them touches few
pages of a mapped file), then equal tables once, then the model. Every offset is counted from the
end while writing, and is exact once the file is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from patchdeploy_tflite.plan import (
    Blob,
    Operation,
    Options,
    Quantization,
    Subgraph,
    Tensor,
)

FILE_IDENTIFIER = b"TFL3"
SCHEMA_VERSION = 3
BUFFER_ALIGNMENT_BYTES = 16
"""schema.fbs: ``data:[ubyte] (force_align: 16)`` of Buffer."""
TABLE_BYTES = 1 << 16


@dataclass(frozen=True)
class LaidOut:
    """A whole file.

    Attributes:
        offsets: byte offset of the first element of each blob.
    """

    data: bytes
    offsets: Mapping[Blob, int]


def lay_out(subgraphs: Sequence[Subgraph], blobs: Sequence[Blob], description: str) -> LaidOut:
    """Write ``subgraphs``, each with the signature of its name, over ``blobs`` in their order."""
    writer = _Writer(sum(blob.data.nbytes for blob in blobs) + TABLE_BYTES)
    buffered = {tensor.buffer for graph in subgraphs for tensor in graph.tensors} - {None}
    for blob in reversed(blobs):
        writer.blob(blob, blob in buffered)
    buffers = writer.buffers([blob for blob in blobs if blob in buffered])
    codes = list(dict.fromkeys((o.kind, o.version) for g in subgraphs for o in g.operations))
    writer.opcodes = {code: index for index, code in enumerate(codes)}
    tables = [writer.subgraph(graph) for graph in subgraphs]
    signatures = [writer.signature(graph, index) for index, graph in enumerate(subgraphs)]
    return writer.model(buffers, tables, signatures, description)


class _Writer:
    """A flatbuffer on the way; every number it hands out is an offset from the file's end."""

    def __init__(self, initial_bytes: int) -> None:
        self._builder: Any = flatbuffers.Builder(initial_bytes)
        self._vectors: dict[Blob, int] = {}
        self._buffer_index: dict[Blob, int] = {}
        self._made: dict[Hashable, int] = {}
        self.opcodes: dict[tuple[str, int], int] = {}

    def blob(self, blob: Blob, is_buffer: bool) -> None:
        """The vector that holds ``blob``: of bytes in a Buffer, of its own elements elsewhere."""
        payload = blob.data.tobytes()
        item_bytes = 1 if is_buffer else blob.data.itemsize
        alignment = BUFFER_ALIGNMENT_BYTES if is_buffer else item_bytes
        builder = self._builder
        builder.StartVector(item_bytes, len(payload) // item_bytes, alignment)
        builder.head -= len(payload)
        builder.Bytes[builder.head : builder.head + len(payload)] = payload
        self._vectors[blob] = builder.EndVector()

    def buffers(self, blobs: Sequence[Blob]) -> int:
        """The vector of Buffer tables; the first one is empty, as the schema wants."""
        tables = [self._table("Buffer")]
        for blob in blobs:
            self._buffer_index[blob] = len(tables)
            tables.append(self._table("Buffer", Data=self._vectors[blob]))
        return self._references(tables)

    def _table(self, name: str, **fields: float) -> int:
        """A table with ``fields`` (scalars, or offsets of what was written before)."""
        builder = self._builder
        getattr(schema, f"{name}Start")(builder)
        for field, value in fields.items():
            getattr(schema, f"{name}Add{field}")(builder, value)
        return cast(int, getattr(schema, f"{name}End")(builder))

    def _once(self, key: Hashable, make: Callable[[], int]) -> int:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _string(self, text: str) -> int:
        return cast(int, self._builder.CreateSharedString(text))

    def _integers(self, values: Sequence[int]) -> int:
        array = np.array(values, np.int32)
        return self._once(
            ("integers", *values), lambda: int(self._builder.CreateNumpyVector(array))
        )

    def _references(self, offsets: Sequence[int]) -> int:
        builder = self._builder
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return int(builder.EndVector())

    def _quantization(self, quantization: Quantization) -> int:
        def make() -> int:
            return self._table(
                "QuantizationParameters",
                Scale=self._vectors[quantization.scale],
                ZeroPoint=self._vectors[quantization.zero_point],
                QuantizedDimension=quantization.dimension,
            )

        return self._once(quantization, make)

    def _tensor(self, tensor: Tensor) -> int:
        fields: dict[str, int] = {
            "Shape": self._integers(tensor.shape),
            "Name": self._string(tensor.name),
        }
        if tensor.quantization is not None:
            fields["Quantization"] = self._quantization(tensor.quantization)
        if tensor.buffer is not None:
            fields["Buffer"] = self._buffer_index[tensor.buffer]
        fields["Type"] = getattr(schema.TensorType, tensor.dtype)
        return self._once(tensor, lambda: self._table("Tensor", **fields))

    def _options(self, options: Options) -> int:
        return self._once(options, lambda: self._table(options.table, **dict(options.fields)))

    def _operation(self, operation: Operation) -> int:
        fields: dict[str, int] = {
            "Inputs": self._integers(operation.inputs),
            "Outputs": self._integers(operation.outputs),
        }
        if operation.options is not None:
            fields["BuiltinOptions"] = self._options(operation.options)
            kind = getattr(schema.BuiltinOptions, operation.options.table)
            fields["BuiltinOptionsType"] = kind
        fields["OpcodeIndex"] = self.opcodes[operation.kind, operation.version]
        return self._once(operation, lambda: self._table("Operator", **fields))

    def subgraph(self, graph: Subgraph) -> int:
        """A SubGraph table."""
        tensors = self._references([self._tensor(tensor) for tensor in graph.tensors])
        operations = self._references([self._operation(one) for one in graph.operations])
        return self._table(
            "SubGraph",
            Tensors=tensors,
            Inputs=self._integers(tuple(graph.inputs.values())),
            Outputs=self._integers(tuple(graph.outputs.values())),
            Operators=operations,
            Name=self._string(graph.name),
        )

    def signature(self, graph: Subgraph, index: int) -> int:
        """A SignatureDef whose subgraph_index field is there even where it is 0."""

        def maps(tensors: Mapping[str, int]) -> int:
            return self._references(
                [
                    self._table("TensorMap", Name=self._string(name), TensorIndex=tensor)
                    for name, tensor in tensors.items()
                ]
            )

        inputs, outputs = maps(graph.inputs), maps(graph.outputs)
        fields = {"Inputs": inputs, "Outputs": outputs, "SignatureKey": self._string(graph.name)}
        self._builder.ForceDefaults(True)
        table = self._table("SignatureDef", **fields, SubgraphIndex=index)
        self._builder.ForceDefaults(False)
        return table

    def _operator_codes(self) -> int:
        tables = []
        for kind, version in self.opcodes:
            code = getattr(schema.BuiltinOperator, kind)
            tables.append(
                self._table(
                    "OperatorCode",
                    DeprecatedBuiltinCode=min(code, 127),
                    BuiltinCode=code,
                    Version=version,
                )
            )
        return self._references(tables)

    def model(
        self, buffers: int, subgraphs: Sequence[int], signatures: Sequence[int], description: str
    ) -> LaidOut:
        """Close the file."""
        subgraph_vector = self._references(subgraphs)
        signature_vector = self._references(signatures)
        root = self._table(
            "Model",
            Version=SCHEMA_VERSION,
            OperatorCodes=self._operator_codes(),
            Subgraphs=subgraph_vector,
            Description=self._string(description),
            Buffers=buffers,
            SignatureDefs=signature_vector,
        )
        self._builder.Finish(root, file_identifier=FILE_IDENTIFIER)
        data = bytes(self._builder.Output())
        offsets = {blob: len(data) - vector + 4 for blob, vector in self._vectors.items()}
        return LaidOut(data, offsets)
