"""The self-test that a patch carries: small pictures, and the scores that they must get.

In: thumbnails of real images and the integer executor's scores, in the arithmetic of each runtime.
Out: bytes in the payload, and back. A reader enlarges each thumbnail to its resolution by the
integer rule below, runs the patched model, and compares the scores as integers. So a patch that
loads but misbehaves is found before it is committed, without a test image on the phone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import ConfigError, PatchRefusedError
from patchdeploy.patchfile.header import MAX_WORK

SIDE = 8
"""Pixels of a thumbnail's side."""
MAX_IMAGES = 8
_ROWS = 64


@dataclass(frozen=True, eq=False)
class Golden:
    """Inputs and the scores that they must get.

    Attributes:
        thumbnails: uint8 RGB [images, 8, 8, 3].
        scores: by runtime (as the header's results name it) and resolution, int8 [images, classes]:
            the scores as integers. Runtimes round sums, products and means each in
            their own way, and deep networks make much of it.
        tolerance_lsb: largest difference that a runtime may show, 0..255.
    """

    thumbnails: NDArray[np.uint8]
    scores: Mapping[str, Mapping[int, NDArray[np.int8]]]
    tolerance_lsb: int


def enlarge(thumbnails: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """uint8 [n, 8, 8, 3] -> uint8 [n, px, px, 3], bilinear with aligned corners, in integers.

    Along each axis output i lies at i * 7 / (px - 1): a = i * 7 // (px - 1), with weight
    f = (i * 7 % (px - 1)) * 256 // (px - 1) of its neighbour a + 1 (of itself at the end). A pixel
    is (sum of the four products of 256 - f or f along both axes + 32768) >> 16.
    """
    position: NDArray[np.int32] = (SIDE - 1) * np.arange(resolution, dtype=np.int32)
    last = max(resolution - 1, 1)
    low = position // last
    part = position % last * 256 // last
    high = np.minimum(low + 1, SIDE - 1)
    wide: NDArray[np.int32] = thumbnails.astype(np.int32)  # sums stay below 2^24
    down = part[:, None, None]
    rows: NDArray[np.int32] = wide[:, low] * (256 - down) + wide[:, high] * down
    across = part[:, None]
    pixels: NDArray[np.uint8] = np.empty((len(wide), resolution, resolution, 3), np.uint8)
    for start in range(0, resolution, _ROWS):  # sums of a few rows at a time
        some = rows[:, start : start + _ROWS]
        both: NDArray[np.int32] = some[:, :, low] * (256 - across) + some[:, :, high] * across
        pixels[:, start : start + _ROWS] = (both + (1 << 15)) >> 16
    return pixels


def check_golden(
    golden: Golden, runtime: str, measured: Mapping[int, NDArray[np.int8]], subject: str
) -> int:
    """Compare ``measured`` (int8 [images, classes] by resolution) with what the patch says.

    Returns:
        The largest difference in LSB of the scores.

    Raises:
        PatchRefusedError: code "self_test": a difference beyond the tolerance.
    """
    worst = 0
    for px, found in measured.items():
        expected = golden.scores[runtime][px].astype(np.int32)
        if found.shape != expected.shape:
            raise PatchRefusedError(
                "self_test",
                f"scores of {subject} at {px} px",
                f"{expected.shape}: one for each image and class",
                str(found.shape),
                "keep the patch that is active and pack this task again",
            )
        worst = max(worst, int(np.abs(found.astype(np.int32) - expected).max(initial=0)))
        if worst > golden.tolerance_lsb:
            raise PatchRefusedError(
                "self_test",
                f"{subject} at {px} px",
                f"within {golden.tolerance_lsb} LSB of the scores that travel with the patch",
                f"{worst} LSB away",
                "keep the patch that is active and pack this task again",
            )
    return worst


def golden_bytes(
    golden: Golden | None, runtimes: Sequence[str], resolutions: Sequence[int], classes: int
) -> bytes:
    """u8 images, u8 tolerance, the thumbnails, then the scores: of each runtime by name, of each
    resolution in the order of the header.

    Raises:
        ConfigError: shapes that do not fit the patch.
    """
    if golden is None:
        return bytes([0, 0])
    count = len(golden.thumbnails)
    fits = golden.thumbnails.shape == (count, SIDE, SIDE, 3) and 1 <= count <= MAX_IMAGES
    fits = fits and golden.thumbnails.dtype == np.uint8
    fits = fits and set(golden.scores) == set(runtimes) and 0 <= golden.tolerance_lsb <= 255
    for by_side in golden.scores.values():
        fits = fits and set(by_side) == set(resolutions)
        fits = fits and all(one.shape == (count, classes) for one in by_side.values())
        fits = fits and all(one.dtype == np.int8 for one in by_side.values())
    if not fits:
        raise ConfigError(
            f"golden inputs {golden.thumbnails.shape} with scores of {sorted(golden.scores)}; they "
            f"must be 1 to {MAX_IMAGES} thumbnails [n, 8, 8, 3] with scores [n, {classes}] of "
            f"{sorted(runtimes)} at {sorted(resolutions)} px; make them with GoldenInputs"
        )
    ordered = [golden.scores[name][px] for name in sorted(runtimes) for px in resolutions]
    scores = b"".join(one.tobytes() for one in ordered)
    return bytes([count, golden.tolerance_lsb]) + golden.thumbnails.tobytes() + scores


def check_work(images: int, resolutions: Sequence[int]) -> None:
    """Check what a self-test asks of a device, before any model of it is loaded.

    Raises:
        PatchRefusedError: code "work": images times the sum of px^2 is above `MAX_WORK`.
    """
    pixels = images * sum(px * px for px in resolutions)
    if pixels > MAX_WORK:
        raise PatchRefusedError(
            "work",
            "self-test",
            f"of at most {MAX_WORK} pixels: images times the sum of px^2",
            f"of {pixels}: {images} images at {', '.join(map(str, resolutions))} px",
            "pack the task again with fewer images in its self-test",
        )


def golden_length(images: int, runs: int, classes: int) -> int:
    """Bytes of a self-test whose images run ``runs`` times, by runtime and resolution."""
    return 2 + images * (SIDE * SIDE * 3 + runs * classes)


def read_golden(
    content: bytes, runtimes: Sequence[str], resolutions: Sequence[int], classes: int
) -> Golden | None:
    """The inverse of `golden_bytes`; None where a patch carries no self-test.

    Raises:
        PatchRefusedError: code "parts".
    """
    count = content[0] if content else MAX_IMAGES + 1
    length = golden_length(count, len(runtimes) * len(resolutions), classes)
    if count > MAX_IMAGES or len(content) != length or (count == 0 and content[1] != 0):
        raise PatchRefusedError(
            "parts",
            "golden",
            f"0 to {MAX_IMAGES} thumbnails with a score for each runtime, resolution and class",
            f"{count} in {len(content)} bytes",
            "pack the task again with its base",
        )
    if count == 0:
        return None
    pixels = count * SIDE * SIDE * 3
    scores = np.frombuffer(content, np.int8, offset=2 + pixels)
    ordered = scores.reshape(len(runtimes), len(resolutions), count, classes)
    return Golden(
        thumbnails=np.frombuffer(content, np.uint8, pixels, 2).reshape(count, SIDE, SIDE, 3),
        scores={
            name: {px: ordered[k, j] for j, px in enumerate(resolutions)}
            for k, name in enumerate(sorted(runtimes))
        },
        tolerance_lsb=content[1],
    )
