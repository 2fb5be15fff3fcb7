"""Images to try the decoder with: sound ones of every promised format, files of other formats, and
files made to cost as much as they can. All are made here, none is kept.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

HIGH, WIDE = 24, 31


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.copy().save(file, kind, **options)  # save() leaves settings behind
    return file.getvalue()


def sound_images() -> dict[str, bytes]:
    """Small images of each promised format in the modes that it has; the key begins with it."""
    rng = np.random.default_rng(5)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 4), dtype=np.uint8))
    rgba = coarse.resize((WIDE, HIGH), Image.Resampling.BILINEAR)
    rgb = rgba.convert("RGB")
    grey, palette, bits = rgb.convert("L"), rgb.quantize(60), rgb.convert("1")
    deep = Image.fromarray(np.asarray(grey, np.uint16) << 8)
    exif = Image.Exif()
    exif[0x112], exif[0x10F] = 6, "a maker"
    found = {
        "JPEG": encode(rgb, "JPEG", exif=exif),
        "JPEG grey": encode(grey, "JPEG"),
        "JPEG of inks": encode(rgb.convert("CMYK"), "JPEG"),
        "JPEG of scans": encode(rgb, "JPEG", progressive=True),
        "JPEG of two": encode(rgb, "MPO", save_all=True, append_images=[grey.copy()]),
        "PNG": encode(rgba, "PNG", exif=exif),
        "PNG of a palette": encode(palette, "PNG", transparency=3),
        "PNG of 16 bits": encode(deep, "PNG"),
        "PNG that moves": encode(rgb, "PNG", save_all=True, append_images=[rgba.rotate(9)]),
        "GIF": encode(palette, "GIF", transparency=2, comment=b"of two", save_all=True,
                      append_images=[grey.copy()]),
        "BMP": encode(rgb, "BMP"),
        "BMP of a palette": encode(palette, "BMP"),
        "BMP of runs": run_length_bmp(WIDE, HIGH),
        "TIFF": encode(rgb, "TIFF", exif=exif),
        "TIFF of 16 bits": encode(deep, "TIFF"),
        "TIFF of fractions": encode(Image.fromarray(np.asarray(grey, np.float32) / 255), "TIFF"),
        "TIFF of LZW": encode(rgba, "TIFF", compression="tiff_lzw"),
        "TIFF of JPEG": encode(rgb, "TIFF", compression="jpeg"),
        "TIFF of a fax": encode(bits, "TIFF", compression="group4"),
        "TIFF of two": encode(rgb, "TIFF", save_all=True, append_images=[grey.copy()]),
        "WEBP": encode(rgb, "WEBP", exif=exif),
        "WEBP without loss": encode(rgba, "WEBP", lossless=True),
        "PPM": encode(rgb, "PPM"),
        "PPM of bits": encode(bits, "PPM"),
        "PPM of 16 bits": encode(deep, "PPM"),
        "PPM of text": b"P3 2 1 15 # few\n1 2 3\n4 5 6\n",
        "AVIF": encode(rgb, "AVIF", exif=exif),
        "JPEG2000": encode(rgb, "JPEG2000"),
        "JPEG2000 bare": encode(grey, "JPEG2000", no_jp2=True),
        "TGA": encode(rgba, "TGA"),
        "TGA of runs": encode(rgb, "TGA", compression="tga_rle"),
    }  # fmt: skip
    return found


SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}


def suffix(name: str) -> str:
    """Of a file of a sound image's format."""
    kind = name.split()[0]
    return SUFFIXES.get(kind, f".{kind.lower()}")


def foreign_files() -> dict[str, bytes]:
    """Files that Pillow opens and nobody promised, and what else is found under ".jpg"."""
    rgb = Image.new("RGB", (16, 16), (9, 90, 200))
    written = ("EPS", "DDS", "DIB", "ICNS", "ICO", "PCX", "SGI", "SPIDER", "QOI", "PDF")
    modes = {"SPIDER": "F"}
    found = {}
    for kind in written:
        try:
            found[kind] = encode(rgb.convert(modes.get(kind, "RGB")), kind)
        except (KeyError, OSError, ValueError):
            continue  # a Pillow that does not write it
    found |= {
        "EPS of DOS": b"\xc5\xd0\xd3\xc6" + struct.pack("<L", 30) + bytes(22) + found["EPS"],
        "EPS of a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(gs) run\n",
        "BLP": b"BLP2" + struct.pack("<iBBBBII", 1, 1, 8, 0, 0, 16, 16) + bytes(1200),
        "BLP1": b"BLP1" + struct.pack("<iiIIiI", 0, 8, 16, 16, 4, 0) + bytes(1200),
        "PSD": b"8BPS" + struct.pack(">H6xHLLHH", 1, 3, 16, 16, 8, 3) + bytes(400),
        "FITS": b"SIMPLE  =                    T" + b" " * 2850,
        "WMF": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
        "XPM": b"/* XPM */\nstatic char *a[] = {\n\"1 1 1 1\",\n\"a c #000000\",\n\"a\"};",
        "XBM": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0x01};",
        "FLI": struct.pack("<LHHHHH", 200, 0xAF11, 1, 16, 16, 8) + bytes(200),
        "MPEG": b"\0\0\1\xb3" + bytes(60),
        "a page": b"<!DOCTYPE html><html><body>404</body></html>",
        "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a macOS fork": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60),
        "JPEG XL": b"\xff\x0a" + bytes(40),
        "text": b"an image, they said",
        "nothing": b"",
        "one byte": b"\xff",
    }  # fmt: skip
    return found


