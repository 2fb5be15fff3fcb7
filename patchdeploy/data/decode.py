"""One image as uint8 RGB, whatever form it has: the one place where images are decoded.

In: a path, the bytes of a file, an open file, a Pillow image, a numpy array or a torch tensor.
Out: `Pixels`, uint8 [H, W, 3] RGB, turned as EXIF says, laid over white where it is transparent,
scaled to 8 bits by the range that is stated. Why: training, calibration, the Engine and every
command must see the same pixels, and none may be brought down by one file. What decoding may cost
is bounded before it begins; whatever a decoder raises becomes an `UnreadableImageError`.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from patchdeploy.data.containers import read_contents
from patchdeploy.data.depth import (
    FRACTIONS,
    SIXTEEN_BITS,
    check_eight_bits,
    check_extent,
    check_upper_bytes,
    find_depth,
    to_uint8,
)
from patchdeploy.data.formats import (
    FORMATS,
    MOST_PIXELS,
    Refused,
    identify_format,
    register_heif,
)
from patchdeploy.data.pixels import Pixels
from patchdeploy.data.pnm import read_pnm
from patchdeploy.data.tags import BITS, ORIENTATION, RANGE_TAGS, Numbers, read_orientation
from patchdeploy.errors import DataError, IrregularFileError, UnreadableImageError
from patchdeploy.storage import read_regular

LOGGER = logging.getLogger("patchdeploy.data")

MOST_FILE_BYTES = 1 << 28
"""Of an image file, which is read whole."""
FREE_PIXELS = 1 << 24
MOST_RATIO = 500
"""An image of more than `FREE_PIXELS` has at most so many decoded bytes to a byte of its file.
Photographs have 5 to 190, a screen full of white in PNG 1000."""
SLOW_PIXELS = 1 << 23
"""Of a run-length coded BMP, which Pillow decodes in Python: about 1 s."""
STRIP_PIXELS = 1 << 20
"""Pixels that are converted at a time: what lies between Pillow's image and ours stays small."""
DECODER_VERSION = 2
"""Goes into the name of cached pixels; add 1 when the same file gives other pixels."""
_SMALLER = "scale it down or remove it"
_BITS = {"1": 1, "L": 8, "P": 8, "LA": 16, "PA": 16, "RGB": 24, "I;16": 16, "I;16B": 16}
_XMP_TURN = re.compile(r'tiff:Orientation(?:="|>)([1-8])')

OneImage = str | Path | bytes | bytearray | memoryview | IO[bytes] | Image.Image


def load_image(source: str | Path | bytes | bytearray | memoryview | IO[bytes]) -> Pixels:
    """Decode one image file to uint8 [H, W, 3] RGB, as `image_pixels` does.

    Args:
        source: a path, the bytes of a file, or a file that is open for reading bytes.

    Raises:
        UnreadableImageError: missing, truncated, no image, of a format that is not promised, or
            one that would cost more memory or time than an image may.
    """
    what = f"image {source}" if isinstance(source, str | Path) else "the image"
    with _named(what):
        return _decode_file(_read_source(source), _suffix(source), what)


def image_pixels(image: Any, what: str = "the image") -> Pixels:
    """Any usual image as uint8 [H, W, 3] RGB.

    Args:
        image: what `load_image` takes; a Pillow image; a numpy array [H, W] or [H, W, C]; a torch
            tensor [H, W] or [C, H, W] (any device). C is 1 (grey), 3 (RGB) or 4 (RGBA); values are
            uint8, uint16 (0 to 65535), bool, or fractions from 0 to 1.
        what: its name in an error.

    Raises:
        UnreadableImageError: a file or a Pillow image that cannot be decoded.
        DataError: another type, dtype or shape, or values outside of their range.
    """
    if isinstance(image, Image.Image):
        with _named(what), _decoder_errors():
            _check_opened(image)
            data = _file_of(image)
            if data is not None:
                return _decode_file(data, _suffix(image), what)
            return _decode_image(image, _pillow_numbers(image), what)
    if is_file_like(image):
        return load_image(image)
    return _array_pixels(image, what)


def is_file_like(image: Any) -> bool:
    """Whether ``image`` is what `load_image` takes."""
    return isinstance(image, str | Path | bytes | bytearray | memoryview) or hasattr(image, "read")


