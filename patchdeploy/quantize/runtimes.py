"""Whose arithmetic: what the integer executor is given to compute as a runtime does on a machine.

A convolution's requantisation is the same everywhere (`quantize.arithmetic`). For the rest, an
`Arithmetic` holds a function each. There are

- ``reference``: the exact value (float64), rounded half to even;
- ``xnnpack``: LiteRT with its XNNPACK delegate on x86-64 (fixed-point sums, float32 elsewhere);
- ``xnnpack-arm``: the same on ARM, whose products are fixed point, too;
- ``mlas``: ONNX Runtime's QLinearAdd, QLinearMul and QLinearGlobalAveragePool on x86-64;
- ``mlas-arm``: the same on ARM, whose sums are fixed point.

They are bit-equal to ai-edge-litert 2.3 and onnxruntime 1.32 over every pair of inputs
(tests/quantize/test_runtime_arithmetic.py compares with the runtimes of the machine that it runs
on; ``make arm`` runs it on emulated ARM processors). Each differs from ``reference`` by at most 1
LSB: with input / output scale ratios below 2^8 (XNNPACK's own limit) the value before rounding is
off by less than 2^-4 LSB (a sum: two multipliers off by 2^-21 of the larger ratio, times 255;
float32 and ARM's products: a few roundings of 2^-24 of at most 255 * 2^8), so the two can only
fall on different sides of one rounding boundary.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from patchdeploy.errors import ConfigError
from patchdeploy.graph import PointwiseKind
from patchdeploy.quantize import products, sums
from patchdeploy.quantize.arithmetic import ALL_CODES, Int8Array
from patchdeploy.quantize.model import ActivationParams
from patchdeploy.quantize.pointwise import exact_table, litert_table, onnxruntime_table


class Sum(Protocol):
    """See `quantize.sums`."""

    def __call__(
        self,
        a: Int8Array,
        b: Int8Array,
        a_params: ActivationParams,
        b_params: ActivationParams,
        y_params: ActivationParams,
        bounds: tuple[int, int] = ALL_CODES,
    ) -> Int8Array: ...


class Product(Protocol):
    """See `quantize.products`."""

    def __call__(
        self,
        a: Int8Array,
        b: Int8Array,
        a_params: ActivationParams,
        b_params: ActivationParams,
        y_params: ActivationParams,
    ) -> Int8Array: ...


class Mean(Protocol):
    """See `quantize.products`."""

    def __call__(
        self, x: Int8Array, x_params: ActivationParams, y_params: ActivationParams
    ) -> Int8Array: ...


class Table(Protocol):
    """See `quantize.pointwise`."""

    def __call__(
        self, kind: PointwiseKind, x_params: ActivationParams, y_params: ActivationParams
    ) -> Int8Array: ...


@dataclass(frozen=True)
class Arithmetic:
    """How everything but a convolution is computed.

    Attributes:
        name: see the module.
        add: int8 sum of two arrays of one shape.
        multiply: int8 product of two arrays (broadcasting).
        mean: int8 [N, H, W, C] -> [N, 1, 1, C].
        pointwise: int8 [256], a function of one value.
    """

    name: str
    add: Sum
    multiply: Product
    mean: Mean
    pointwise: Table


REFERENCE = Arithmetic(
    "reference", sums.exact_sum, products.exact_product, products.exact_mean, exact_table
)
XNNPACK = Arithmetic(
    "xnnpack", sums.xnnpack_sum, products.xnnpack_product, products.xnnpack_mean, litert_table
)
XNNPACK_ARM = replace(XNNPACK, name="xnnpack-arm", multiply=products.xnnpack_neon_product)
MLAS = Arithmetic(
    "mlas", sums.mlas_sum, products.mlas_product, products.mlas_mean, onnxruntime_table
)
MLAS_ARM = replace(MLAS, name="mlas-arm", add=sums.mlas_neon_sum)

MACHINES: Mapping[str, Mapping[str, Arithmetic]] = {
    "x86-64": {"tflite": XNNPACK, "onnx": MLAS},
    "arm64": {"tflite": XNNPACK_ARM, "onnx": MLAS_ARM},
}
"""By kind of processor and format: what the format's runtime computes with."""
_KINDS = {"aarch64": "arm64", "arm64": "arm64"}


def this_machine() -> str:
    """The key of `MACHINES` for this processor; "x86-64" for one that was never compared."""
    return _KINDS.get(platform.machine().lower(), "x86-64")


def check_machine(machine: str | None) -> None:
    """Check that ``machine`` is a key of `MACHINES`, or None.

    Raises:
        ConfigError: it is not.
    """
    if machine is not None and machine not in MACHINES:
        raise ConfigError(
            f"arithmetic of machine {machine!r}; the reference computes as one of "
            f"{', '.join(MACHINES)} does; choose one, or leave it out for this machine's"
        )


def arithmetic_of(format_name: str, machine: str | None = None) -> Arithmetic:
    """What the runtime of format ``format_name`` computes with; `REFERENCE` for another format.

    Args:
        machine: a key of `MACHINES`; None: the processor that this runs on.

    Raises:
        ConfigError: an unknown ``machine``.
    """
    check_machine(machine)
    return MACHINES[machine or this_machine()].get(format_name, REFERENCE)
