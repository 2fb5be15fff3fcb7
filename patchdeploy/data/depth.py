"""Samples of more than 8 bits, or of fractions, as uint8: by the range that is stated, or not.

In: an image's samples, and what its file or its type says of their range. Out: uint8. Why: a
12-bit value in a 16-bit file, a fraction of 1 or an int32 keeps its meaning only by its range. The
wrong one gives a black image and no error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.data.formats import Refused
from patchdeploy.data.tags import (
    BITS,
    MAX_SAMPLE,
    MIN_SAMPLE,
    PHOTOMETRIC,
    S_MAX_SAMPLE,
    S_MIN_SAMPLE,
    SAMPLE_FORMAT,
    Numbers,
)

LEAST_USED = 0.25
"""Of a 16-bit range that nobody has narrowed. 10, 12 and 14 bits in 16 use less, and look black."""
_RULE = "8 bits are made of the range that the file states (TIFF: SMinSampleValue, SMaxSampleValue)"
_REMEDY = "scale it to uint8 yourself, all images of a task alike"


@dataclass(frozen=True)
class Depth:
    """The range of an image's samples.

    Attributes:
        low, high: black and white.
        is_stated: the file says so itself; else it is the type's whole range.
        is_inverted: ``low`` is white (TIFF's MinIsWhite).
    """

    low: float
    high: float
    is_stated: bool = False
    is_inverted: bool = False


FRACTIONS = Depth(0.0, 1.0)
SIXTEEN_BITS = Depth(0, 65_535)


def find_depth(mode: str, file_format: str | None, numbers: Mapping[int, Numbers]) -> Depth:
    """The range of a Pillow image of one deep channel.

    Args:
        mode: "I", "F" or one of "I;16".
        numbers: of its tags, if it is a TIFF.

    Raises:
        Refused: nothing states it.
    """
    is_white_first = numbers.get(PHOTOMETRIC, (1,))[0] == 0
    stated = _stated(numbers)
    if stated is None and mode.startswith("I;16"):
        bits = int(numbers.get(BITS, (16,))[0])
        stated = Depth(0, 2**bits - 1, bits < 16) if 8 <= bits <= 16 else SIXTEEN_BITS
    elif stated is None and mode == "I" and file_format in ("PNG", "PPM"):
        stated = SIXTEEN_BITS  # Pillow scales a PPM to it
    elif stated is None and mode == "F":
        stated = FRACTIONS
    if stated is None:
        raise Refused(f"it has samples of 32 bits (Pillow's mode {mode})", _RULE, _REMEDY)
    return replace(stated, is_inverted=is_white_first)


def _stated(numbers: Mapping[int, Numbers]) -> Depth | None:
    for low, high in ((S_MIN_SAMPLE, S_MAX_SAMPLE), (MIN_SAMPLE, MAX_SAMPLE)):
        if high in numbers:
            least, most = min(numbers.get(low, (0.0,))), max(numbers[high])
            if np.isfinite([least, most]).all() and least < most:
                return Depth(least, most, is_stated=True)
    return None


def check_eight_bits(numbers: Mapping[int, Numbers]) -> None:
    """Refuse signed samples of 8 bits, which Pillow reads as unsigned."""
    if 2 in numbers.get(SAMPLE_FORMAT, ()) and max(numbers.get(BITS, (8,))) <= 8:
        raise Refused("it has signed samples of 8 bits", "samples must be unsigned", _REMEDY)


def check_extent(least: float, most: float, depth: Depth) -> None:
    """That samples from ``least`` to ``most`` fit the range, and use enough of it.

    Raises:
        Refused: they do not; NaN fits nothing.
    """
    if not depth.low <= least <= most <= depth.high:
        of = "stated for them" if depth.is_stated else "of their type"
        raise Refused(
            f"its samples go from {least:.6g} to {most:.6g}, outside of {depth.low:.6g} to "
            f"{depth.high:.6g}, the range {of}",
            _RULE,
            _REMEDY,
        )
    is_whole = depth.high > 255 and not depth.is_stated
    if is_whole and 0 < most < LEAST_USED * (depth.high + 1):
        raise Refused(
            f"its 16-bit samples end at {most:.0f} of {depth.high:.0f}, as those of 10, 12 or 14 "
            "bits do, and would look black",
            _RULE,
            _REMEDY,
        )


def check_upper_bytes(most: int) -> None:
    """`check_extent` of 16-bit colours of which Pillow has kept the upper bytes alone."""
    if most < LEAST_USED * 256:
        raise Refused(
            f"its 16-bit samples end below {256 * (most + 1)} of 65535, as those of 10, 12 or 14 "
            "bits do, and would look black",
            "colours must use their 16 bits",
            _REMEDY,
        )


def to_uint8(samples: NDArray[Any], depth: Depth) -> NDArray[np.uint8]:
    """Samples within ``depth`` as uint8.

    Whole numbers keep their upper 8 bits, floor((v - low) * 256 / (high - low + 1)); fractions
    are rounded, rint((v - low) * 255 / (high - low)), which gives back uint8 that was divided by
    255.
    """
    values = samples.astype(np.float64) - depth.low
    extent = depth.high - depth.low
    if np.issubdtype(samples.dtype, np.floating):
        scaled = np.rint(values * (255.0 / extent))
    else:
        scaled = np.floor(values * 256.0 / (extent + 1.0))
    found: NDArray[np.uint8] = scaled.astype(np.uint8)
    return 255 - found if depth.is_inverted else found