def _chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def png(wide: int, high: int, bits: int, colour: int, *more: bytes, fill: bool = True) -> bytes:
    """A black PNG; colour 0 is grey, 2 RGB, 6 RGBA."""
    channels = {0: 1, 2: 3, 6: 4}[colour]
    row_bytes = 1 + -(-wide * bits * channels // 8)
    packer = zlib.compressobj(9)
    rows = range(high) if fill else range(1)
    data = b"".join(packer.compress(bytes(row_bytes)) for _ in rows) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">LLBBBBB", wide, high, bits, colour, 0, 0, 0))
    end = _chunk(b"IDAT", data) + _chunk(b"IEND")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + end


def run_length_bmp(wide: int, high: int, body: bytes | None = None) -> bytes:
    """A BMP of 8 bits in runs."""
    body = (
        b"".join(bytes((wide % 256, 7, 0, 0)) for _ in range(high)) + b"\0\1"
        if body is None
        else body
    )
    palette = bytes(range(256)) * 4
    header = struct.pack("<LllHHLLllLL", 40, wide, high, 1, 8, 1, len(body), 0, 0, 256, 256)
    return (
        b"BM"
        + struct.pack("<LHHL", 14 + 40 + 1024 + len(body), 0, 0, 14 + 40 + 1024)
        + header
        + palette
        + body
    )


def tiff(
    tags: dict[int, tuple[int, int, int]], body: bytes = b"", entries: int | None = None
) -> bytes:
    """A little-endian TIFF: (type, count, value or offset) by tag; ``body`` lies at 8."""
    rows = b"".join(struct.pack("<HHLL", tag, *value) for tag, value in sorted(tags.items()))
    place = 8 + len(body)
    return (
        b"II*\0"
        + struct.pack("<L", place)
        + body
        + struct.pack("<H", entries or len(tags))
        + rows
        + bytes(4)
    )


