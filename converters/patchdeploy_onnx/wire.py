"""The protobuf wire format of a ModelProto, as far as slots need it; no onnx, no protobuf.

In: the bytes of a .onnx file. Out: where each initialiser's raw data lies in them, the same
bytes with graph inputs appended, or with unsigned kernels.

Field numbers are those of onnx/onnx.proto3. The encoding is that of
https://protobuf.dev/programming-guides/encoding: a key is (field << 3 | wire type), lengths are
base-128 varints, and parsing two messages one after the other merges them: embedded messages
merge, repeated fields are joined. That last rule is why appending works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from patchdeploy.errors import FileFormatError
from patchdeploy.slots import WEIGHT_LAYOUTS, Slot, SlotTable

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MODEL_GRAPH = 7
GRAPH_INITIALIZER, GRAPH_INPUT = 5, 11
TENSOR_TYPE, TENSOR_NAME, TENSOR_RAW_DATA = 2, 8, 9
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR, TENSOR_ELEMENT, TENSOR_SHAPE = 1, 1, 2
SHAPE_DIM, DIM_VALUE = 1, 1
ELEMENT_TYPES = {"f32": 1, "u8": 2, "i8": 3, "i32": 6}
"""TensorProto.DataType by slot dtype."""
FLIP_TOP_BIT = bytes(byte ^ 0x80 for byte in range(256))
"""As a translation table: the int8 byte of q to the uint8 byte of q + 128."""


@dataclass(frozen=True)
class Span:
    """A run of bytes, from ``start`` up to ``end``."""

    start: int
    end: int

    @property
    def length_bytes(self) -> int:
        return self.end - self.start


def find_initializers(data: bytes | memoryview) -> dict[str, Span]:
    """Where the raw data of every initialiser lies in ``data``, by name, in file order.

    Raises:
        FileFormatError: truncated, or not a ModelProto.
    """
    view = memoryview(data)
    return {
        _text(view, fields[TENSOR_NAME]): fields[TENSOR_RAW_DATA]
        for fields in _tensors(view)
        if TENSOR_NAME in fields and TENSOR_RAW_DATA in fields
    }


def per_run_model(data: bytes, table: SlotTable) -> bytes:
    """``data`` with every slot declared as a graph input too, so that a run may set it.

    The base's bytes come first and unchanged, so offsets of the slot table stay valid; the
    initialiser is the default where a run feeds nothing. ONNX Runtime (>= 1.29: below, a bias
    that is an input is dropped without a word) then treats slots as run-time values, which
    costs speed per inference and saves making a session.
    """
    inputs = b"".join(message(GRAPH_INPUT, _value_info(slot)) for slot in table.slots)
    return data + message(MODEL_GRAPH, inputs)


def unsigned_kernels(data: bytes | bytearray) -> bytes:
    """The same network with uint8 kernels of zero point 128 in place of int8 ones of 0.

    For x86-64 CPUs without VNNI. There ONNX Runtime multiplies uint8 by int8 with VPMADDUBSW,
    whose sum of two products saturates at 16 bits (255 * 127 * 2 > 32767): scores come out
    wrong, and no session option helps. Its uint8 by uint8 kernels are exact. Every int8
    initialiser of the file is a kernel or their zero point: q + 128 flips the top bit of each
    byte, and the type changes; nothing moves, but the bytes no longer match a slot table, so
    this comes after overlay. Not for per-run mode, whose slots are int8.

    Raises:
        FileFormatError: truncated, or not a ModelProto.
    """
    target = bytearray(data)
    for fields in _tensors(memoryview(data)):
        kind = fields.get(TENSOR_TYPE)
        if kind is None or data[kind.start : kind.end] != bytes([ELEMENT_TYPES["i8"]]):
            continue
        target[kind.start] = ELEMENT_TYPES["u8"]
        span = fields.get(TENSOR_RAW_DATA, Span(0, 0))
        target[span.start : span.end] = target[span.start : span.end].translate(FLIP_TOP_BIT)
    return bytes(target)


def slot_dims(slot: Slot) -> tuple[int, ...]:
    """Shape of the initialiser that ``slot`` sets: a scalar, [O], or a kernel in its layout."""
    if slot.kind == "weight":
        return tuple(slot.shape[axis] for axis in WEIGHT_LAYOUTS[slot.layout])
    if slot.kind in ("activation_scale", "activation_zero_point"):
        return ()
    return (slot.count,)


def _value_info(slot: Slot) -> bytes:
    dims = b"".join(message(SHAPE_DIM, integer(DIM_VALUE, n)) for n in slot_dims(slot))
    tensor = integer(TENSOR_ELEMENT, ELEMENT_TYPES[slot.dtype]) + message(TENSOR_SHAPE, dims)
    return message(VALUE_NAME, slot.name.encode()) + message(
        VALUE_TYPE, message(TYPE_TENSOR, tensor)
    )


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | VARINT) + _varint(value)


def message(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | BYTES) + _varint(len(payload)) + payload


def _tensors(view: memoryview) -> Iterator[dict[int, Span]]:
    """Field number -> content, for every initialiser in ``view``."""
    for graph in _submessages(view, Span(0, len(view)), MODEL_GRAPH):
        for tensor in _submessages(view, graph, GRAPH_INITIALIZER):
            yield {key >> 3: content for key, content in _fields(view, tensor)}


def _submessages(view: memoryview, span: Span, field: int) -> Iterator[Span]:
    return (content for key, content in _fields(view, span) if key == field << 3 | BYTES)


def _fields(view: memoryview, span: Span) -> Iterator[tuple[int, Span]]:
    """(key, content) of every field of the message at ``span``; fixed-size ones are skipped."""
    position = span.start
    while position < span.end:
        key, start = _read_varint(view, position, span.end)
        wire_type = key & 7
        if wire_type == VARINT:
            _, position = _read_varint(view, start, span.end)
        elif wire_type in (FIXED64, FIXED32):
            position = start + (8 if wire_type == FIXED64 else 4)
        elif wire_type == BYTES:
            length, start = _read_varint(view, start, span.end)
            position = start + length
        else:
            raise _broken(start, f"wire type {wire_type}")
        if position > span.end:
            raise _broken(span.end, "the end of a message inside a field")
        if wire_type in (VARINT, BYTES):
            yield key, Span(start, position)


def _text(view: memoryview, span: Span) -> str:
    try:
        return bytes(view[span.start : span.end]).decode()
    except UnicodeDecodeError as error:
        raise _broken(span.start, "a name that is not UTF-8") from error


def _read_varint(view: Sequence[int], position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _broken(position, "an integer without an end")


def _broken(position: int, found: str) -> FileFormatError:
    return FileFormatError(
        f"the .onnx bytes hold {found} at byte {position}; a model is a whole protobuf "
        "ModelProto; copy the file again or export it again"
    )
