"""The parts of a payload: a fixed order, each stored or deflated on its own; integers as planes.

In: the bytes of each part. Out: the payload, and back; how long each part may be is known before
a byte is inflated, so hostile bytes cost no more memory than a patch of the same base may.

    for each of PARTS, in this order:
        u8      its number in PARTS
        u8      method: 0 stored, 1 raw deflate (RFC 1951)
        u32le   length as it is read (inflated)
        u32le   length as it stands here
        bytes

The encoding "parts-2" has the same nine parts and then one optional part or more, each once, by
rising number: 9 is the cascade, and later ones get numbers up to 255. A reader refuses a file with
a number below 128 that it does not know, since it says something that the patch cannot do without,
and passes over one from 128 on.

Integers are stored as byte planes: u8 count of planes (0 to 5), then the lowest byte of every
integer, then the next byte of every one; a sign is folded into the lowest bit (0, -1, 1, -2 become
0, 1, 2, 3).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import PatchRefusedError

try:
    import zopfli.zopfli as _zopfli
except ImportError:  # an app that only reads patches
    _zopfli = None

PARTS = (
    "labels",
    "notes",
    "steps",
    "activations",
    "scales",
    "biases",
    "kernels",
    "head",
    "golden",
)
OPTIONAL_PARTS = {len(PARTS): "cascade"}
"""By number; only a file of encoding "parts-2" has them."""
FIRST_IGNORED = 128
"""Optional parts from this number on may be passed over by a reader that does not know them."""
_NUMBERS = 256
_PREFIX = struct.Struct("<BBII")
STORED, DEFLATED = 0, 1
MAX_PLANES = 5
_ZLIB_START, _ZLIB_END = 2, 4
"""Bytes of a zlib stream (RFC 1950) around the deflate stream."""
LONG_BYTES = 1 << 18
_ROUNDS, _ROUNDS_OF_LONG = 15, 1
"""Of zopfli's search. Further ones take 0.005 % off a head of 1000 classes, and a second."""
_STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)

Int64Array = NDArray[np.int64]


def pack_part(index: int, content: bytes) -> bytes:
    """The shortest of the stored and the deflated form."""
    deflated = deflate(content)
    method, body = (DEFLATED, deflated) if len(deflated) < len(content) else (STORED, content)
    return _PREFIX.pack(index, method, len(content), len(body)) + body


def deflate(content: bytes) -> bytes:
    """The shortest raw deflate stream that zlib's strategies at level 9 give, and zopfli where it
    is installed, which also searches where to start a new table (5 to 10 % less).
    """
    streams: list[bytes] = []
    if _zopfli is not None:
        rounds = _ROUNDS if len(content) <= LONG_BYTES else _ROUNDS_OF_LONG
        found = _zopfli.compress(content, numiterations=rounds)
        streams.append(found[_ZLIB_START:-_ZLIB_END])
    for strategy in _STRATEGIES:
        one = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        streams.append(one.compress(content) + one.flush())
    return min(streams, key=len)


def read_parts(
    payload: bytes | memoryview, most_bytes: Mapping[str, int], optional: bool = False
) -> dict[str, bytes | memoryview]:
    """Every part of a payload by name: inflated, or a view of it where it is stored.

    Args:
        most_bytes: by part, the greatest length that it can have; a longer one is not inflated.
        optional: the payload's encoding is "parts-2". Parts that a reader may pass over and does
            not know are left out.

    Raises:
        PatchRefusedError: codes "parts" (order, lengths) and "inflate".
    """
    contents: dict[str, bytes | memoryview] = {}
    view = memoryview(payload)
    for part in _prefixes(payload, optional):
        if part.length > most_bytes.get(part.name, part.length):
            most = most_bytes[part.name]
            raise refuse("inflate", f"{part.name} length", f"at most {most}", part.length)
        _check_stored(payload, part)
        if part.name in most_bytes:
            body = view[part.start : part.end]
            method = part.method
            contents[part.name] = (
                body if method == STORED else _inflate(part.name, body, part.length)
            )
    return contents


def part_lengths(payload: bytes | memoryview, optional: bool = False) -> dict[str, int]:
    """Length of each part as it stands in ``payload``, its prefix included; nothing is inflated.

    Args:
        optional: the payload's encoding is "parts-2".

    Raises:
        PatchRefusedError: code "parts" (order, method, lengths): together they are the payload.
    """
    lengths: dict[str, int] = {}
    for part in _prefixes(payload, optional):
        _check_stored(payload, part)
        lengths[part.name] = _PREFIX.size + part.end - part.start
    return lengths


