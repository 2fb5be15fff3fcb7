"""Reading a FlatBuffer (https://flatbuffers.dev/internals) as far as its tables; no library.

In: bytes of another's making. Out: places in them, or a ValueError or struct.error where the bytes
hold no such thing. Nothing is read outside of them, and a vector is never longer than they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def root(data: bytes, identifier: bytes) -> int:
    """Where the root table is.

    Raises:
        ValueError, struct.error: the file has another identifier, or is truncated.
    """
    if data[4:8] != identifier:
        raise ValueError(f"bytes 4 to 8 are {bytes(data[4:8])!r}; the format has {identifier!r}")
    return follow(data, 0)


def follow(data: bytes, position: int) -> int:
    """Where the uint32 at ``position`` points, counted from itself."""
    return position + int(struct.unpack_from("<I", data, position)[0])


def field_place(data: bytes, table: int, index: int) -> int | None:
    """Where field ``index`` of a table lies; None where it is left out."""
    vtable = table - int(struct.unpack_from("<i", data, table)[0])
    entry = 4 + 2 * index
    if vtable < 0 or entry >= struct.unpack_from("<H", data, vtable)[0]:
        return None
    offset = int(struct.unpack_from("<H", data, vtable + entry)[0])
    return table + offset if offset else None


def field(data: bytes, table: int, index: int) -> int | None:
    """What field ``index`` of a table refers to; None where it is left out."""
    place = field_place(data, table, index)
    return None if place is None else follow(data, place)


def required(data: bytes, table: int, index: int) -> int:
    """`field`.

    Raises:
        ValueError: it is left out.
    """
    found = field(data, table, index)
    if found is None:
        raise ValueError(f"field {index} of the table at byte {table} is missing")
    return found


def vector(data: bytes, position: int, item_bytes: int = 1) -> tuple[int, int]:
    """First byte and end of a vector.

    Raises:
        ValueError: it ends outside of the data.
    """
    end = position + 4 + item_bytes * int(struct.unpack_from("<I", data, position)[0])
    if end > len(data):
        raise ValueError(f"a vector ends at byte {end} of {len(data)}")
    return position + 4, end


def tables(data: bytes, position: int) -> Iterator[int]:
    """The tables that the vector at ``position`` refers to."""
    start, end = vector(data, position, 4)
    return (follow(data, place) for place in range(start, end, 4))