def _tiff_tags(
    wide: int, high: int, **more: tuple[int, int, int]
) -> dict[int, tuple[int, int, int]]:
    base = {256: (4, 1, wide), 257: (4, 1, high), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    base |= {273: (4, 1, 8), 277: (3, 1, 1), 278: (4, 1, high), 279: (4, 1, wide * high)}
    return base | {int(tag[1:]): value for tag, value in more.items()}


def many_scans(wide: int, high: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = encode(Image.new("RGB", (wide, high), (9, 9, 9)), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * scans + b"\xff\xd9"


def dear_files(scale: int = 1) -> Iterator[tuple[str, Callable[[], bytes], str]]:
    """(what, what makes a file that would cost much, its suffix).

    Args:
        scale: divides what a file says of itself, for a short form; 1: at full length.
    """
    side = 20_000 // scale
    yield "PNG of 400 megapixels", lambda: png(side * scale, side * scale, 1, 0, fill=False), ".png"
    yield "PNG of black", lambda: png(9_400 // scale * 2, 4_700 * scale // 2, 8, 6), ".png"
    yield (
        "PNG of a long comment",
        lambda: png(
            9, 9, 8, 2, _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28 // scale), 9))
        ),
        ".png",
    )
    yield (
        "PNG of a profile",
        lambda: png(
            9, 9, 8, 2, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28 // scale), 9))
        ),
        ".png",
    )
    yield (
        "PNG of many chunks",
        lambda: png(9, 9, 8, 2, _chunk(b"tEXt", b"a\0b") * (2_000_000 // scale + 100_100)),
        ".png",
    )
    yield (
        "PNG of empty pixels",
        lambda: png(9, 9, 8, 2, _chunk(b"IDAT") * (2_000_000 // scale + 100_100)),
        ".png",
    )
    yield "JPEG of 4 gigapixels", lambda: _with_jpeg_size(65_500, 65_500), ".jpg"
    yield "JPEG of many scans", lambda: many_scans(3_000, 3_000, 4_000 // scale + 1_100), ".jpg"
    yield "JPEG of many comments", lambda: _with_comments(2_000_000 // scale + 100_100), ".jpg"
    yield (
        "GIF of a large canvas",
        lambda: (
            b"GIF89a"
            + struct.pack("<HHBBB", 65_500, 65_500, 0, 0, 0)
            + b",\0\0\0\0"
            + struct.pack("<HHB", 65_500, 65_500, 0)
            + b"\x08\x02\x4c\x01\0;"
        ),
        ".gif",
    )
    yield (
        "GIF of noise before the image",
        lambda: (
            encode(Image.new("L", (9, 9)), "GIF")[:13] + b"\1" * (20_000_000 // scale + 200_000)
        ),
        ".gif",
    )
    yield "GIF of comments", lambda: _gif_of_comments(1_000_000 // scale + 100_100), ".gif"
    yield "WEBP of a large canvas", lambda: _large_webp(16_384, 16_384), ".webp"
    yield "BMP of runs", lambda: run_length_bmp(20_000, 20_000, b"\0\0" * 20_000), ".bmp"
    yield (
        "BMP of empty runs",
        lambda: run_length_bmp(9, 9, b"\xff\0" * (20_000_000 // scale)),
        ".bmp",
    )
    yield (
        "PPM of a long comment",
        lambda: b"P5 #" + b"#" * (20_000_000 // scale) + b"\n9 9 255\n" + bytes(81),
        ".pgm",
    )
    yield "PPM of comments", lambda: b"P3 9 9 255 " + b"#\n" * (10_000_000 // scale), ".ppm"
    yield "PPM of 9 digits", lambda: b"P6 999999999 999999999 255\n", ".ppm"
    yield (
        "TGA of a large canvas",
        lambda: (
            b"\0\0\x0a"
            + bytes(9)
            + struct.pack("<HHBB", 65_500, 65_500, 32, 0)
            + b"\xff\0\0\0\0" * 99
        ),
        ".tga",
    )
    yield (
        "JPEG2000 of many boxes",
        lambda: (
            b"\0\0\0\x0cjP  \r\n\x87\n"
            + struct.pack(">L4s", 8, b"free") * (4_000_000 // scale + 100_100)
        ),
        ".jp2",
    )
    yield (
        "JPEG2000 of many segments",
        lambda: b"\xff\x4f\xff\x51\0\x02" + b"\xff\x60\0\0" * (4_000_000 // scale + 100_100),
        ".j2k",
    )
    yield "AVIF of 100 megapixels", lambda: _large_avif(), ".avif"
    shared = {60_000 + k: (7, 2**26 // scale, 8) for k in range(500)}
    yield (
        "TIFF of shared tags",
        lambda: tiff(_tiff_tags(9, 9) | shared, bytes(2**26 // scale)),
        ".tif",
    )
    yield (
        "TIFF of one long tag",
        lambda: tiff(_tiff_tags(9, 9, t258=(3, 2**25 // scale, 8)), bytes(2**26 // scale)),
        ".tif",
    )
    count = 4_000_000 // scale + 100_001
    yield (
        "TIFF of many strips",
        lambda: tiff(
            _tiff_tags(4_000, 4_000, t273=(4, count, 8), t278=(4, 1, 3_999)), bytes(4 * count)
        ),
        ".tif",
    )
    yield (
        "TIFF of a strip again and again",
        lambda: tiff(
            _tiff_tags(4_000, 4_000, t273=(4, 90_000, 8), t278=(4, 1, 3_999)),
            struct.pack("<L", 8) * 4_000_000,
        ),
        ".tif",
    )
    yield (
        "TIFF of a large tile",
        lambda: tiff(
            _tiff_tags(
                9,
                9,
                t259=(3, 1, 5),
                t322=(4, 1, 60_000),
                t323=(4, 1, 60_000),
                t324=(4, 1, 8),
                t325=(4, 1, 99),
            ),
            bytes(99),
        ),
        ".tif",
    )
    yield (
        "TIFF in a circle",
        lambda: tiff(_tiff_tags(9, 9, t34665=(4, 1, 8 + 81)), bytes(81)),
        ".tif",
    )
    yield (
        "BigTIFF of many tags",
        lambda: (
            b"MM\0+\0\x08\0\0"
            + struct.pack(">Q", 16)
            + struct.pack(">Q", 2**60)
            + bytes(20_000_000 // scale)
        ),
        ".tif",
    )


def _with_jpeg_size(wide: int, high: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", high, wide)
    return bytes(data)


def _with_comments(count: int) -> bytes:
    data = encode(Image.new("RGB", (8, 8)), "JPEG")
    return data[:2] + b"\xff\xfe\0\x02" * count + data[2:]


def _gif_of_comments(count: int) -> bytes:
    data = encode(Image.new("L", (9, 9)), "GIF")
    head = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    return data[:head] + b"!\xfe\1a\0" * count + data[head:]


def _large_webp(wide: int, high: int) -> bytes:
    data = encode(Image.new("RGBA", (8, 8)), "WEBP", lossless=True)
    size = (wide - 1).to_bytes(3, "little") + (high - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<L", 10) + b"\x10\0\0\0" + size + data[12:]
    return b"RIFF" + struct.pack("<L", len(body)) + body


def _large_avif() -> bytes:
    data = encode(Image.new("RGB", (64, 64)), "AVIF")
    place = data.index(b"ispe") + 8
    return data[:place] + struct.pack(">LL", 10_000, 10_000) + data[place + 8 :]
