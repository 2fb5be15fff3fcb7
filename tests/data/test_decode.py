"""One decoder for every form of an image: the same pixels, by the stated range, or refused."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from patchdeploy.data import Preprocessing, decode, image_pixels, load_image, resize_image
from patchdeploy.data.formats import FORMATS, MOST_PIXELS
from patchdeploy.errors import DataError, UnreadableImageError


def noise(high: int, wide: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [high, wide, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (high, wide, channels), dtype=np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_block(*entries: bytes, more: bytes = b"") -> bytes:
    """Little-endian: each entry has 12 bytes; ``more`` lies behind them."""
    rows = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<L", 8) + rows + more


def entry(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHLL", tag, kind, count, value)


TURN_6 = entry(0x112, 3, 1, 6)
TURNED = np.rot90(noise(8, 12), -1)


def with_exif(data: bytes, block: bytes) -> bytes:
    """A JPEG with an EXIF segment."""
    segment = b"Exif\0\0" + block
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]


FORMS = {
    "JPEG": ("RGB", {"quality": 92}),
    "JPEG of CMYK": ("CMYK", {}),
    "progressive JPEG": ("L", {"progressive": True}),
    "PNG": ("RGBA", {}),
    "PNG of a palette": ("P", {"transparency": 1}),
    "PNG of 16 bits": ("I;16", {}),
    "GIF": ("P", {"transparency": 1}),
    "BMP": ("RGB", {}),
    "TIFF": ("RGB", {"compression": "tiff_lzw"}),
    "TIFF of 16 bits": ("I;16", {"compression": "tiff_lzw"}),
    "TIFF of fractions": ("F", {}),
    "TIFF of CMYK": ("CMYK", {"compression": "tiff_lzw"}),
    "WEBP": ("RGBA", {"lossless": True}),
    "PPM": ("RGB", {}),
    "AVIF": ("RGB", {}),
    "JPEG2000": ("RGB", {}),
    "TGA": ("RGBA", {}),
}


def make_image(mode: str) -> Image.Image:
    image = Image.fromarray(noise(8, 12, 4))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    if mode == "F":
        return Image.fromarray(np.asarray(image.convert("L"), np.float32) / 255)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("name", FORMS)
def test_path_bytes_open_file_and_pillow_image_are_seen_alike(tmp_path: Path, name: str) -> None:
    mode, options = FORMS[name]
    kind = next(one for one in reversed(FORMATS) if one in name)
    exif = Image.Exif()
    exif[0x112] = 6
    path = tmp_path / f"a{FORMATS[kind].suffixes[-1 if kind == 'PPM' else 0]}"
    extra = {"exif": exif} if kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF") else {}
    make_image(mode).save(path, kind, **options, **extra)
    expected = load_image(path)
    assert expected.shape == ((12, 8, 3) if extra else (8, 12, 3))
    assert expected.std() > 20  # neither black nor white
    with path.open("rb") as file, Image.open(path) as lazy, Image.open(path) as loaded:
        loaded.load()
        forms = [path.read_bytes(), file, lazy, loaded]
        for one in forms[1 if kind == "TGA" else 0 :]:  # a TGA without footer has but its suffix
            np.testing.assert_array_equal(image_pixels(one), expected)
        np.testing.assert_array_equal(np.asarray(lazy), np.asarray(loaded))  # is as it was


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_is_that_of_pillow(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x112] = turn
    image = Image.fromarray(noise(5, 7))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(image, kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(load_image(data), expected)


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK"])
def test_an_uncompressed_tiff_that_is_to_be_turned_is_not_scrambled(
    tmp_path: Path, mode: str
) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    make_image(mode).save(tmp_path / "a.tif", exif=exif)
    straight = load_image(encode(make_image(mode), "TIFF"))
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), np.rot90(straight, -1))
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image_pixels(image), np.rot90(straight, -1))


@pytest.mark.parametrize(
    "chunk",
    ["Raw profile type exif", "XML:com.adobe.xmp"],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_a_turn_in_a_png_text_is_applied(chunk: str, is_packed: bool) -> None:
    from PIL.PngImagePlugin import PngInfo

    block = exif_block(TURN_6)
    profile = f"\nexif\n{len(block):8}\n{block.hex()}\n"
    info = PngInfo()
    if chunk.startswith("XML"):
        info.add_itxt(chunk, '<x tiff:Orientation="6"/>', zip=is_packed)
    else:
        info.add_text(chunk, profile, zip=is_packed)
    data = encode(Image.fromarray(noise(8, 12)), "PNG", pnginfo=info)
    np.testing.assert_array_equal(load_image(data), TURNED)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(image_pixels(image), TURNED)


DAMAGED = {
    "text as a fraction": (entry(0x11A, 2, 4, 0x00643237),),
    "a fraction as text": (entry(0x10F, 5, 1, 38), struct.pack("<LL", 1, 60)),
    "64 bits": (entry(0x9999, 16, 1, 38), struct.pack("<Q", 2**63)),
    "a value outside": (entry(0x10F, 2, 4_000, 2**31),),
    "an unknown type": (entry(0x8888, 99, 2**32 - 1, 7),),
    "a directory in a circle": (entry(0x8769, 4, 1, 8),),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_damaged_entry_beside_the_orientation_changes_nothing(name: str, is_first: bool) -> None:
    damaged, *more = DAMAGED[name]
    rows = (damaged, TURN_6) if is_first else (TURN_6, damaged)
    block = exif_block(*rows, more=b"".join(more))
    data = encode(Image.fromarray(noise(8, 12)), "JPEG", quality=100, subsampling=0)
    straight = load_image(data)
    np.testing.assert_array_equal(load_image(with_exif(data, block)), np.rot90(straight, -1))
    as_chunk = encode(Image.fromarray(noise(8, 12)), "PNG", exif=b"Exif\0\0" + block)
    np.testing.assert_array_equal(load_image(as_chunk), TURNED)


@given(st.binary(max_size=80))
def test_no_exif_block_keeps_whole_pixels_from_being_read(block: bytes) -> None:
    data = encode(Image.fromarray(noise(8, 8)), "PNG")
    whole = load_image(data)
    head = with_exif(encode(Image.fromarray(noise(8, 8)), "JPEG"), b"II*\0" + block)
    assert load_image(head).shape == (8, 8, 3)
    for one in (block, b"II*\0\x08\0\0\0" + block):
        found = load_image(encode(Image.fromarray(noise(8, 8)), "PNG", exif=one))
        np.testing.assert_array_equal(np.sort(found, axis=None), np.sort(whole, axis=None))


def test_a_block_that_is_no_exif_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(with_exif(encode(Image.fromarray(noise(8, 8)), "JPEG"), b"nothing"))
    assert load_image(path).shape == (8, 8, 3)
    assert [one.getMessage() for one in caplog.records] == [
        f"image {path}: its EXIF block is damaged; it is taken as it is stored"
    ]


RAMP = np.linspace(0, 1, 96).reshape(8, 12)
"""Fractions from black to white."""


def tiff_of(samples: np.ndarray, **tags: object) -> bytes:
    """A TIFF of one channel; ``tags`` as t341=4095."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    info = ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
        info.tagtype[int(tag[1:])] = 12 if isinstance(value, float) else 4
    return encode(Image.fromarray(samples), "TIFF", tiffinfo=info)


