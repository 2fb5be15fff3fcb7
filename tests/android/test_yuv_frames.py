"""The rule for a camera's frames in Python: against libjpeg, real numbers and the goldens."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from yuv_frames import frame_pixels, random_frame, rgb_of, tight_frame, vectors

GOLDENS = json.loads((Path(__file__).parent / "yuv_vectors.json").read_text())


def test_the_goldens_are_what_the_rule_gives():
    assert vectors() == GOLDENS


def test_no_golden_is_square_and_every_turn_of_one_picture_is_another_picture():
    assert all(one["size"][0] != one["size"][1] for one in GOLDENS)
    assert len({one["rgb"] for one in GOLDENS[:8]}) == 8


def test_the_colours_are_those_of_libjpeg():
    """A JPEG without subsampling, decoded to its own colours and to RGB by libjpeg."""
    rng = np.random.default_rng(1)
    picture = Image.fromarray(rng.integers(0, 256, (96, 160, 3), np.uint8))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95, subsampling=0)
    raw = Image.open(io.BytesIO(file.getvalue()))
    raw.draft("YCbCr", raw.size)
    assert raw.mode == "YCbCr"
    y, cb, cr = np.moveaxis(np.asarray(raw).astype(np.int32), -1, 0)
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    assert np.array_equal(rgb_of(y, cb, cr), decoded)


def test_every_colour_is_the_rounded_one_of_real_numbers_or_its_neighbour():
    """Factors are rounded by at most 2^-17, times 128 twice: a sum is off by at most 2^-9."""
    cb, cr = np.meshgrid(np.arange(256), np.arange(256))
    for y in (0, 1, 127, 254, 255):
        blue, red = cb - 128, cr - 128
        green = y - (0.114 * 1.772 * blue + 0.299 * 1.402 * red) / 0.587
        exact = np.stack([y + 1.402 * red, green, y + 1.772 * blue], -1).clip(0, 255)
        found = rgb_of(np.full_like(cb, y), cb, cr)
        assert np.abs(found - exact).max() <= 0.5 + 2**-9


def test_padding_interleaving_and_a_short_last_row_change_no_pixel():
    rng = np.random.default_rng(2)
    for _ in range(50):
        frame = random_frame(rng)
        tight = []
        for number, plane in enumerate(frame.planes):
            sides = (frame.height, frame.width)
            high, wide = sides if number == 0 else ((side + 1) // 2 for side in sides)
            data = plane.samples(high, wide).astype(np.uint8).tobytes()
            tight.append(replace(plane, data=data, row_stride=wide, pixel_stride=1))
        assert np.array_equal(
            frame_pixels(frame), frame_pixels(replace(frame, planes=tuple(tight)))
        )


def test_four_quarter_turns_and_two_mirrors_give_the_frame_back():
    frame = tight_frame()
    pixels = frame_pixels(frame)
    half_turn = frame_pixels(replace(frame, rotation=180))
    assert np.array_equal(half_turn[::-1, ::-1], pixels)
    quarter = frame_pixels(replace(frame, rotation=90))
    assert np.array_equal(quarter[0], pixels[::-1, 0])  # the left column, from below, is on top
    mirrored = frame_pixels(replace(frame, mirrored=True))
    assert np.array_equal(mirrored[:, 0], pixels[:, -1])


@pytest.mark.parametrize("side", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_two_by_two_pixels_share_a_chroma_sample(side):
    frame = tight_frame(4, 2)
    luma = replace(frame.planes[0], data=bytes([77] * 8))
    pixels = frame_pixels(replace(frame, planes=(luma, *frame.planes[1:])))
    x, y = side
    assert np.array_equal(pixels[y, x], pixels[0, 0])
    assert np.array_equal(pixels[y, x + 2], pixels[0, 2])
    assert not np.array_equal(pixels[0, 0], pixels[0, 2])


def test_goldens_are_small():
    assert sum(len(base64.b64decode(one["rgb"])) for one in GOLDENS) < 8000
