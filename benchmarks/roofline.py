"""What a device can do at most, and what a training step asks of it.

In: a device and a precision, or a step to call. Out: calls that measure peaks (a large matrix
product, a large copy), and a step's work: floating-point operations of its convolutions and matrix
products, and bytes that its operators read and write one by one. Operations over peak and bytes
over bandwidth are two times; the larger is the bound that no unfused program on the device passes.
Fused programs move fewer bytes, so compiled steps may come below the second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

MATMUL, COPY = "matrix product", "copy"


@dataclass(frozen=True)
class Peaks:
    """Measured.

    Attributes:
        flops_per_second: of a square matrix product of side ``side`` at ``precision``.
        bytes_per_second: read and written by a copy.
    """

    precision: str
    side: int
    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Work:
    """Of one step.

    Attributes:
        flops: of convolutions and matrix products, forward and backward; a multiply-add is two.
        moved_bytes: read and written by all operators, each on its own.
    """

    flops: float
    moved_bytes: float

    def bound_seconds(self, peaks: Peaks) -> dict[str, float]:
        """Least times by operations and by bytes."""
        return {
            "flops": self.flops / peaks.flops_per_second,
            "bytes": self.moved_bytes / peaks.bytes_per_second,
        }


def peak_calls(
    device: torch.device, precision: torch.dtype, quick: bool
) -> tuple[dict[str, Callable[[], None]], Callable[[float, float], Peaks]]:
    """(calls to time, by name: MATMUL and COPY; their seconds -> `Peaks`).

    To be timed in turn with the steps: on a machine that others use, peaks taken at another moment
    belong to another machine.
    """
    cuda = device.type == "cuda"
    side = 8192 if cuda else 512 if quick else 1024
    left, right = (torch.randn(side, side, device=device, dtype=precision) for _ in range(2))
    count = (1 << 30 if cuda else 1 << 25 if quick else 1 << 27) // 4
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)

    def multiply() -> None:
        torch.matmul(left, right)
        synchronize(device)

    def copy() -> None:
        target.copy_(source)
        synchronize(device)

    def peaks(matmul_seconds: float, copy_seconds: float) -> Peaks:
        name = str(precision).removeprefix("torch.")
        rates = (2.0 * side**3 / matmul_seconds, 2.0 * source.nbytes / copy_seconds)
        return Peaks(name, side, *rates)

    return {MATMUL: multiply, COPY: copy}, peaks


def measure_work(step: Callable[[], None]) -> Work:
    """Counted while ``step`` runs once."""
    counts = {torch.ops.aten.convolution_backward: count_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counts) as flops:
        step()
    with _CountBytes() as moved:
        step()
    return Work(float(flops.get_total_flops()), moved.total)


def count_convolution_backward(
    grad: torch.Size, _: Any, weight: torch.Size, *others: Any, **__: Any
) -> int:
    """As many operations as forward for each gradient that is wanted (inputs, weights).

    torch's own count takes a grouped convolution's weight gradient for a full one.
    """
    wanted = next(one for one in others if isinstance(one, list) and isinstance(one[0], bool))
    return 2 * grad.numel() * weight[1:].numel() * sum(wanted[:2])


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _CountBytes(TorchDispatchMode):
    """Bytes of the tensors that operators take and make; views and allocations move none."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or "empty" in func.name():
            return result
        seen: set[int] = set()
        for one in tree_leaves((args, kwargs, result)):
            if isinstance(one, Tensor) and id(one) not in seen:
                seen.add(id(one))
                self.total += one.numel() * one.element_size()
        return result
