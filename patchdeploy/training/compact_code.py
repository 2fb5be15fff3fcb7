"""How a patch is coded in few bytes: whole numbers of steps away from the base, deflated.

In: a base, a patch, a step for each tensor. Out: the integers, the patch that a reader decodes
from them, and how many bytes they take. This measures; the file that ships is another stage's.

Decoding is exact on every platform (shared rule of this format): integer additions, and one
float64 addition that is rounded to float32.

- A scale (gamma, ``patch_scale``, a variance) is coded in its float32 bit pattern, read as an
  integer, which grows almost as its logarithm does: ordered(base) + n * 2^k. One octave is 2^23,
  so a step of 2^k is 2^(k - 23) of an octave.
- Everything else is base + n * 2^e, in its own unit. The head's base is 0.
- A tensor without a step is coded exactly, by bit patterns with k = 0.
- At a further resolution the base's place is taken by the decoded values of the largest one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdeploy.base import Base
from patchdeploy.errors import ConfigError, NegativeScaleError, UnknownLayerError
from patchdeploy.patch import Patch

Part = Literal["gamma", "beta", "depthwise", "statistics", "head"]
PARTS: tuple[Part, ...] = ("gamma", "beta", "depthwise", "statistics", "head")
OCTAVE_BITS = 23
SCALE_EXPONENTS, VALUE_EXPONENTS = (0, 30), (-126, 127)
SMALLEST_NORMAL, LARGEST = 1 << 23, 0x7F7F_FFFF
"""Bit patterns of the least normal and the greatest finite float32."""
STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY)

Integers = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Steps:
    """Exponent of two of each tensor's step, by name; those not named are coded exactly.

    Attributes:
        exponents: k in 0..30 for scales, e in -126..127 for the rest; see the module.
    """

    exponents: Mapping[str, int] = field(default_factory=dict)

    def coarser(self, names: Iterable[str]) -> Steps:
        """The same with twice the step for ``names``."""
        return Steps({**self.exponents, **{name: self.exponents[name] + 1 for name in names}})


@dataclass(frozen=True)
class CodedPatch:
    """A patch as its reader sees it.

    Attributes:
        patch: with the decoded values.
        integers: by resolution and tensor, int64 in the tensor's shape.
    """

    patch: Patch
    integers: Mapping[int, Integers]


def part_of(base: Base, name: str) -> Part:
    """What kind of tensor ``name`` is."""
    stem, _, last = name.rpartition(".")
    if stem == base.head_name:
        return "head"
    if last in ("running_mean", "running_var"):
        return "statistics"
    if last in ("patch_scale", "patch_bias"):
        return "gamma" if last == "patch_scale" else "beta"
    if _base_tensor(base, f"{stem}.running_mean") is not None:
        return "gamma" if last == "weight" else "beta"
    return "depthwise"


def is_scale(base: Base, name: str) -> bool:
    """Whether ``name`` is coded in its logarithm."""
    return part_of(base, name) == "gamma" or name.endswith(".running_var")


def reference_of(base: Base, name: str, shape: torch.Size) -> Tensor:
    """What ``name`` is coded against: the base's value; 1 and 0 for an explicit scale and bias,
    0 for the head. float32 of ``shape``.
    """
    if name.endswith(".patch_scale"):
        return torch.ones(shape)
    if name.endswith(".patch_bias") or part_of(base, name) == "head":
        return torch.zeros(shape)
    value = _base_tensor(base, name)
    if value is None:
        raise UnknownLayerError(
            f"tensor {name!r} is not in base {base.name!r}; a patch is coded against the base that "
            "it was trained on; use that base"
        )
    return value.detach().cpu().float()


def _base_tensor(base: Base, name: str) -> Tensor | None:
    """The base's tensor of this name; None where it has none."""
    stem, _, last = name.rpartition(".")
    try:
        found = getattr(base.module.get_submodule(stem), last, None)
    except AttributeError:
        return None
    return found if isinstance(found, Tensor) else None


