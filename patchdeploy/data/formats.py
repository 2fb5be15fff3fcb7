"""Which images are read: the promised formats, told by a file's first bytes, and their suffixes.

In: bytes, and the name's suffix where there is one. Out: one of `FORMATS`, or a `Refused` with the
reason. Why: Pillow opens 43 formats by whatever a file begins with, some through other programs
(PostScript through Ghostscript). Bytes go to one decoder, that of the format they are, or to none.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from functools import cache

from PIL import Image, features

MOST_PIXELS = 89_478_485
"""Of an image: where Pillow begins to warn (a quarter GiB as 24-bit RGB)."""
HEAVY_PIXELS = 48 << 20
"""Of an image whose decoder holds 12 to 20 bytes a pixel; a phone's 50-megapixel photo fits."""


class Refused(Exception):  # noqa: N818 - never leaves this stage; `decode` makes it a DataError
    """Why an image is not read; the message of an error that names the image."""

    def __init__(
        self,
        reason: str,
        rule: str = "it must be a whole file in a format that Pillow decodes",
        remedy: str = "convert it again or remove it",
    ) -> None:
        super().__init__(f"{reason}; {rule}; {remedy}")


@dataclass(frozen=True)
class ImageFormat:
    """One format.

    Attributes:
        name: Pillow's.
        suffixes: of its files, in lower case.
        feature: what Pillow must have been built with.
        most_pixels: the largest image that is decoded.
    """

    name: str
    suffixes: tuple[str, ...]
    feature: str = ""
    most_pixels: int = MOST_PIXELS

    @property
    def is_readable(self) -> bool:
        """Whether its decoder is installed."""
        if self.name == "HEIF":
            return _heif_opener() is not None
        known = {**features.modules, **features.codecs}
        return not self.feature or (self.feature in known and bool(features.check(self.feature)))


FORMATS = {
    one.name: one
    for one in (
        ImageFormat("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "jpg"),
        ImageFormat("PNG", (".png", ".apng"), "zlib"),
        ImageFormat("GIF", (".gif",)),
        ImageFormat("BMP", (".bmp",)),
        ImageFormat("TIFF", (".tif", ".tiff")),
        ImageFormat("WEBP", (".webp",), "webp", HEAVY_PIXELS),
        ImageFormat("PPM", (".pbm", ".pgm", ".pnm", ".ppm")),
        ImageFormat("AVIF", (".avif",), "avif", HEAVY_PIXELS),
        ImageFormat("JPEG2000", (".jp2", ".j2k", ".j2c", ".jpf", ".jpx"), "jpg_2000", HEAVY_PIXELS),
        ImageFormat("HEIF", (".heic", ".heif", ".hif"), "", HEAVY_PIXELS),
        ImageFormat("TGA", (".tga",)),
    )
}
"""By name. HEIF is read where pillow-heif (or pi-heif) is installed."""

_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"), "HEIF"),
}
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_OTHERS = (
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "an EPS file"),
    (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"),
    (b"DDS ", "a DDS texture"),
    (b"BLP", "a BLP texture"),
    (b"\0\0\1\0", "an icon"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (b"PK\3\4", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"<", "a page of text (HTML, XML or SVG)"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file itself)"),
)
"""What files named .jpg are instead, in words."""


@cache
def readable_suffixes() -> tuple[str, ...]:
    """Suffixes of the image files that are read on this machine, sorted."""
    return tuple(sorted(s for one in FORMATS.values() if one.is_readable for s in one.suffixes))


def promised_suffixes() -> frozenset[str]:
    """Suffixes of all `FORMATS`, whether their decoder is here or not."""
    return frozenset(suffix for one in FORMATS.values() for suffix in one.suffixes)


def identify_format(data: bytes, suffix: str = "") -> ImageFormat:
    """The format of ``data``, whose decoder is installed.

    Args:
        suffix: of the file's name; a TGA file without a footer is known by it alone.

    Raises:
        Refused: none of `FORMATS`, or no decoder for it.
    """
    found = FORMATS.get(_format_name(data, suffix.lower()))
    if found is None:
        what = next((words for magic, words in _OTHERS if data.startswith(magic)), None)
        reason = f"it is {what}" if what else "it is empty" if not data else "it is no known image"
        raise Refused(reason)
    if not found.is_readable:
        raise Refused(
            f"it is {found.name}, for which no decoder is installed",
            remedy=(
                "run: pip install pillow-heif, or convert it to JPEG or PNG"
                if found.name == "HEIF"
                else "install a Pillow that has it, or convert it to JPEG or PNG"
            ),
        )
    return found


def _format_name(data: bytes, suffix: str) -> str:
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _brand(data)
    if data[:1] == b"P" and data[1:2] in b"123456" and data[2:3].isspace():
        return "PPM"
    return "TGA" if _is_tga(data, suffix) else ""


def _brand(data: bytes) -> str:
    """By the major brand of a container of still images, else by the first compatible one."""
    end = min(int.from_bytes(data[:4], "big"), 1024)
    brands = [data[8:12], *(data[k : k + 4] for k in range(16, end, 4))]
    return next((_BRANDS[one] for one in brands if one in _BRANDS), "")


def _is_tga(data: bytes, suffix: str) -> bool:
    if len(data) < 18 or not (suffix in FORMATS["TGA"].suffixes or data.endswith(_TGA_FOOTER)):
        return False
    has_palette, kind, bits = data[1], data[2], data[16]
    is_known = (kind in (1, 9) and has_palette == 1) or (kind in (2, 3, 10, 11) and has_palette < 2)
    return is_known and bits in (1, 8, 16, 24, 32)


def _heif_opener() -> str | None:
    """The module that teaches Pillow HEIF, if one is installed; its opener is registered once."""
    for name in ("pillow_heif", "pi_heif"):
        if importlib.util.find_spec(name) is not None:
            return name
    return None


@cache
def register_heif() -> None:
    """Teach Pillow HEIF, unless the caller has done so."""
    name = _heif_opener()
    if name is not None and "HEIF" not in Image.OPEN:
        importlib.import_module(name).register_heif_opener()
