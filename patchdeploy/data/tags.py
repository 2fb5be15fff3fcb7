"""TIFF directories, read without trust: the tags of a TIFF file and those of an EXIF block.

In: bytes. Out: numbers by tag, and a TIFF file whose directory holds what its pixels need and
nothing else. Why: Pillow reads every entry of every directory, so one damaged entry of no
importance ends a run, and entries that share their bytes cost memory without end.
Source: TIFF 6.0, and the BigTIFF page of libtiff.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from patchdeploy.data.formats import Refused

Numbers = tuple[float, ...]

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION = 256, 257, 258, 259, 262, 274
MIN_SAMPLE, MAX_SAMPLE, TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT = 280, 281, 322, 323, 339
S_MIN_SAMPLE, S_MAX_SAMPLE = 340, 341
MOST_STRIPS = 100_000
"""Strips or tiles; each costs Pillow some 10 us."""
_STRIPS = (273, 279, 324, 325)
_PIXEL_TAGS = frozenset(
    (WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, 266, *_STRIPS, 277, 278, 284, 292, 293)
    + (317, 320, TILE_WIDTH, TILE_HEIGHT, 332, 338, SAMPLE_FORMAT, 347, *range(512, 522))
    + (529, 530, 531, 532, 50674)
)
"""What the decoders of pixels read: sizes, strips, predictor, palette, JPEG and fax tables."""
RANGE_TAGS = (BITS, PHOTOMETRIC, SAMPLE_FORMAT, MIN_SAMPLE, MAX_SAMPLE, S_MIN_SAMPLE, S_MAX_SAMPLE)
"""What says which samples are black and which are white."""
_READ_HERE = (*RANGE_TAGS, WIDTH, HEIGHT, COMPRESSION, ORIENTATION, TILE_WIDTH, TILE_HEIGHT)
_KINDS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 11: "f", 12: "d", 16: "Q", 17: "q"}
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BYTES |= {16: 8, 17: 8, 18: 8}
_MOST_NUMBERS = 16  # of a tag that is read here: one for each sample of a pixel, and to spare
_MOST_VALUE_BYTES = 1 << 21  # of a tag that Pillow gets; 100,000 offsets of 8 bytes are 0.8 MB
_SCANS_A_STRIP = 100


@dataclass(frozen=True)
class Directory:
    """One directory: where its entries are, and how to read them.

    Attributes:
        data: the whole file.
        order: ">" or "<".
        big: BigTIFF, of 20 bytes an entry in place of 12.
        entries: the raw bytes of each entry whose value lies inside the file, by tag.
        damaged: tags of the others.
    """

    data: bytes
    order: str
    big: bool
    entries: Mapping[int, bytes]
    damaged: frozenset[int]

    def kind_and_count(self, tag: int) -> tuple[int, int]:
        """The type's number, and how many values the tag has."""
        return _kind_and_count(self.entries[tag], self.order, self.big)

    def value_bytes(self, tag: int) -> int:
        """The length of the tag's value."""
        kind, count = self.kind_and_count(tag)
        return _BYTES[kind] * count

    def numbers(self, tag: int) -> Numbers:
        """The tag's values; none where it is missing, is no list of numbers, or is a long one."""
        if tag not in self.entries:
            return ()
        kind, count = self.kind_and_count(tag)
        if kind not in _KINDS or not 0 < count <= _MOST_NUMBERS:
            return ()
        start, inline = _value_place(self.entries[tag], self.order, self.big)
        where = self.entries[tag] if inline else self.data
        return struct.unpack_from(f"{self.order}{count}{_KINDS[kind]}", where, start)


def _kind_and_count(entry: bytes, order: str, big: bool) -> tuple[int, int]:
    kind, count = struct.unpack_from(order + ("HQ" if big else "HL"), entry, 2)
    return int(kind), int(count)


def _value_place(entry: bytes, order: str, big: bool) -> tuple[int, bool]:
    """(where the value is inside the entry, True), or (its offset in the file, False)."""
    kind, count = _kind_and_count(entry, order, big)
    room, start = (8, 12) if big else (4, 8)
    if _BYTES.get(kind, 0) * count <= room:
        return start, True
    return int(struct.unpack_from(order + ("Q" if big else "L"), entry, start)[0]), False