def uniform_steps(
    base: Base, tensors: Mapping[str, Tensor], step: float, head_step: float = 0.0
) -> Steps:
    """One relative step for every layer, rounded down to a power of two in each tensor's unit.

    Scales: ``step`` octaves, which is a share of ``step`` * ln 2 of the scale. The rest: the same
    share of what it acts on. Betas: of the layer's spread, the root mean square of the base's
    gamma, which is the standard deviation of what the layer puts out. Means: of the root mean
    variance. Depthwise kernels: of their root mean square. The head: a share ``head_step`` of the
    root mean square of its trained weights; 0 leaves it exact.

    Raises:
        ConfigError: a step that is not positive (for the head: negative).
    """
    if not 0 < step < math.inf or not 0 <= head_step < math.inf:
        raise ConfigError(
            f"coding step {step}, head step {head_step}; a step must be positive, the head's may "
            "be 0; an eighth is usual"
        )
    exponents = {}
    for name, value in tensors.items():
        if part_of(base, name) == "head":
            weight = tensors.get(f"{base.head_name}.weight", value)
            if head_step > 0:
                exponents[name] = floor_log2(head_step * _rms(weight))
        elif is_scale(base, name):
            exponents[name] = min(max(OCTAVE_BITS + floor_log2(step), 0), SCALE_EXPONENTS[1])
        else:
            exponents[name] = floor_log2(step * math.log(2.0) * _spread(base, name, value.shape))
    return Steps(exponents)


def floor_log2(value: float) -> int:
    """Exponent of the largest power of two not above ``value`` > 0, in -126..127."""
    return min(max(math.frexp(value)[1] - 1, -126), 127)


def code_patch(base: Base, patch: Patch, steps: Steps) -> CodedPatch:
    """Code every resolution of ``patch``, the largest first.

    Raises:
        NegativeScaleError: a scale of another sign than the base's, with a step.
        ConfigError: a step that makes an integer of more than 31 bits.
        UnknownLayerError: a tensor that the base does not have.
    """
    variants: dict[int, dict[str, NDArray[np.float32]]] = {}
    integers: dict[int, dict[str, NDArray[np.int64]]] = {}
    first: Mapping[str, NDArray[np.float32]] = {}
    for px in sorted(patch.resolutions, reverse=True):
        variants[px], integers[px] = {}, {}
        for name, array in patch.tensors(px).items():
            value = torch.tensor(array)
            reference = (
                torch.tensor(first[name])
                if name in first and first[name].shape == array.shape
                else reference_of(base, name, value.shape)
            )
            exponent = steps.exponents.get(name)
            number, decoded = _code(value, reference, exponent, is_scale(base, name), name)
            variants[px][name], integers[px][name] = decoded.numpy(), number.numpy()
        first = first or variants[px]
    decoded_patch = replace(patch, variants={px: variants[px] for px in patch.variants})
    return CodedPatch(decoded_patch, integers)


def round_patch(base: Base, patch: Patch, steps: Steps) -> Patch:
    """The patch that a reader of the coded one has; see `code_patch`."""
    return code_patch(base, patch, steps).patch


def coded_bytes(base: Base, patch: Patch, steps: Steps) -> dict[str, int]:
    """Bytes of the coded patch by part, "steps" (one byte a tensor) and "total".

    Raises:
        see `code_patch`.
    """
    return count_bytes(base, code_patch(base, patch, steps).integers)


def _code(
    value: Tensor, reference: Tensor, exponent: int | None, scale: bool, name: str
) -> tuple[Tensor, Tensor]:
    """(integers int64, decoded float32) of one tensor."""
    if exponent is None:
        number = ordered(value) - ordered(reference)
        return number, from_ordered(ordered(reference) + number)
    low, high = SCALE_EXPONENTS if scale else VALUE_EXPONENTS
    if not low <= exponent <= high:
        raise ConfigError(
            f"tensor {name!r}: step exponent {exponent}; it must be in {low}..{high}; take another "
            "step, or none to code it exactly"
        )
    if scale:
        flipped = int(((value * reference) < 0).sum())
        if flipped:
            raise NegativeScaleError(
                f"tensor {name!r}: {flipped} scales have another sign than the base's; a coded "
                "scale keeps its sign; train with the sign kept, or give this tensor no step"
            )
        octave = torch.tensor(exponent)
        number = count_scale_steps(value, reference, octave)
        decoded = decode_scales(number, reference, octave)
    else:
        step = torch.tensor(math.ldexp(1.0, exponent), dtype=torch.float64)
        number = count_steps(value, reference, step)
        decoded = decode_values(number, reference, step)
    if bool((number.abs() >> 31).any()):
        raise ConfigError(
            f"tensor {name!r}: step 2^{exponent} makes integers of more than 31 bits; a reader "
            "holds 31; take a larger step, or none to code it exactly"
        )
    return number, decoded


