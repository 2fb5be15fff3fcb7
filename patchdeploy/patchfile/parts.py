"""The parts of a payload: a fixed order, each stored or deflated on its own; integers as planes.

In: the bytes of each part. Out: the payload, and back; how long each part may be is known before
a byte is inflated, so hostile bytes cost no more memory than a patch of the same base may.

    for each of PARTS, in this order:
        u8      its number in PARTS
        u8      method: 0 stored, 1 raw deflate (RFC 1951)
        u32le   length as it is read (inflated)
        u32le   length as it stands here
        bytes

Integers are stored as byte planes: u8 count of planes (0 to 5), then the lowest byte of every
integer, then the next byte of every one; a sign is folded into the lowest bit (0, -1, 1, -2 become
0, 1, 2, 3).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

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
_PREFIX = struct.Struct("<BBII")
STORED, DEFLATED = 0, 1
MAX_PLANES = 5
_ZLIB_START, _ZLIB_END = 2, 4
"""Bytes of a zlib stream (RFC 1950) around the deflate stream."""
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
        streams.append(_zopfli.compress(content)[_ZLIB_START:-_ZLIB_END])
    for strategy in _STRATEGIES:
        one = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        streams.append(one.compress(content) + one.flush())
    return min(streams, key=len)


def read_parts(
    payload: bytes | memoryview, most_bytes: Mapping[str, int]
) -> dict[str, bytes | memoryview]:
    """Every part of a payload by name: inflated, or a view of it where it is stored.

    Args:
        most_bytes: by part, the greatest length that it can have; a longer one is not inflated.

    Raises:
        PatchRefusedError: codes "parts" (order, lengths) and "inflate".
    """
    contents: dict[str, bytes | memoryview] = {}
    view, place = memoryview(payload), 0
    for index, name in enumerate(PARTS):
        method, length, stored = _read_prefix(payload, place, index)
        place += _PREFIX.size
        if length > most_bytes[name]:
            raise refuse("inflate", f"{name} length", f"at most {most_bytes[name]}", length)
        _check_stored(payload, place, name, (method, length, stored))
        body = view[place : place + stored]
        contents[name] = body if method == STORED else _inflate(name, body, length)
        place += stored
    _check_end(payload, place)
    return contents


def part_lengths(payload: bytes | memoryview) -> dict[str, int]:
    """Length of each part as it stands in ``payload``, its prefix included; nothing is inflated.

    Raises:
        PatchRefusedError: code "parts" (order, method, lengths): together they are the payload.
    """
    lengths: dict[str, int] = {}
    place = 0
    for index, name in enumerate(PARTS):
        prefix = _read_prefix(payload, place, index)
        _check_stored(payload, place + _PREFIX.size, name, prefix)
        lengths[name] = _PREFIX.size + prefix[2]
        place += lengths[name]
    _check_end(payload, place)
    return lengths


def _read_prefix(payload: bytes | memoryview, place: int, index: int) -> tuple[int, int, int]:
    """Method, length as it is read and length as it stands there of part ``index``."""
    name = PARTS[index]
    if place + _PREFIX.size > len(payload):
        raise refuse("parts", name, "a part of 10 bytes and more", len(payload) - place)
    number, method, length, stored = _PREFIX.unpack_from(payload, place)
    if number != index or method not in (STORED, DEFLATED):
        raise refuse("parts", name, f"part {index} by method 0 or 1", (number, method))
    return method, length, stored


def _check_stored(
    payload: bytes | memoryview, place: int, name: str, prefix: tuple[int, int, int]
) -> None:
    method, length, stored = prefix
    if place + stored > len(payload) or (method == STORED and stored != length):
        raise refuse("parts", f"{name} length", "inside the payload", stored)


def _check_end(payload: bytes | memoryview, place: int) -> None:
    if place != len(payload):
        raise refuse("parts", "payload", f"{place} bytes, those of its parts", len(payload))


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
