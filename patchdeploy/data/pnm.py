"""PBM, PGM and PPM files, which Pillow decodes in Python wherever their largest value is not 255.

In: the bytes of a file. Out: uint8 [H, W] or [H, W, 3]. Why: a 12-bit PGM of a megapixel takes
Pillow 1.7 s, and a comment of a megabyte more. The values are those that Pillow gives.
Source: the Netpbm pages pbm(5), pgm(5), ppm(5).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data.depth import SIXTEEN_BITS, check_extent
from patchdeploy.data.formats import MOST_PIXELS, Refused

_GAP = rb"(?:\s|#[^\r\n]{0,4096}[\r\n]){1,4096}"
_BITMAP = re.compile(rb"P[14]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s")
_GREY = re.compile(_BITMAP.pattern.replace(b"14", b"2356")[:-2] + _GAP + rb"(\d{1,9})\s")
_HEADER_BYTES = 65_536
_MOST_PLAIN = 1 << 22
"""Values written as text."""


def read_pnm(data: bytes) -> NDArray[np.uint8]:
    """The image, scaled to 8 bits by the largest value that its header states.

    Raises:
        Refused: no header, too large, or too short.
    """
    kind = int(data[1:2])
    header = (_BITMAP if kind in (1, 4) else _GREY).match(data[:_HEADER_BYTES])
    if header is None:
        raise Refused("its header is damaged")
    wide, high, *largest = (int(one) for one in header.groups())
    most = largest[0] if largest else 1
    if not (0 < wide * high <= MOST_PIXELS and 0 < most < 65_536):
        raise Refused(f"it has {wide} x {high} px with values to {most}")
    channels = 3 if kind in (3, 6) else 1
    body = memoryview(data)[header.end() :]
    if kind == 4:
        row_bytes = -(-wide // 8)
        packed = _samples(body, high * row_bytes, "u1").reshape(high, row_bytes)
        bits = np.unpackbits(packed.astype(np.uint8), axis=1)[:, :wide]
        return np.where(bits, np.uint8(0), np.uint8(255))
    count = wide * high * channels
    if kind < 4:
        values = _plain(bytes(body), count, is_bitmap=kind == 1)
    else:
        values = _samples(body, count, "u1" if most < 256 else ">u2")
    found = (255 * (1 - values)).astype(np.uint8) if kind == 1 else _scale(values, most, channels)
    shaped = found.reshape(high, wide, channels)
    return shaped if channels == 3 else shaped[..., 0]


def _samples(body: memoryview, count: int, dtype: str) -> NDArray[Any]:
    if len(body) < count * np.dtype(dtype).itemsize:
        raise Refused("it is truncated")
    return np.frombuffer(body, dtype, count)


def _plain(body: bytes, count: int, is_bitmap: bool) -> NDArray[Any]:
    if count > _MOST_PLAIN:
        raise Refused(f"it has {count} values as text, and at most {_MOST_PLAIN} are read")
    text = re.sub(rb"#[^\r\n]*", b"", body[: 16 * count + _HEADER_BYTES])
    tokens = list(re.sub(rb"\s", b"", text)) if is_bitmap else text.split(maxsplit=count)[:count]
    try:
        values = np.array([int(one) for one in tokens[:count]], np.int64)
    except (ValueError, OverflowError) as error:
        raise Refused("its values are damaged") from error
    values = values - ord("0") if is_bitmap else values
    if len(values) < count or values.min(initial=0) < 0 or (is_bitmap and values.max() > 1):
        raise Refused("it is truncated, or its values are damaged")
    return np.minimum(values, 65_535)


def _scale(values: NDArray[Any], most: int, channels: int) -> NDArray[np.uint8]:
    """Pillow's formulas: a grey image of more than 8 bits goes by way of 16 bits."""
    if most == 255:
        found: NDArray[np.uint8] = np.minimum(values, most).astype(np.uint8)
        return found
    if most == SIXTEEN_BITS.high:
        check_extent(0, float(values.max(initial=0)), SIXTEEN_BITS)
    whole = 65_535 if most > 255 and channels == 1 else 255
    scaled = np.minimum(np.rint(np.arange(65_536) / most * whole), whole).astype(np.uint16)
    table = (scaled >> 8 if whole == 65_535 else scaled).astype(np.uint8)
    found = table[values]
    return found