def ordered(value: Tensor) -> Tensor:
    """float32 -> int64 in the same order: the bit pattern, negated for negative numbers."""
    bits = value.contiguous().view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -(bits & 0x7FFF_FFFF), bits)


def from_ordered(number: Tensor) -> Tensor:
    """The inverse of `ordered`: int64 -> float32."""
    bits = torch.where(number < 0, -number - (1 << 31), number)
    return bits.to(torch.int32).view(torch.float32)


def count_scale_steps(value: Tensor, reference: Tensor, exponent: Tensor) -> Tensor:
    """int64: the difference of bit patterns in steps of 2^exponent, to nearest, ties upward."""
    difference = ordered(value) - ordered(reference)
    half = (torch.ones_like(exponent) << exponent) >> 1
    return (difference + half) >> exponent


def decode_scales(number: Tensor, reference: Tensor, exponent: Tensor) -> Tensor:
    """The inverse of `count_scale_steps`, float32. The sign stays the reference's, and the result
    normal and finite; against 0 any finite result is right.
    """
    found = ordered(reference) + (number << exponent)
    low = torch.where(reference > 0, SMALLEST_NORMAL, -LARGEST)
    high = torch.where(reference < 0, -SMALLEST_NORMAL, LARGEST)
    return from_ordered(found.maximum(low).minimum(high))


def count_steps(value: Tensor, reference: Tensor, step: Tensor) -> Tensor:
    """int64: the difference in steps (float64), to nearest, ties to even."""
    return torch.round((value.double() - reference.double()) / step).to(torch.int64)


def decode_values(number: Tensor, reference: Tensor, step: Tensor) -> Tensor:
    """The inverse of `count_steps`: float64 reference + number * step, rounded to float32. The
    product is exact, a step being a power of two, so a fused multiply-add gives the same bits.
    """
    return (reference.double() + number.double() * step).float()


def pack_planes(numbers: NDArray[np.int64]) -> bytes:
    """Integers as byte planes, the lowest first, without the high ones that are all zero.

    A sign goes into the lowest bit (0, -1, 1, -2, ... become 0, 1, 2, 3, ...), so that small
    numbers of either sign have zeros above.
    """
    flat = numbers.reshape(-1)
    folded = ((flat << 1) ^ (flat >> 63)).astype("<u8").view(np.uint8).reshape(-1, 8)
    used = [plane for plane in range(8) if folded[:, plane].any()]
    planes = (max(used) + 1) if used else 0
    return np.ascontiguousarray(folded[:, :planes].T).tobytes()


def deflate(data: bytes) -> bytes:
    """The shortest raw deflate stream (RFC 1951) that zlib's strategies give at level 9."""
    streams = []
    for strategy in STRATEGIES:
        one = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        streams.append(one.compress(data) + one.flush())
    return min(streams, key=len)


def count_bytes(base: Base, integers: Mapping[int, Integers]) -> dict[str, int]:
    """Each part is one stream over all resolutions and layers; a part with nothing takes none."""
    streams: dict[Part, list[NDArray[np.int64]]] = {part: [] for part in PARTS}
    names = set()
    for variant in integers.values():
        for name, numbers in variant.items():
            streams[part_of(base, name)].append(numbers.reshape(-1))
            names.add(name)
    counts: dict[str, int] = {}
    for part in PARTS:
        found = streams[part]
        counts[part] = len(deflate(pack_planes(np.concatenate(found)))) if found else 0
    counts["steps"] = len(names)
    return {**counts, "total": sum(counts.values())}


def _spread(base: Base, name: str, shape: torch.Size) -> float:
    """The unit of a step for ``name``; see `uniform_steps`. 1 where the base has none."""
    stem, _, last = name.rpartition(".")
    if last == "running_mean":
        return _rms(reference_of(base, f"{stem}.running_var", shape).clamp(min=0).sqrt())
    if last == "bias":
        return _rms(reference_of(base, f"{stem}.weight", shape))
    return _rms(reference_of(base, name, shape))


def _rms(value: Tensor) -> float:
    return float(value.detach().double().square().mean().sqrt()) or 1.0
