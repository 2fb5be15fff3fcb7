"""An image file without what is not its pixels, within what decoding it may cost.

In: the bytes of a whole file. Out: the bytes that Pillow gets, and the blocks that say how the
image is turned. Why: comments, profiles, EXIF, further pages and animations are parsed in Python
before a pixel is decoded; without them a damaged one cannot end a run and a million of them cost
nothing. Parts are cut out whole; what stays, stays byte for byte.
Sources: ITU-T T.81 (JPEG), the PNG, GIF89a and WebP container specifications, ISO 15444-1 Annex I.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from patchdeploy.data.formats import ImageFormat, Refused
from patchdeploy.data.tags import Numbers, clean_tiff

MOST_PARTS = 100_000
"""Segments, chunks or boxes of a file; each costs Python some us. 8 kB parts make 800 MB."""
MOST_SCANS = 1_000
MOST_SCANNED_PIXELS = 1_800_000_000
"""Scans of a JPEG times its pixels: 20 scans of the largest image; some 5 s of empty scans."""
_MOST_TEXT_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class Contents:
    """What is decoded.

    Attributes:
        data: a file of the same format.
        info: what `decode` adds to Pillow's ``image.info``: "exif" and "xmp", as bytes.
        numbers: of a TIFF file's tags.
        size_px: width and height, where they must be known before Pillow opens the file.
    """

    data: bytes
    info: Mapping[str, bytes] = field(default_factory=dict)
    numbers: Mapping[int, Numbers] = field(default_factory=dict)
    size_px: tuple[int, int] | None = None


def read_contents(data: bytes, kind: ImageFormat) -> Contents:
    """The pixels of ``data``, a file of the format ``kind``.

    Raises:
        Refused: more parts or scans than an honest file has, or no image.
    """
    if kind.name == "TIFF":
        cleaned, numbers = clean_tiff(data)
        return Contents(cleaned, numbers=numbers)
    if kind.name == "WEBP":
        return Contents(data, size_px=_webp_size(data))
    if kind.name == "JPEG2000":
        _check_boxes(data)
    readers = {"JPEG": _read_jpeg, "PNG": _read_png, "GIF": _read_gif}
    return readers[kind.name](data) if kind.name in readers else Contents(data)


def _without(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    """``data`` without the ranges (start, end), which are in order."""
    if not cuts:
        return data
    starts = [0, *(end for _, end in cuts)]
    ends = [*(start for start, _ in cuts), len(data)]
    return b"".join(data[start:end] for start, end in zip(starts, ends, strict=True))


def _count(parts: int, what: str) -> None:
    if parts > MOST_PARTS:
        raise Refused(f"it has more than {MOST_PARTS} {what}")


_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""A marker that a segment follows, or the end; between, the codes of a scan."""
_SOS, _EOI, _COMMENT, _FRAMES = 0xDA, 0xD9, 0xFE, (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_PROGRESSIVE = (0xC2, 0xCA)
_APPLICATIONS = frozenset((*range(0xE1, 0xEE), 0xEF))
"""APP1 to APP15 but for APP14, which says how colours are coded; APP0 (JFIF) stays as well."""


def _read_jpeg(data: bytes) -> Contents:
    cuts: list[tuple[int, int]] = []
    info: dict[str, bytes] = {}
    frame, scans = b"", 0
    for marker, start, end in _jpeg_segments(data):
        if marker in _FRAMES:
            frame = frame or data[start + 1 : start + 2] + data[start + 4 : end]
        elif marker == _SOS:
            scans += 1
            if scans == 1 and _is_one_scan(frame, data[start + 4 : start + 5]):
                break
            _check_scans(scans, frame)
        elif marker in _APPLICATIONS or marker == _COMMENT:
            cuts.append((start, end))
            segment = data[start + 4 : end]
            if segment.startswith(b"Exif\0\0"):
                info.setdefault("exif", segment)
            elif segment.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
                info.setdefault("xmp", segment)
    return Contents(_without(data, cuts), info)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, where its FF is, where its segment ends), to the end of the image."""
    place, parts = 2, 0
    while (found := _MARKER.search(data, place)) is not None:
        start, marker = found.start(), data[found.start() + 1]
        if marker == _EOI or start + 4 > len(data):
            return
        parts += 1
        _count(parts, "segments")
        place = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
        if place > len(data):
            return
        yield marker, start, place


def _is_one_scan(frame: bytes, components: bytes) -> bool:
    """Whether a scan of so many components is all that a decoder reads.

    Args:
        frame: the marker's second byte, then precision, height, width and number of components.
    """
    return len(frame) > 6 and frame[0] not in _PROGRESSIVE and components == frame[6:7]


def _check_scans(scans: int, frame: bytes) -> None:
    high, wide = struct.unpack(">HH", frame[2:6]) if len(frame) >= 6 else (0, 0)
    if scans > MOST_SCANS or scans * high * wide > MOST_SCANNED_PIXELS:
        raise Refused(f"it has {scans} scans or more of {wide} x {high} px")


def _read_png(data: bytes) -> Contents:
    cuts: list[tuple[int, int]] = []
    info: dict[str, bytes] = {}
    place = 8
    parts = 0
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">L4s", data, place)
        end = place + 12 + length
        if end > len(data):
            break
        parts += 1
        _count(parts, "chunks")
        if name == b"IEND":
            break
        if name[0] & 32 and name != b"tRNS":  # a chunk that a decoder may leave out
            cuts.append((place, end))
            for key, block in _png_info(name, data[place + 8 : end - 4]):
                info.setdefault(key, block)
        place = end
    return Contents(_without(data, cuts), info)


def _png_info(name: bytes, chunk: bytes) -> Iterator[tuple[str, bytes]]:
    """EXIF and XMP of a chunk, in each of the three ways that they are written."""
    if name == b"eXIf":
        yield "exif", chunk
    keyword, _, rest = chunk.partition(b"\0")
    if name not in (b"tEXt", b"zTXt", b"iTXt") or keyword not in (_PROFILE, _XMP):
        return
    if name == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        packed, rest = name == b"zTXt", rest[1:] if name == b"zTXt" else rest
    try:
        text = zlib.decompressobj().decompress(rest, _MOST_TEXT_BYTES) if packed else rest
        if keyword == _XMP:
            yield "xmp", text
        else:
            yield "exif", bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except (zlib.error, ValueError):
        yield "exif", b""


_PROFILE, _XMP = b"Raw profile type exif", b"XML:com.adobe.xmp"


def _read_gif(data: bytes) -> Contents:
    """The first image of an animation, with the control block before it (transparency)."""
    head = place = 13 + (3 * 2 ** ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 128 else 0)
    control, parts = b"", 0
    while place < len(data) and data[place : place + 1] not in (b",", b";"):
        parts += 1
        _count(parts, "blocks before the first image")
        start, is_block = place, data[place : place + 1] == b"!"
        place += 2 if is_block else 1
        while is_block and place < len(data) and data[place]:
            parts += 1
            _count(parts, "blocks before the first image")
            place += 1 + data[place]
        place += is_block
        if is_block and data[start + 1 : start + 2] == b"\xf9":
            control = data[start:place]
    if data[place : place + 1] != b",":
        raise Refused("it holds no image")
    return Contents(data[:head] + control + data[place:])


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Of the canvas, which Pillow allocates when it opens the file; None: libwebp refuses it."""
    kind, first = data[12:16], data[20:30]
    if len(first) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(first[4:7], "little"), 1 + int.from_bytes(first[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(first[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    wide, high = struct.unpack_from("<HH", first, 6)
    return (wide & 0x3FFF, high & 0x3FFF) if kind == b"VP8 " else None


def _check_boxes(data: bytes) -> None:
    """That a JPEG 2000 file has few boxes, a short header, and few segments in its main header."""
    place, parts = 0, 0
    while data[place : place + 2] != b"\xff\x4f" and place + 8 <= len(data):
        length, name = struct.unpack_from(">L4s", data, place)
        start = place + (16 if length == 1 else 8)
        if length == 1 and start <= len(data):
            length = struct.unpack_from(">Q", data, place + 8)[0]
        if name == b"jp2h" and length > _MOST_HEADER_BYTES:
            raise Refused(
                f"its header has {length} bytes, and at most {_MOST_HEADER_BYTES} are read"
            )
        parts += 1
        _count(parts, "boxes")
        place = start if name == b"jp2c" else place + max(8, length or len(data))
    place += 2
    while place + 4 <= len(data) and data[place + 1] not in (0x90, 0xD9):  # SOT, EOC
        parts += 1
        _count(parts, "segments")
        place += 2 + max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
