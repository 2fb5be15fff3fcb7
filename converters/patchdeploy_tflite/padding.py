"""How a window's padding is written: as VALID, as SAME, or with a PAD before it.

In: the size of a value, a window and its padding. Out: a `WindowPadding` for both axes. TFLite
knows two schemes (schema.fbs, enum Padding): VALID pads nothing, SAME pads
``max((out - 1) * stride + span - in, 0)`` with the smaller half first. PyTorch's symmetric
padding of a stride-2 window over an even size is neither, so an explicit PAD goes before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from patchdeploy.graph import (
    Add,
    ChannelSelect,
    Concat,
    Conv2d,
    Graph,
    MaxPool,
    Padding,
)

Scheme = Literal["SAME", "VALID"]


@dataclass(frozen=True)
class WindowPadding:
    """``scheme`` of the operator, and what an explicit PAD adds (top, bottom, left, right)."""

    scheme: Scheme
    explicit: Padding = (0, 0, 0, 0)

    @property
    def needs_pad(self) -> bool:
        return any(self.explicit)


@dataclass(frozen=True)
class Axis:
    """One axis of a window: ``span`` is dilation * (kernel - 1) + 1, ``output`` the length made."""

    size: int
    output: int
    span: int
    stride: int
    before: int

    @property
    def after(self) -> int:
        """Padding at the end that the last window reads (torch may allow more, or less)."""
        return max(self.reach - self.size - self.before, 0)

    @property
    def reach(self) -> int:
        return (self.output - 1) * self.stride + self.span

    @property
    def is_valid(self) -> bool:
        fits = (self.size - self.span) // self.stride + 1 if self.size >= self.span else 0
        return self.before == 0 and fits == self.output

    @property
    def is_same(self) -> bool:
        total = max(self.reach - self.size, 0)
        return -(-self.size // self.stride) == self.output and total // 2 == self.before


def choose_padding(rows: Axis, columns: Axis) -> WindowPadding:
    """VALID where nothing is read beyond the border, SAME where its rule gives the same windows.

    The end padding is what the last window reads, not what the framework allowed: a PAD is never
    larger than needed, and a window of stride 1 stays SAME whatever the size.
    """
    if rows.is_valid and columns.is_valid:
        return WindowPadding("VALID")
    if rows.is_same and columns.is_same:
        return WindowPadding("SAME")
    return WindowPadding("VALID", (rows.before, rows.after, columns.before, columns.after))


def never_negative(graph: Graph) -> frozenset[str]:
    """Values that end in a ReLU, or are taken from such values only.

    Their codes are never below the zero point, whatever the patch, so a maximum over them may
    be padded with zeros: a PAD, which XNNPACK takes, where a PADV2 with -128 splits its graph.
    """
    found: set[str] = set()
    for operator in graph.operators:
        if isinstance(operator, Conv2d | Add):
            holds = operator.activation in ("relu", "relu6")
        else:
            copies = isinstance(operator, Concat | MaxPool | ChannelSelect)
            holds = copies and found.issuperset(operator.inputs)
        if holds:
            found.add(operator.output)
    return frozenset(found)
