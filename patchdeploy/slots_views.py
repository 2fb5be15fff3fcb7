"""The views of a .tflite: which words leave one signature in reach, read off the file itself.

In: a .tflite with a signature ``classify_<px>`` for each resolution. Out: for each, the edits that
make it and its subgraph the only ones. A patch's signed hash is that of the whole file with the
patch laid over it, and a view comes after; what the file itself says leaves a view no choice, so
an edited view in a slot table is found, and patch files need no hash of it.

Field numbers are those of TensorFlow's schema.fbs, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

from patchdeploy import flatbuffer
from patchdeploy.errors import SlotTableError
from patchdeploy.slots import Edit, SlotTable

IDENTIFIER = b"TFL3"
MODEL_SUBGRAPHS, MODEL_SIGNATURES = 2, 7
SIGNATURE_KEY, SIGNATURE_SUBGRAPH = 2, 4
Views = Mapping[int, tuple[Edit, ...]]


def signature_name(resolution: int) -> str:
    """Of the signature that runs at ``resolution`` pixels."""
    return f"classify_{resolution}"


def find_views(data: bytes, resolutions: Sequence[int]) -> Views:
    """The view of each of ``resolutions``, which are all that the file has.

    Raises:
        SlotTableError: no .tflite, or its signatures are not those of ``resolutions``.
    """
    try:
        signatures = _signatures(data)
        names = {signature_name(px): px for px in resolutions}
        if sorted(signatures) != sorted(names) or not names:
            raise ValueError(f"its signatures are {sorted(signatures)}")
        return {px: _view(data, signatures[name]) for name, px in names.items()}
    except (ValueError, struct.error) as error:
        raise SlotTableError(
            f"base file of {len(data)} bytes ({error!s:.200}); it must be a .tflite with a "
            f"signature for each of {', '.join(map(str, resolutions)) or 'no resolution'} px; "
            "export the base again"
        ) from error


def _signatures(data: bytes) -> dict[str, int]:
    """Where the table of each signature is, by its key.

    Raises:
        ValueError, struct.error: there is no such table.
    """
    model = flatbuffer.root(data, IDENTIFIER)
    places = list(flatbuffer.tables(data, flatbuffer.required(data, model, MODEL_SIGNATURES)))
    found = {}
    for place in places:
        start, end = flatbuffer.vector(data, flatbuffer.required(data, place, SIGNATURE_KEY))
        found[data[start:end].decode()] = place
    if len(found) < len(places):
        raise ValueError("two of its signatures have one name")
    return found


def _view(data: bytes, signature: int) -> tuple[Edit, ...]:
    model = flatbuffer.root(data, IDENTIFIER)
    index_place = flatbuffer.field_place(data, signature, SIGNATURE_SUBGRAPH)
    if index_place is None:
        raise ValueError("a signature does not name its subgraph")
    index = int(struct.unpack_from("<I", data, index_place)[0])
    subgraphs = flatbuffer.required(data, model, MODEL_SUBGRAPHS)
    start, end = flatbuffer.vector(data, subgraphs, 4)
    if index >= (end - start) // 4:
        raise ValueError(f"a signature names subgraph {index} of {(end - start) // 4}")
    signatures = flatbuffer.required(data, model, MODEL_SIGNATURES)
    return (
        *_only(subgraphs, flatbuffer.follow(data, start + 4 * index)),
        *_only(signatures, signature),
        Edit(index_place, 0),
    )


def _only(vector: int, table: int) -> tuple[Edit, Edit]:
    """Make the vector of tables at byte ``vector`` hold just the table at byte ``table``.

    An offset is an unsigned distance onward; written modulo 2^32, as a 32-bit reader adds it.
    """
    return Edit(vector, 1), Edit(vector + 4, (table - (vector + 4)) % 2**32)


def check_views(data: bytes, table: SlotTable) -> None:
    """Check that the views of ``table`` are those that its .tflite, ``data``, has.

    Raises:
        SlotTableError: another view, or one too many or too few.
    """
    expected = find_views(data, table.resolutions)
    for px in sorted({*expected, *table.views}):
        if sorted(table.views.get(px, ()), key=_place) != sorted(expected.get(px, ()), key=_place):
            raise SlotTableError(
                f"slot table has another view of {px} px than its base file; a view must leave "
                f"{signature_name(px)} in reach and change nothing else; export the base again"
            )


def _place(edit: Edit) -> int:
    return edit.offset_bytes
