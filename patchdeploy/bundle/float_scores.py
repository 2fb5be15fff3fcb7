"""What a task's float network said when it was exported, and how far int8 is from it.

In: scores of the torch module with the patch, and of the lowered graph, on small pictures; or the
bytes of ``float/<task>.scores.safetensors``. Out: the other one, and comparisons. A bundle holds no
float network, so this is what `verify` asks without one. The pictures are thumbnails as those of a
patch's self-test (`patchfile.golden`): no image that training saw can be read off them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from patchdeploy.documents import DECIMAL, Field, parse_tensor_notes
from patchdeploy.errors import FileFormatError
from patchdeploy.patchfile.golden import SIDE

FORMAT = 1
UNRELATED_DB = -3.0
"""Scores of the same power that know nothing of the float network's differ by twice that power."""
WEAK_DB, WEAK_TOP1 = 3.0, 0.7
"""Noise of half the signal's power, and a best class that is another for three images in ten."""
MAX_PICTURES = 64
MAX_SIDES = 64
_KEY = "patchdeploy"
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Comparison:
    """How far scores are from the float network's.

    Attributes:
        images: how many were compared.
        snr_db: 10 log10 of the power of the float scores over that of the difference, each class
            less its mean over the images; at most 200. None where all images get the same scores.
        equal_top1: share of images with the same best class, in [0, 1].
    """

    images: int
    snr_db: float | None
    equal_top1: float

    @property
    def is_unlike(self) -> bool:
        """Whether these are another network's answers, and not the float network's with noise.

        Networks of random weights quantise to 0 dB with the same best classes, so that signal to
        noise alone refuses only what is unrelated.
        """
        if self.snr_db is None:
            return False
        weak = self.snr_db < WEAK_DB and self.equal_top1 < WEAK_TOP1
        return weak or self.snr_db < UNRELATED_DB

    def __str__(self) -> str:
        signal = "no signal" if self.snr_db is None else f"signal to noise {self.snr_db:.1f} dB"
        return f"{signal}, equal top-1 {100 * self.equal_top1:.1f} % of {self.images} images"


@dataclass(frozen=True, eq=False)
class FloatRecord:
    """The float network of one task on some pictures.

    Attributes:
        thumbnails: uint8 RGB [n, 8, 8, 3], enlarged by `patchfile.golden.enlarge`.
        module: by resolution, scores of the torch module with the patch, float32 [n, classes].
        graph: by resolution, those of the lowered and folded network.
        measured: by resolution, int8 against the module on calibration images, at export.
        kept: the same on the thumbnails.
    """

    thumbnails: NDArray[np.uint8]
    module: Mapping[int, Scores]
    graph: Mapping[int, Scores]
    measured: Mapping[int, Comparison]
    kept: Mapping[int, Comparison]

    def to_bytes(self) -> bytes:
        """A safetensors file: ``thumbnails``, ``module/<px>``, ``graph/<px>``, and notes."""
        arrays = {f"module/{px}": np.ascontiguousarray(one) for px, one in self.module.items()}
        arrays |= {f"graph/{px}": np.ascontiguousarray(one) for px, one in self.graph.items()}
        document = {"format": FORMAT, "measured": dict(self.measured), "kept": dict(self.kept)}
        notes = json.dumps(document, default=_to_json, allow_nan=False)
        return save({**arrays, "thumbnails": np.ascontiguousarray(self.thumbnails)}, {_KEY: notes})

    @classmethod
    def from_bytes(cls, data: bytes) -> FloatRecord:
        """The inverse of `to_bytes`, of bytes that anyone may have made.

        Raises:
            FileFormatError: truncated, of another format, or parts that do not fit each other.
        """
        try:
            arrays = load(data)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise _unfit(
                f"of {len(data)} bytes ({error!s:.200})", "a whole .safetensors"
            ) from error
        notes = parse_tensor_notes(data, _KEY, "float scores", 4).keys(
            ("format", "measured", "kept")
        )
        notes["format"].integer(FORMAT, FORMAT)
        measured, kept = _comparisons(notes["measured"]), _comparisons(notes["kept"])
        if set(measured) != set(kept):
            raise _unfit(f"measured at {sorted(measured)} px", f"at {sorted(kept)}, as kept")
        thumbnails = arrays.pop("thumbnails", np.zeros(0))
        count = len(thumbnails)
        if (
            thumbnails.dtype != np.uint8
            or thumbnails.shape != (count, SIDE, SIDE, 3)
            or not 1 <= count <= MAX_PICTURES
        ):
            raise _unfit(f"with thumbnails {thumbnails.shape}", f"1 to {MAX_PICTURES} of 8x8x3")
        wanted = {f"{kind}/{px}" for kind in ("module", "graph") for px in measured}
        if set(arrays) != wanted or not _are_scores(arrays, count):
            raise _unfit("with other scores", f"finite float32 [{count}, classes] for each side")
        return cls(
            thumbnails,
            {px: arrays[f"module/{px}"] for px in measured},
            {px: arrays[f"graph/{px}"] for px in measured},
            measured,
            kept,
        )


NO_SIGNAL = 2.0**-20
"""Share of the scores' power below which images differ by less than int8 can say: one of 255 codes
spans 2^-8 of the largest score at best, and a quarter of a code is 2^-10 of it."""


def compare_scores(truth: Scores, found: Scores) -> Comparison:
    """``found`` against ``truth``, both float [n, classes], n >= 1; see `Comparison`."""
    signal = float(np.square(truth - truth.mean(0), dtype=np.float64).sum())
    noise = float(np.square(truth.astype(np.float64) - found).sum())
    equal = float(np.mean(truth.argmax(1) == found.argmax(1)))
    if signal <= NO_SIGNAL * float(np.square(truth, dtype=np.float64).sum()):
        return Comparison(len(truth), None, equal)
    decibels = 10 * math.log10(signal / noise) if noise else 200.0
    return Comparison(len(truth), min(decibels, 200.0), equal)


def float_scores_name(task: str) -> str:
    """The file's name in the folder ``float``."""
    return f"{task}.scores.safetensors"


def is_float_scores(path: str, task: str) -> bool:
    """Whether ``path`` in a bundle is the record of ``task``: its name, or with a hash in it."""
    pattern = rf"float/{re.escape(task)}\.scores(\.[0-9a-f]{{12}})?\.safetensors"
    return re.fullmatch(pattern, path) is not None


def _to_json(value: object) -> object:
    assert isinstance(value, Comparison)
    return asdict(value)


def _comparisons(value: Field) -> dict[int, Comparison]:
    table = value.table(DECIMAL, "a side in pixels", most=MAX_SIDES, least=1)
    return {int(px): _comparison(one) for px, one in table.items()}


def _comparison(value: Field) -> Comparison:
    body = value.keys(("images", "snr_db", "equal_top1"))
    signal = body["snr_db"]
    return Comparison(
        body["images"].integer(1, 1 << 31),
        None if signal.value is None else signal.number(-1000, 200),
        body["equal_top1"].number(0, 1),
    )


def _are_scores(arrays: Mapping[str, NDArray[np.generic]], count: int) -> bool:
    shapes = {one.shape for one in arrays.values()}
    shape = next(iter(shapes))
    return (
        len(shapes) == 1
        and len(shape) == 2
        and shape[0] == count
        and shape[1] >= 2
        and all(one.dtype == np.float32 and np.isfinite(one).all() for one in arrays.values())
    )


def _unfit(what: str, rule: str) -> FileFormatError:
    return FileFormatError(
        f"float scores {what}; they must be {rule}; copy the bundle again or export it again"
    )