@contextmanager
def _named(what: str) -> Iterator[None]:
    """A refusal inside becomes an error that names the image."""
    try:
        yield
    except Refused as refused:
        cause = refused.__cause__ or refused
        raise UnreadableImageError(f"cannot read {what}: {refused}") from cause


@contextmanager
def _decoder_errors(kind: str = "image") -> Iterator[None]:
    """Whatever a decoder raises on damaged bytes becomes a refusal."""
    try:
        yield
    except Refused:
        raise
    except MemoryError as error:
        raise Refused("there is not enough memory for it") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("it has more") from error
    except UnidentifiedImageError as error:
        raise Refused(f"its {kind} header is damaged") from error
    except Exception as error:
        raise Refused(_reason(error)) from error


def _suffix(source: Any) -> str:
    name = source if isinstance(source, str | Path) else getattr(source, "name", None)
    name = getattr(source, "filename", None) if name is None else name
    return Path(name).suffix if isinstance(name, str | Path) else ""


def _read_source(source: Any) -> bytes:
    """All bytes of a file, which is regular where it is named, and no longer than one may be."""
    try:
        if isinstance(source, str | Path):
            return read_regular(Path(source), MOST_FILE_BYTES, follow=True)
        if isinstance(source, bytes | bytearray | memoryview):
            data: Any = bytes(source)
        else:
            if source.seekable():
                source.seek(0)
            data = source.read(MOST_FILE_BYTES + 1)
    except IrregularFileError as error:
        raise UnreadableImageError(f"cannot read image: {error}") from error
    except Exception as error:  # of the system, or of an open file that is not ours
        raise Refused(getattr(error, "strerror", None) or _reason(error)) from error
    if not isinstance(data, bytes) or len(data) > MOST_FILE_BYTES:
        raise Refused(f"it reads as text, or has more than {MOST_FILE_BYTES} bytes")
    return data


def _reason(error: BaseException) -> str:
    """What a decoder says, without the object that it says it of."""
    return str(error).split(" <")[0] or type(error).__name__


def _decode_file(data: bytes, suffix: str, what: str) -> Pixels:
    kind = identify_format(data, suffix)
    if kind.name == "PPM":
        return _as_rgb(read_pnm(data))
    contents = read_contents(data, kind)
    if contents.size_px is not None:
        _check_pixels(contents.size_px, kind.most_pixels)
    if kind.name == "HEIF":
        register_heif()
    with (
        _decoder_errors(kind.name),
        Image.open(io.BytesIO(contents.data), formats=[kind.name]) as image,
    ):
        _check_cost(image, len(data), kind.most_pixels)
        image.info.update(contents.info)
        return _decode_image(image, contents.numbers, what)


def _check_pixels(size_px: tuple[int, int], most: int) -> None:
    wide, high = size_px
    if wide * high > most or min(wide, high) < 1:
        raise _too_large(f"it has {wide} x {high} px", most)


def _too_large(reason: str, most: int = MOST_PIXELS) -> Refused:
    return Refused(reason, f"at most {most} px in all are decoded", _SMALLER)


def _check_cost(image: ImageFile.ImageFile, file_bytes: int, most_pixels: int) -> None:
    """That an image which is open but not decoded costs what an honest one does."""
    _check_pixels(image.size, most_pixels)
    pixels = image.width * image.height
    areas = (abs((right - left) * (low - top)) for left, top, right, low in _extents(image))
    if sum(areas) > 6 * pixels:
        raise Refused("its strips cover it more than once for each sample")
    decoded_bytes = pixels * _BITS.get(image.mode, 32) // 8
    if pixels > FREE_PIXELS and decoded_bytes > MOST_RATIO * file_bytes:
        raise Refused(
            f"its {file_bytes} bytes become {decoded_bytes}",
            f"an image of more than {FREE_PIXELS} px has at most {MOST_RATIO} to 1",
            _SMALLER,
        )
    is_slow = any(tile[0] == "bmp_rle" for tile in image.tile)
    if is_slow and (pixels > SLOW_PIXELS or file_bytes > 4 * pixels + 65_536):
        raise Refused(f"it is a run-length coded BMP of {pixels} px in {file_bytes} bytes")