@pytest.mark.parametrize(
    ("data", "most_error"),
    [
        (tiff_of(RAMP.astype(np.float32)), 0.5),
        (tiff_of((RAMP * 4095).astype(np.float32), t340=0.0, t341=4095.0), 0.5),
        (tiff_of((RAMP * 65535).astype(np.uint16)), 1.0),
        (tiff_of((RAMP * 4095).astype(np.uint16), t280=0, t281=4095), 1.0),
        (tiff_of((RAMP * 1023).astype(np.uint16), t281=1023), 1.0),
        (tiff_of((RAMP * 4095).astype(np.int32), t340=0, t341=4095), 1.0),
    ],
    ids=["fractions", "stated floats", "16 bits", "12 in 16", "10 in 16", "stated int32"],
)
def test_deep_samples_are_scaled_by_the_range_that_the_file_states(
    data: bytes, most_error: float
) -> None:
    pixels = load_image(data)
    # Fractions are rounded to the nearest of 256 levels (0.5); of whole numbers the upper 8 bits
    # are kept, floor(256 v / (high + 1)), which is below 255 v / high by less than 1.
    assert np.abs(pixels[..., 0] - 255 * RAMP).max() <= most_error
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(image_pixels(image), pixels)


def packed_12_bits(values: np.ndarray) -> bytes:
    """A TIFF of 12 bits a sample, two in three bytes (TIFF 6.0, BitsPerSample)."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    bits = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").tobytes()
    body = b"".join(bits[k + 1 : k + 4] for k in range(0, len(bits), 4))
    high, wide = values.shape
    tags = [(256, 4, wide), (257, 4, high), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, high), (279, 4, len(body))]
    rows = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
    place = struct.pack("<L", 8 + len(body))
    return b"II*\0" + place + body + struct.pack("<H", len(tags)) + rows + bytes(4)


def test_twelve_bits_keep_their_upper_eight() -> None:
    values = (RAMP * 4095).astype(np.uint16)
    np.testing.assert_array_equal(load_image(packed_12_bits(values))[..., 0], values >> 4)


def test_white_may_be_the_least_value() -> None:
    for samples in ((RAMP * 65535).astype(np.uint16), RAMP.astype(np.float32)):
        straight = load_image(tiff_of(samples))
        inverted = bytearray(tiff_of(samples))
        row = inverted.index(struct.pack("<HHL", 262, 3, 1))
        inverted[row + 8] = 0
        np.testing.assert_array_equal(load_image(bytes(inverted)), 255 - straight)


@pytest.mark.parametrize(
    "samples",
    [
        (RAMP * 4095).astype(np.uint16),
        (RAMP * 16383).astype(np.uint16),
        (RAMP * 200).astype(np.int32),
        (RAMP * 255).astype(np.float32),
        (RAMP - 0.5).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
    ],
    ids=["12 in 16", "14 in 16", "int32", "floats to 255", "negative", "NaN"],
)
def test_samples_of_a_range_that_nothing_states_are_refused(samples: np.ndarray) -> None:
    for kind in ("TIFF", "PNG")[: 2 if samples.dtype == np.uint16 else 1]:
        with pytest.raises(UnreadableImageError, match="scale it to uint8 yourself"):
            load_image(encode(Image.fromarray(samples), kind))
    with pytest.raises(DataError):
        image_pixels(Image.fromarray(samples))
    with pytest.raises(DataError):
        image_pixels(samples)


def test_sixteen_bit_colours_that_would_look_black_are_refused() -> None:
    import zlib

    def png(values: np.ndarray) -> bytes:
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        parts = ((b"IHDR", struct.pack(">LLBBBBB", 4, 3, 16, 2, 0, 0, 0)),
                 (b"IDAT", zlib.compress(rows)), (b"IEND", b""))  # fmt: skip
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">L", len(d)) + n + d + struct.pack(">L", zlib.crc32(n + d))
            for n, d in parts
        )

    values = np.linspace(0, 65535, 36).reshape(3, 12).astype(np.uint16)
    np.testing.assert_array_equal(load_image(png(values)).reshape(3, 12), values >> 8)
    with pytest.raises(UnreadableImageError, match="its 16-bit samples end below 4096 of 65535"):
        load_image(png(values >> 4))


def test_arrays_of_any_usual_type_are_the_same_pixels() -> None:
    pixels = noise(6, 5)
    deep = pixels.astype(np.uint16) * 257
    deep[0, 0] = 65535
    forms = [pixels / 255, (pixels / 255).astype(np.float16), pixels.astype(np.float32) / 255]
    for one in forms:
        np.testing.assert_array_equal(image_pixels(one), pixels)
    np.testing.assert_array_equal(image_pixels(deep), deep >> 8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    np.testing.assert_array_equal(image_pixels(tensor.float() / 255), pixels)
    np.testing.assert_array_equal(
        image_pixels(pixels[..., 0] > 99)[..., 1], np.where(pixels[..., 0] > 99, 255, 0)
    )
    with pytest.raises(DataError, match="it must be a file, a Pillow image"):
        image_pixels(tensor.to(torch.bfloat16))


@pytest.mark.parametrize("most", [1, 15, 255, 300, 4095, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pnm_has_the_values_that_pillow_gives_it(most: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, most + 1, (4, 5, channels))
    values[0, 0] = most
    size = f"5 4 # a note\n{most}\n".encode()
    plain = b"P%d " % (2 + channels // 3) + size + b" ".join(b"%d" % v for v in values.flat) + b"\n"
    dtype = "u1" if most < 256 else ">u2"
    raw = b"P%d " % (5 + channels // 3) + size + values.astype(dtype).tobytes()
    for data in (plain, raw):
        with Image.open(io.BytesIO(data)) as image:
            np.testing.assert_array_equal(load_image(data), image_pixels(image))


@pytest.mark.parametrize("kind", ["P1", "P4"])
def test_a_bitmap_has_the_values_that_pillow_gives_it(kind: str) -> None:
    bits = Image.fromarray(noise(9, 13, 1)[..., 0]).convert("1")
    text = "P1\n13 9\n" + "".join("01"[int(v == 0)] for v in np.asarray(bits).flat)
    data = encode(bits, "PPM") if kind == "P4" else text.encode()
    np.testing.assert_array_equal(load_image(data)[..., 0], np.asarray(bits) * 255)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "PCX", "SGI", "DDS"])
def test_a_format_that_nobody_promised_is_refused_under_any_name(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(16, 16)).save(path, kind)
    with pytest.raises(UnreadableImageError):
        load_image(path)
    with Image.open(path) as image, pytest.raises(UnreadableImageError) as caught:
        image_pixels(image)
    assert str(caught.value) == (
        f"cannot read the image: it is a Pillow image of the format {kind}; the formats are "
        f"{', '.join(FORMATS)}; decode it yourself and give image.copy()"
    )


def test_a_decoder_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(UnreadableImageError) as caught:
        load_image(path)
    if FORMATS["HEIF"].is_readable:
        return
    assert str(caught.value) == (
        f"cannot read image {path}: it is HEIF, for which no decoder is installed; it must be a "
        "whole file in a format that Pillow decodes; run: pip install pillow-heif, or convert it "
        "to JPEG or PNG"
    )


def test_the_largest_image_is_where_pillow_begins_to_warn() -> None:
    assert MOST_PIXELS == Image.MAX_IMAGE_PIXELS


def test_too_many_pixels_and_too_many_for_the_bytes_are_refused_before_decoding() -> None:
    data = bytearray(encode(Image.new("L", (8, 8)), "PNG"))
    import zlib

    def sized(wide: int, high: int) -> bytes:
        header = b"IHDR" + struct.pack(">LL", wide, high) + bytes(data[24:29])
        return bytes(data[:12]) + header + struct.pack(">L", zlib.crc32(header)) + bytes(data[33:])

    with pytest.raises(UnreadableImageError, match="at most 89478485 px in all are decoded"):
        load_image(sized(13_000, 13_000))
    with pytest.raises(UnreadableImageError, match="has at most 500 to 1; scale it down"):
        load_image(sized(5_000, 5_000))


def test_crop_of_a_thin_image_takes_the_memory_of_its_result(tmp_path: Path) -> None:
    program = (
        "import resource, sys\n"
        "from patchdeploy.data import Preprocessing, load_image, resize_image\n"
        "image = load_image(sys.argv[1])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "resize_image(image, 224, Preprocessing(resize='crop', crop_fraction=0.875))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    Image.new("L", (4000, 2)).save(tmp_path / "line.png")
    command = [sys.executable, "-c", program, str(tmp_path / "line.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16_384  # KiB; the result has 147


@pytest.mark.parametrize("shape", [(2, 400), (400, 3), (30, 900), (5, 64)])
def test_the_centre_of_a_thin_image_is_that_of_the_whole_resized_image(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(*shape)
    crop = Preprocessing(resize="crop", crop_fraction=0.875)
    thin = resize_image(image, 28, crop).astype(int)
    monkeypatch.setattr("patchdeploy.data.pixels.MOST_STRETCH", 10**9)
    whole = resize_image(image, 28, crop).astype(int)
    # Pillow takes the box as float32: coordinates to 400 are off by at most 2**-16, so a weight by
    # as much and a value by 255 * 2**-15 < 0.01, which rounding makes at most 1 of.
    assert np.abs(thin - whole).max() <= 1


def test_a_large_image_is_converted_in_strips_that_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind, mode in (("PNG", "RGBA"), ("GIF", "P"), ("PNG", "I;16"), ("TIFF", "CMYK")):
        data = encode(make_image(mode), kind)
        whole = load_image(data)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "STRIP_PIXELS", 25)
            np.testing.assert_array_equal(load_image(data), whole)
