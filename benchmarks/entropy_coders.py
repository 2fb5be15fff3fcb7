"""What other coders would take for the same codes: raw deflate, zstd, an adaptive range coder.

In: int64 codes, and where each layer ends. Out: bytes, each checked by decoding. The range coder is
binary and adaptive: every bit of a code (zero, sign, magnitude in unary classes, mantissa) has a
probability of its own, counted as it goes; a new layer keeps the counts but believes them less.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from patchdeploy.patchfile.parts import pack_planes

try:
    import zopfli.zopfli as _zopfli
except ImportError:
    _zopfli = None
try:
    import zstandard as _zstandard
except ImportError:
    _zstandard = None

Int64Array = NDArray[np.int64]
ZLIB_FRAME_BYTES = 6
"""Of a zlib stream around raw deflate."""

TOP, PRECISION = 1 << 24, 16
LEAST = 1
CARRIED = 24.0
"""Counts that a bit's model brings into a new layer, at most."""


def zlib_bytes(content: bytes) -> int:
    """The shortest raw deflate stream of zlib's own strategies."""
    strategies = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)
    streams = []
    for strategy in strategies:
        one = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        streams.append(len(one.compress(content) + one.flush()))
    return min(streams)


def zopfli_bytes(content: bytes) -> int | None:
    """Zopfli's raw deflate stream; None where it is not installed."""
    if _zopfli is None:
        return None
    return len(_zopfli.compress(content)) - ZLIB_FRAME_BYTES


def zstd_bytes(content: bytes) -> int | None:
    """zstd at its highest level, without a checksum; None where it is not installed."""
    if _zstandard is None:
        return None
    packed = _zstandard.ZstdCompressor(level=22, write_content_size=False).compress(content)
    return len(packed)


def range_coder_bytes(codes: Int64Array, ends: Sequence[int]) -> int:
    """The adaptive range coder's stream; decodes it and compares."""
    packed = encode_range(codes, ends)
    assert np.array_equal(decode_range(packed, ends), codes)
    return len(packed)


def sizes_of(codes: Int64Array, ends: Sequence[int]) -> dict[str, int | None]:
    """Bytes of ``codes`` by coder; all but the range coder take the byte planes of the format."""
    planes = pack_planes(codes)
    return {
        "deflate (zlib)": zlib_bytes(planes),
        "deflate (zopfli)": zopfli_bytes(planes),
        "zstd -22": zstd_bytes(planes),
        "adaptive range coder": range_coder_bytes(codes, ends),
    }


# -- the range coder -------------------------------------------------------------------------------


@dataclass
class _Counts:
    """How often a bit was 0 and 1, starting from half a count each (Krichevsky and Trofimov)."""

    zeros: float = 0.4
    ones: float = 0.4

    def chance(self) -> int:
        """Of a 0, in 2^-PRECISION, never 0 or 1."""
        share = self.zeros / (self.zeros + self.ones)
        return min(max(round(share * (1 << PRECISION)), LEAST), (1 << PRECISION) - LEAST)

    def count(self, bit: int) -> None:
        if bit:
            self.ones += 1
        else:
            self.zeros += 1

    def fade(self) -> None:
        total = self.zeros + self.ones
        if total > CARRIED:
            self.zeros, self.ones = self.zeros * CARRIED / total, self.ones * CARRIED / total


@dataclass
class _Models:
    """The counts of every bit, by its name."""

    bits: dict[tuple[int, ...], _Counts] = field(default_factory=dict)

    def of(self, *name: int) -> _Counts:
        return self.bits.setdefault(name, _Counts())

    def fade(self) -> None:
        for one in self.bits.values():
            one.fade()


class _Writer:
    """Range coder with carry propagation: a 32-bit range, bytes out at the top."""

    def __init__(self) -> None:
        self.low, self.width = 0, 0xFFFFFFFF
        self.out = bytearray()
        self.models = _Models()

    def bit(self, bit: int, *name: int) -> int:
        counts = self.models.of(*name)
        bound = (self.width >> PRECISION) * counts.chance()
        if bit:
            self.low, self.width = self.low + bound, self.width - bound
        else:
            self.width = bound
        counts.count(bit)
        while self.width < TOP:
            self._shift()
        return bit

    def _shift(self) -> None:
        if self.low >> 32:
            self._carry()
        self.out.append((self.low >> 24) & 255)
        self.low = (self.low << 8) & 0xFFFFFFFF
        self.width = (self.width << 8) & 0xFFFFFFFF

    def _carry(self) -> None:
        self.low &= 0xFFFFFFFF
        place = len(self.out) - 1
        while self.out[place] == 255:
            self.out[place] = 0
            place -= 1
        self.out[place] += 1

    def finish(self) -> bytes:
        for _ in range(4):
            self._shift()
        return bytes(self.out).rstrip(b"\0")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 4
        self.code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self.width = 0xFFFFFFFF
        self.models = _Models()

    def bit(self, *name: int) -> int:
        counts = self.models.of(*name)
        bound = (self.width >> PRECISION) * counts.chance()
        bit = int(self.code >= bound)
        if bit:
            self.code, self.width = self.code - bound, self.width - bound
        else:
            self.width = bound
        counts.count(bit)
        while self.width < TOP:
            more = self.data[self.place] if self.place < len(self.data) else 0
            self.code = ((self.code << 8) | more) & 0xFFFFFFFF
            self.width = (self.width << 8) & 0xFFFFFFFF
            self.place += 1
        return bit


ESCAPE = 14
"""Magnitudes from here on are coded as an exponent and a mantissa."""


def _code_number(bit: Callable[..., int], number: int | None) -> int:
    """One code by ``bit(name...)``; ``number`` None reads it. Zero, sign, unary, then exponent."""
    known = number is not None
    size = abs(number) if number is not None else 0

    def put(value: bool, *name: int) -> int:
        return bit(int(value), *name) if known else bit(*name)

    if not put(size > 0, 0):
        return 0
    sign = put(known and number is not None and number < 0, 1)
    found = 1
    while found < ESCAPE and put(size > found, 2, found):
        found += 1
    if found == ESCAPE:
        rest, exponent = size - ESCAPE + 1, 0
        while put(rest >> (exponent + 1) > 0, 3, exponent):
            exponent += 1
        value = 1
        for place in range(exponent - 1, -1, -1):
            value = 2 * value + put(bool((rest >> place) & 1), 4, exponent, place)
        found = ESCAPE - 1 + value
    return -found if sign else found


def encode_range(codes: Int64Array, ends: Sequence[int]) -> bytes:
    """``ends``: where each layer ends in ``codes``, the last one at its end."""
    writer = _Writer()
    for start, end in pairwise((0, *ends)):
        for number in codes[start:end].tolist():
            _code_number(writer.bit, number)
        writer.models.fade()
    return writer.finish()


def decode_range(data: bytes, ends: Sequence[int]) -> Int64Array:
    """The inverse of `encode_range`."""
    reader = _Reader(data)
    found: list[int] = []
    for start, end in pairwise((0, *ends)):
        found += [_code_number(reader.bit, None) for _ in range(end - start)]
        reader.models.fade()
    return np.array(found, np.int64)