def _extents(image: ImageFile.ImageFile) -> list[tuple[int, int, int, int]]:
    return [tile[1] for tile in image.tile if tile[1] is not None]


def _check_opened(image: Image.Image) -> None:
    """A Pillow image that is open and not decoded yet: of a promised format, and not too large."""
    if not isinstance(image, ImageFile.ImageFile):
        return
    kind = FORMATS.get("JPEG" if image.format == "MPO" else image.format or "")
    if kind is None:
        raise Refused(
            f"it is a Pillow image of the format {image.format}",
            f"the formats are {', '.join(FORMATS)}",
            "decode it yourself and give image.copy()",
        )
    if image.tile:
        _check_pixels(image.size, kind.most_pixels)


def _file_of(image: Image.Image) -> bytes | None:
    """The file of a Pillow image that is open and not decoded yet; None for any other.

    It is decoded as a file, within the same bounds. (Pillow 13 itself scrambles an uncompressed
    TIFF that is to be turned and lies on a disk.)
    """
    file = getattr(image, "fp", None)
    if not getattr(image, "tile", None) or file is None or getattr(file, "closed", True):
        return None
    if image.tell() != 0:
        return None
    place = file.tell()
    file.seek(0)
    data = file.read(MOST_FILE_BYTES + 1)
    file.seek(place)  # where the caller's own load() goes on
    return data if isinstance(data, bytes) and len(data) <= MOST_FILE_BYTES else None


def _pillow_numbers(image: Image.Image) -> dict[int, Numbers]:
    """Of the tags of a Pillow image that is a TIFF."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return {}
    found = {tag: image.tag_v2.get(tag) for tag in RANGE_TAGS}
    return {
        tag: value if isinstance(value, tuple) else (value,)
        for tag, value in found.items()
        if value is not None
    }


def _decode_image(image: Image.Image, numbers: Mapping[int, Numbers], what: str) -> Pixels:
    """The pixels of a Pillow image, decoded already or not."""
    has_deep_colours = _has_deep_colours(image, numbers)
    image.load()
    check_eight_bits(numbers)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = _as_rgb(_deep_pixels(image, numbers))
    else:
        if has_deep_colours:
            check_upper_bytes(max(most for _, most in _extrema(image)[:3]))
        pixels = _shallow_pixels(image)
    stated = numbers.get(ORIENTATION, (1,))[0]
    return _turned(pixels, int(stated) if stated in range(2, 9) else _find_turn(image, what))


def _has_deep_colours(image: Image.Image, numbers: Mapping[int, Numbers]) -> bool:
    """Whether Pillow keeps the upper bytes alone of what are 16 bits in the file."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return False
    raw_modes = (str(tile[3]) for tile in getattr(image, "tile", ()))
    return max(numbers.get(BITS, (8,))) > 8 or any(";16" in one for one in raw_modes)


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    bands = cast(list[tuple[int, int]], list(image.getextrema()))
    return bands[:1] if image.mode == "LA" else bands


