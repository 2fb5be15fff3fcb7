"""Frames of a camera as RGB: the rule of docs/images.md in numpy, and random frames to try it on.

In: three planes of bytes with strides (YUV_420_888), a crop, a rotation. Out: uint8 RGB. Written
without a look at patchkit's Yuv.kt, which it is compared with.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Rng = np.random.Generator
RED_OF_CR, GREEN_OF_CB, GREEN_OF_CR, BLUE_OF_CB = 91881, 22554, 46802, 116130
"""1.402, 0.344136, 0.714136 and 1.772 in units of 2^-16, rounded as libjpeg rounds them."""


@dataclass(frozen=True)
class Plane:
    """Sample (x, y) is byte ``y * row_stride + x * pixel_stride`` of ``data``."""

    data: bytes
    row_stride: int
    pixel_stride: int

    def samples(self, height: int, width: int) -> Any:
        """int32 [height, width]."""
        rows = np.arange(height)[:, None] * self.row_stride
        columns = np.arange(width) * self.pixel_stride
        return np.frombuffer(self.data, np.uint8)[rows + columns].astype(np.int32)


@dataclass(frozen=True)
class Frame:
    """What the camera gives, and how the app wants it; ``crop`` is left, top, width, height."""

    width: int
    height: int
    planes: tuple[Plane, Plane, Plane]
    crop: tuple[int, int, int, int]
    rotation: int
    mirrored: bool

    def fields(self) -> dict[str, Any]:
        """In JSON, without the bytes."""
        return {
            "width": self.width,
            "height": self.height,
            "strides": [[one.row_stride, one.pixel_stride] for one in self.planes],
            "lengths": [len(one.data) for one in self.planes],
            "crop": list(self.crop),
            "rotation": self.rotation,
            "mirrored": self.mirrored,
        }

    @property
    def data(self) -> bytes:
        """The bytes of the planes in turn."""
        return b"".join(one.data for one in self.planes)


def rgb_of(y: Any, cb: Any, cr: Any) -> Any:
    """uint8 [..., 3] of samples 0 to 255 of full-range BT.601."""
    luma, blue, red = (y << 16) + (1 << 15), cb - 128, cr - 128
    sums = [
        luma + RED_OF_CR * red,
        luma - GREEN_OF_CB * blue - GREEN_OF_CR * red,
        luma + BLUE_OF_CB * blue,
    ]
    return np.clip(np.stack(sums, -1) >> 16, 0, 255).astype(np.uint8)


def frame_pixels(frame: Frame) -> Any:
    """uint8 [H, W, 3]: cropped, then turned clockwise, then mirrored."""
    high, wide = frame.height, frame.width
    luma, *chroma = frame.planes
    half = [one.samples((high + 1) // 2, (wide + 1) // 2) for one in chroma]
    cb, cr = (one.repeat(2, 0).repeat(2, 1)[:high, :wide] for one in half)
    left, top, width, height = frame.crop
    whole = rgb_of(luma.samples(high, wide), cb, cr)
    turned = np.rot90(whole[top : top + height, left : left + width], -frame.rotation // 90)
    return turned[:, ::-1] if frame.mirrored else turned


def random_frame(rng: Rng) -> Frame:
    """Planar or with interleaved chroma, padded rows, the last one perhaps cut after its end."""
    width, height = (int(np.exp(rng.uniform(0, 4.5))) for _ in range(2))
    half = ((width + 1) // 2, (height + 1) // 2)
    step = int(rng.choice([1, 2, 3], p=[0.4, 0.5, 0.1]))
    luma = _random_plane(rng, width, height, int(rng.choice([1, 2], p=[0.9, 0.1])))
    chroma = [_random_plane(rng, *half, step) for _ in range(2)]
    left, top = int(rng.integers(width)), int(rng.integers(height))
    crop = (
        left,
        top,
        int(rng.integers(1, width - left + 1)),
        int(rng.integers(1, height - top + 1)),
    )
    if rng.random() < 0.3:
        crop = (0, 0, width, height)
    rotation = int(rng.choice([0, 90, 180, 270]))
    return Frame(width, height, (luma, *chroma), crop, rotation, bool(rng.random() < 0.5))  # type: ignore[arg-type]


def _random_plane(rng: Rng, width: int, height: int, step: int) -> Plane:
    row = (width - 1) * step + 1
    stride = row + int(rng.choice([0, 1, 15, 64]))
    length = (height - 1) * stride + (row if rng.random() < 0.5 else stride)
    data = rng.integers(0, 256, length, np.uint8)
    if rng.random() < 0.3:
        data = np.where(data > 127, 255, 0).astype(np.uint8)
    return Plane(data.tobytes(), stride, step)


BAD = {
    "Y ends one byte early": lambda one: _planes(one, 0, data=one.planes[0].data[:-1]),
    "V ends one byte early": lambda one: _planes(one, 2, data=one.planes[2].data[:-1]),
    "rows overlap": lambda one: _planes(one, 0, row_stride=one.width - 1),
    "a row stride of 0": lambda one: _planes(one, 1, row_stride=0),
    "a negative row stride": lambda one: _planes(one, 1, row_stride=-8),
    "a pixel stride of 0": lambda one: _planes(one, 2, pixel_stride=0),
    "a negative pixel stride": lambda one: _planes(one, 0, pixel_stride=-1),
    "strides beyond 2^31": lambda one: _planes(one, 0, row_stride=2**31 - 1),
    "pixel strides beyond 2^31": lambda one: _planes(one, 2, pixel_stride=2**31 - 1),
    "no pixels": lambda one: replace(one, width=0),
    "a negative height": lambda one: replace(one, height=-4),
    "more pixels than any picture": lambda one: replace(one, width=2**31 - 1, height=2**31 - 1),
    "a crop to the right of the frame": lambda one: replace(one, crop=(1, 0, one.width, 1)),
    "a crop below the frame": lambda one: replace(one, crop=(0, 1, 1, one.height)),
    "a crop left of the frame": lambda one: replace(one, crop=(-1, 0, 1, 1)),
    "a crop above the frame": lambda one: replace(one, crop=(0, -1, 1, 1)),
    "an empty crop": lambda one: replace(one, crop=(0, 0, 0, 1)),
    "a crop of no rows": lambda one: replace(one, crop=(0, 0, 1, 0)),
    "a crop whose end overflows": lambda one: replace(one, crop=(1, 1, 2**31 - 1, 2**31 - 1)),
    "a rotation of 45 degrees": lambda one: replace(one, rotation=45),
    "a rotation of 360 degrees": lambda one: replace(one, rotation=360),
    "a rotation the other way round": lambda one: replace(one, rotation=-90),
}
"""By name, what is wrong with a frame of tight planes."""


def _planes(frame: Frame, number: int, **changes: Any) -> Frame:
    planes = [replace(one, **changes) if k == number else one for k, one in enumerate(frame.planes)]
    return replace(frame, planes=tuple(planes))


def tight_frame(width: int = 7, height: int = 5, seed: int = 0) -> Frame:
    """A frame without padding or interleaving."""
    rng = np.random.default_rng(seed)
    sizes = [(width, height)] + 2 * [((width + 1) // 2, (height + 1) // 2)]
    planes = tuple(
        Plane(rng.integers(0, 256, wide * high, np.uint8).tobytes(), wide, 1)
        for wide, high in sizes
    )
    return Frame(width, height, planes, (0, 0, width, height), 0, False)  # type: ignore[arg-type]


def vectors() -> list[dict[str, Any]]:
    """The cases of yuv_vectors.json: no square among them, each rotation and its mirror image."""
    rng = np.random.default_rng(5)
    frames = [
        replace(tight_frame(), rotation=turn, mirrored=mirrored)
        for turn in (0, 90, 180, 270)
        for mirrored in (False, True)
    ]
    frames.append(replace(tight_frame(), crop=(1, 1, 5, 3), rotation=90))
    frames.append(replace(tight_frame(8, 3), crop=(3, 0, 5, 2), rotation=270, mirrored=True))
    frames += [tight_frame(1, 6), replace(tight_frame(6, 1), rotation=90, mirrored=True)]
    while len(frames) < 24:
        frame = random_frame(rng)
        if frame.crop[2] != frame.crop[3] and len(frame.data) < 300:
            frames.append(frame)
    return [_vector(one) for one in frames]


def _vector(frame: Frame) -> dict[str, Any]:
    pixels = frame_pixels(frame)
    return {
        **frame.fields(),
        "planes": base64.b64encode(frame.data).decode(),
        "size": [pixels.shape[1], pixels.shape[0]],
        "rgb": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode(),
    }