class _Part(NamedTuple):
    """A part as its prefix says: ``length`` when it is read; its bytes at [start, end)."""

    name: str
    method: int
    length: int
    start: int
    end: int


def _prefixes(payload: bytes | memoryview, optional: bool) -> Iterator[_Part]:
    """The parts in their order, each before its bytes are looked at, to the payload's exact end."""
    place = 0
    for index, name in enumerate(PARTS):
        part = _read_prefix(payload, place, name, range(index, index + 1))
        yield part
        place = part.end
    if optional:
        least = len(PARTS)
        while (place < len(payload) and least < _NUMBERS) or least == len(PARTS):
            part = _read_prefix(payload, place, "optional part", range(least, _NUMBERS))
            number = payload[place]
            if number < FIRST_IGNORED and number not in OPTIONAL_PARTS:
                known = ", ".join(map(str, OPTIONAL_PARTS))
                raise refuse("parts", "optional part", f"{known}, or {FIRST_IGNORED} on", number)
            yield part._replace(name=OPTIONAL_PARTS.get(number, f"part {number}"))
            place, least = part.end, number + 1
    if place != len(payload):
        raise refuse("parts", "payload", f"{place} bytes, those of its parts", len(payload))


def _read_prefix(payload: bytes | memoryview, place: int, name: str, numbers: range) -> _Part:
    """The part at ``place``, whose number must be one of ``numbers``."""
    if place + _PREFIX.size > len(payload):
        raise refuse("parts", name, "a part of 10 bytes and more", len(payload) - place)
    number, method, length, stored = _PREFIX.unpack_from(payload, place)
    if number not in numbers or method not in (STORED, DEFLATED):
        which = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to 255"
        raise refuse("parts", name, f"part {which} by method 0 or 1", (number, method))
    start = place + _PREFIX.size
    return _Part(name, method, length, start, start + stored)


def _check_stored(payload: bytes | memoryview, part: _Part) -> None:
    stored = part.end - part.start
    if part.end > len(payload) or (part.method == STORED and stored != part.length):
        raise refuse("parts", f"{part.name} length", "inside the payload", stored)


def _inflate(name: str, body: memoryview, length: int) -> bytes:
    """Exactly ``length`` bytes, from a stream that ends exactly where ``body`` does."""
    stream = zlib.decompressobj(-15)
    try:
        content = stream.decompress(body, length + 1)
    except zlib.error as error:
        raise refuse("inflate", name, "a raw deflate stream", error) from error
    if len(content) != length or not stream.eof or stream.unused_data:
        found = f"{len(content)} bytes{'' if stream.eof else ' and more'}"
        raise refuse("inflate", name, f"{length} bytes from the whole part", found)
    return content


# -- integers --------------------------------------------------------------------------------------


def pack_planes(numbers: Int64Array) -> bytes:
    """int64 [n] -> u8 count of planes, then the planes; see the module."""
    folded = ((numbers << 1) ^ (numbers >> 63)).astype("<u8").view(np.uint8).reshape(-1, 8)
    used = np.flatnonzero(folded.any(axis=0))
    planes = int(used[-1]) + 1 if used.size else 0
    assert planes <= MAX_PLANES  # codes stay below 2^33: coding.grid
    return bytes([planes]) + np.ascontiguousarray(folded[:, :planes].T).tobytes()


def read_planes(
    name: str, content: bytes | memoryview, place: int, count: int
) -> tuple[Int64Array, int]:
    """The inverse of `pack_planes`: int64 [count], and where it ended.

    Raises:
        PatchRefusedError: code "parts": too short, or more planes than codes can have.
    """
    planes = content[place] if place < len(content) else MAX_PLANES + 1
    if planes > MAX_PLANES or place + 1 + planes * count > len(content):
        expected = f"0 to {MAX_PLANES} planes of {count} bytes"
        raise refuse("parts", name, expected, f"{planes} in {len(content) - place} bytes")
    end = place + 1 + planes * count
    wide = np.zeros(count, np.uint64)
    for plane in range(planes):
        one = np.frombuffer(content, np.uint8, count, place + 1 + plane * count)
        wide |= one.astype(np.uint64) << np.uint64(8 * plane)
    return (wide >> np.uint64(1)).astype(np.int64) ^ -(wide & np.uint64(1)).astype(np.int64), end


def refuse(code: str, field: str, expected: str, got: object) -> PatchRefusedError:
    """A payload that breaks a rule."""
    return PatchRefusedError(code, field, expected, str(got), "pack the task again with its base")