def _strips(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    rows = max(1, STRIP_PIXELS // image.width)
    if rows >= image.height:
        yield slice(0, image.height), image
        return
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _shallow_pixels(image: Image.Image) -> Pixels:
    """Of an image of at most 8 bits a channel."""
    bands = image.getbands()
    is_layer = "A" in bands or "a" in bands or "transparency" in image.info
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for rows, strip in _strips(image):
        if is_layer:
            strip = strip.convert("LA") if strip.mode == "La" else strip
            layer = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        pixels[rows] = np.asarray(strip.convert("RGB"), np.uint8)
    return pixels


def _deep_pixels(image: Image.Image, numbers: Mapping[int, Numbers]) -> NDArray[np.uint8]:
    """uint8 [H, W] of an image of one deep channel."""
    depth = find_depth(image.mode, image.format, numbers)
    extents = [_extent(np.asarray(strip)) for _, strip in _strips(image)]
    check_extent(float(np.min(extents)), float(np.max(extents)), depth)
    pixels = np.empty((image.height, image.width), np.uint8)
    transparent = image.info.get("transparency")
    for rows, strip in _strips(image):
        samples = np.asarray(strip)
        pixels[rows] = to_uint8(samples, depth)
        if isinstance(transparent, int):
            pixels[rows][samples == transparent] = 255
    return pixels


def _extent(samples: NDArray[Any]) -> tuple[float, float]:
    return float(samples.min()), float(samples.max())


def _as_rgb(pixels: NDArray[np.uint8]) -> Pixels:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def _find_turn(image: Image.Image, what: str) -> int:
    """EXIF's orientation, 1 to 8, in the block itself, a PNG's text, or XMP; 1 where none is.

    A TIFF that Pillow has loaded is turned already; its tag is no part of ``image.info``.
    """
    info = image.info
    block = info.get("exif")
    if block is None and "Raw profile type exif" in info:
        block = _hexadecimal(info["Raw profile type exif"])
    turn = read_orientation(block) if isinstance(block, bytes) else 1
    if turn is None:
        LOGGER.warning("%s: its EXIF block is damaged; it is taken as it is stored", what)
    if turn == 1:
        text = info.get("XML:com.adobe.xmp") or info.get("xmp") or ""
        text = text.decode("latin-1") if isinstance(text, bytes) else str(text)
        found = _XMP_TURN.search(text)
        turn = int(found[1]) if found else 1
    return turn or 1


def _hexadecimal(profile: Any) -> bytes:
    try:
        return bytes.fromhex("".join(str(profile).split("\n")[3:]))
    except ValueError:
        return b""


def _turned(pixels: Pixels, turn: int) -> Pixels:
    """``pixels`` as they are to be seen (EXIF 2.32, table 6)."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    rows = slice(None, None, -1 if turn in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if turn in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])


_ARRAY_RULE = (
    "it must be a file, a Pillow image, a numpy array [H, W] or [H, W, C], or a torch tensor "
    "[H, W] or [C, H, W], of uint8, uint16, bool, or fractions from 0 to 1"
)


def _array_pixels(image: Any, what: str) -> Pixels:
    is_tensor = hasattr(image, "detach") and hasattr(image, "cpu")
    array = _as_array(image, is_tensor, what)
    if is_tensor and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    _check_shape(array, is_tensor, what)
    array = _as_uint8(array, what)
    if array.ndim == 2 or array.shape[2] == 1:
        return _as_rgb(array.reshape(array.shape[:2]))
    if array.shape[2] == 4:
        return _shallow_pixels(Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(array)


def _as_array(image: Any, is_tensor: bool, what: str) -> NDArray[Any]:
    try:
        array = image.detach().cpu().numpy() if is_tensor else image
        if not isinstance(array, np.ndarray) and hasattr(array, "__array__"):
            array = np.asarray(array)
    except Exception as error:  # of a tensor's kind that numpy does not have, or of a foreign type
        raise DataError(f"{what} is no array: {error}; {_ARRAY_RULE}; convert it") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{what} is a {type(image).__name__}; {_ARRAY_RULE}; convert it")
    return array


def _check_shape(array: NDArray[Any], is_tensor: bool, what: str) -> None:
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))
    if not shaped or 0 in array.shape:
        layout = "[H, W] or [C, H, W]" if is_tensor else "[H, W] or [H, W, C]"
        shown = array.transpose(2, 0, 1) if is_tensor and array.ndim == 3 else array
        raise DataError(
            f"{what} has shape {list(shown.shape)}; it must be {layout} with 1, 3 or 4 channels "
            "and no side of 0; convert it"
        )


def _as_uint8(array: NDArray[Any], what: str) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    depth = {"f": FRACTIONS, "u": SIXTEEN_BITS}.get(array.dtype.kind)
    if depth is None or (depth is SIXTEEN_BITS and array.dtype.itemsize != 2):
        raise DataError(f"{what} holds {array.dtype} values; {_ARRAY_RULE}; convert it")
    colours = array[..., :3] if array.ndim == 3 else array
    try:
        check_extent(*_extent(array), depth)
        check_extent(*_extent(colours), depth)
    except Refused as refused:
        raise DataError(
            f"{what} holds {array.dtype} values: {refused}; leave Normalize out of a data set's "
            "transform (patchdeploy normalises by itself)"
        ) from refused
    return to_uint8(array, depth)