def read_directory(data: bytes) -> Directory:
    """The first directory of a TIFF file or an EXIF block, without "Exif" and two zeros before it.

    Entries whose value lies outside of ``data``, or of an unknown type, are damaged.

    Raises:
        Refused: it does not begin with a directory.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    try:
        if order is None:
            raise ValueError
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        place = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)[0]
        count = struct.unpack_from(order + ("Q" if big else "H"), data, place)[0]
    except (struct.error, ValueError, OverflowError) as error:
        raise Refused("its directory of tags is damaged") from error
    length, first = (20, place + 8) if big else (12, place + 2)
    entries: dict[int, bytes] = {}
    damaged = set()
    for start in range(first, min(first + length * min(count, 65_535), len(data)), length):
        entry = data[start : start + length]
        if len(entry) < length:
            break
        tag = struct.unpack_from(order + "H", entry)[0]
        if _lies_inside(entry, order, big, len(data)):
            entries.setdefault(tag, entry)
        else:
            damaged.add(tag)
    return Directory(data, order, big, entries, frozenset(damaged))


def _lies_inside(entry: bytes, order: str, big: bool, length: int) -> bool:
    kind, count = _kind_and_count(entry, order, big)
    start, inline = _value_place(entry, order, big)
    return kind in _BYTES and (inline or start + _BYTES[kind] * count <= length)


def read_orientation(exif: bytes) -> int | None:
    """How an EXIF block says that the image is to be turned, 1 to 8; 1 where it does not say.

    Nothing but that entry is looked at. None: the block is damaged too much to be read.
    """
    try:
        found = read_directory(exif.removeprefix(b"Exif\0\0")).numbers(ORIENTATION)
    except Refused:
        return None
    return int(found[0]) if found and found[0] in range(1, 9) else 1


def clean_tiff(data: bytes) -> tuple[bytes, dict[int, Numbers]]:
    """A TIFF file for Pillow, and the numbers of the tags that are read here.

    The new directory, at the end, has the first one's entries that pixels need; they stay where
    they are. So neither EXIF nor maker's notes nor further pages are read.

    Raises:
        Refused: no directory, a damaged entry that pixels need, or more strips, scans or larger
            tiles than an honest file has.
    """
    found = read_directory(data)
    kept = {tag: found.entries[tag] for tag in sorted(_PIXEL_TAGS & found.entries.keys())}
    long = [tag for tag in kept if found.value_bytes(tag) > _MOST_VALUE_BYTES]
    if long or _PIXEL_TAGS & found.damaged:
        wrong = sorted({*long, *(_PIXEL_TAGS & found.damaged)})[0]
        raise Refused(f"the value of its tag {wrong} is too long, or lies outside of the file")
    numbers = {tag: value for tag in _READ_HERE if (value := found.numbers(tag))}
    _check_strips(found, numbers)
    header = bytearray(data)
    header += b"\0" * (len(data) % 2)
    place = len(header)
    order, big = found.order, found.big
    header += struct.pack(order + ("Q" if big else "H"), len(kept)) + b"".join(kept.values())
    header += struct.pack(order + ("Q" if big else "L"), 0)
    struct.pack_into(order + ("Q" if big else "L"), header, 8 if big else 4, place)
    return bytes(header), numbers


def _check_strips(found: Directory, numbers: Mapping[int, Numbers]) -> None:
    strips = max(
        (found.kind_and_count(tag)[1] for tag in _STRIPS if tag in found.entries), default=0
    )
    if strips > MOST_STRIPS:
        raise Refused(f"it has {strips} strips or tiles, and at most {MOST_STRIPS} are read")
    side = [numbers.get(tag, (0.0,))[0] for tag in (WIDTH, HEIGHT, TILE_WIDTH, TILE_HEIGHT)]
    if side[2] * side[3] > max(4 * side[0] * side[1], 1 << 20):
        raise Refused(f"a tile of {side[2]:.0f} x {side[3]:.0f} px is larger than the image")
    if numbers.get(COMPRESSION, (1,))[0] in (6, 7):
        scans = found.data.count(b"\xff\xda")
        if scans > _SCANS_A_STRIP * max(strips, 1):
            raise Refused(f"it has {scans} scans in {strips} strips")
