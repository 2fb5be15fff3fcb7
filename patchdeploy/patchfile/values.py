"""What a patch file holds, and the rules that its values keep.

In: the flat slot values of a task. Out: the same, checked against the base's `PatchLayout`;
head rows beyond the task's classes follow from `masked_head_rows`, so no file stores them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import ConfigError, HeadCapacityError, PatchFileError
from patchdeploy.graph import tied_values
from patchdeploy.patchfile.golden import Golden
from patchdeploy.quantize.model import QuantizedBase
from patchdeploy.slots import PatchValues

TASK_NAME = re.compile(r"[a-z0-9_-]{1,64}")
MASKED_BIAS = -131072
"""int32 bias of a masked row: with `masked_scale` its output is far below -128."""

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class PatchLayout:
    """The lengths of a base's flat arrays, and where its head lies in them.

    Attributes:
        rows: output channels of all convolutions; the length of weight_scale and bias.
        elements: int8 values of all patch-owned kernels.
        sites: activation sites.
        head_row: first of the head's ``head_capacity`` rows.
        head_element: first of the head's kernel elements, ``head_row_elements`` a row.
        head_input, head_output: activation sites of what the head reads and writes.
    """

    rows: int
    elements: int
    sites: int
    head_row: int
    head_capacity: int
    head_element: int
    head_row_elements: int
    head_input: int
    head_output: int

    def __post_init__(self) -> None:
        values = [getattr(self, one.name) for one in fields(self)]
        head_rows_end = self.head_row + self.head_capacity
        head_end = self.head_element + self.head_capacity * self.head_row_elements
        if (
            any(type(value) is not int or value < 0 for value in values)
            or self.head_capacity < 1
            or head_rows_end > self.rows
            or head_end > self.elements
            or max(self.head_input, self.head_output) >= self.sites
        ):
            raise ConfigError(
                f"patch layout {self} does not hold together; the head lies inside rows, elements "
                "and sites; take it from the base with patch_layout"
            )


def patch_layout(base: QuantizedBase) -> PatchLayout:
    """The layout that every patch of ``base`` follows."""
    layout = base.layout()
    ties = tied_values(base.graph)
    head = next(conv for conv in base.graph.convolutions() if conv.name == base.graph.head)
    return PatchLayout(
        rows=layout.rows,
        elements=layout.elements,
        sites=len(layout.sites),
        head_row=layout.row_start[head.name],
        head_capacity=base.head_capacity,
        head_element=layout.weight_start[head.name],
        head_row_elements=base.weights[head.name].size // base.head_capacity,
        head_input=layout.sites.index(ties[head.input]),
        head_output=layout.sites.index(ties[head.output]),
    )


@dataclass(frozen=True)
class PatchFile:
    """One task over one base.

    Attributes:
        task: 1 to 64 of a-z, 0-9, underscore and hyphen.
        classes: labels, in the order of the head's rows; at least 2.
        base_sha256: of the base's coding table (`patchfile.table.CodingTable.sha256`).
        values: by resolution in pixels; the arrays cover the whole head capacity.
        metrics: anything that JSON holds (accuracies, settings), for people.
        golden: inputs and scores of the self-test; None where there is none.
    """

    task: str
    classes: tuple[str, ...]
    base_sha256: str
    values: Mapping[int, PatchValues]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    golden: Golden | None = None


def masked_scale(x_scale: np.float32, y_scale: np.float32) -> np.float32:
    """weight_scale of a masked head row: float32(float32(y_scale / x_scale) / 256).

    The requantisation multiplier x_scale * weight_scale / y_scale is then 2^-8 up to rounding,
    and MASKED_BIAS = -2^17 requantises to -512: it saturates to -128 in every arithmetic.
    """
    with np.errstate(over="ignore", under="ignore"):  # check_patch refuses what comes of it
        ratio = np.float32(np.float32(y_scale) / np.float32(x_scale))
        return np.float32(ratio / np.float32(256))


def masked_head_rows(values: PatchValues, classes: int, layout: PatchLayout) -> PatchValues:
    """``values`` with the head rows from ``classes`` on masked out; new arrays."""
    scale = masked_scale(
        values.activation_scale[layout.head_input], values.activation_scale[layout.head_output]
    )
    rows, elements = padding_rows(classes, layout)
    weight_scale, bias = values.weight_scale.copy(), values.bias.copy()
    weights = values.weights.copy()
    weight_scale[rows], bias[rows], weights[elements] = scale, MASKED_BIAS, 0
    return PatchValues(
        weight_scale, bias, values.activation_scale, values.activation_zero_point, weights
    )


def padding_rows(classes: int, layout: PatchLayout) -> tuple[slice, slice]:
    """The head's rows from ``classes`` on, and their kernel elements, in the flat arrays."""
    rows = slice(layout.head_row + classes, layout.head_row + layout.head_capacity)
    first = layout.head_element + classes * layout.head_row_elements
    end = layout.head_element + layout.head_capacity * layout.head_row_elements
    return rows, slice(first, end)


def check_classes(task: str, classes: Sequence[str], head_capacity: int) -> None:
    """Check a task's name and labels.

    Raises:
        HeadCapacityError: more classes than ``head_capacity``.
        ConfigError: a name outside the rule, fewer than 2 labels, or a label twice.
    """
    if TASK_NAME.fullmatch(task) is None:
        raise ConfigError(
            f"task name {task!r}; it must be 1 to 64 of a-z, 0-9, underscore and hyphen; rename it"
        )
    if len(classes) > head_capacity:
        raise HeadCapacityError(
            f"task {task!r} has {len(classes)} classes; the exported head has {head_capacity} "
            "rows; export the base with a larger head capacity"
        )
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ConfigError(
            f"task {task!r} has {len(classes)} classes, {len(set(classes))} of them different; "
            "it must have at least 2, each once; correct the labels"
        )


def check_patch(patch: PatchFile, layout: PatchLayout) -> None:
    """Check every value of ``patch`` against what slots may take.

    Raises:
        PatchFileError: naming the task, the resolution, the array and the first bad value.
        HeadCapacityError: more classes than the head has rows.
        ConfigError: a task name or labels outside the rules.
    """
    check_classes(patch.task, patch.classes, layout.head_capacity)
    if not patch.values:
        raise PatchFileError(
            f"patch {patch.task!r} holds no resolution; it must hold at least one; export the task"
        )
    lengths = {
        "weight_scale": (layout.rows, np.float32),
        "bias": (layout.rows, np.int32),
        "activation_scale": (layout.sites, np.float32),
        "activation_zero_point": (layout.sites, np.int8),
        "weights": (layout.elements, np.int8),
    }
    for resolution, values in patch.values.items():
        for name, (length, dtype) in lengths.items():
            array = getattr(values, name)
            if array.shape != (length,) or array.dtype != dtype:
                raise PatchFileError(
                    f"patch {patch.task!r} at {resolution} px: {name} is {array.dtype} "
                    f"{array.shape}; over this base it must be {np.dtype(dtype)} {(length,)}; "
                    "export the task over this base"
                )
        _check_scales(patch.task, resolution, "weight_scale", values.weight_scale)
        check_activations(patch.task, resolution, values.activation_scale)
        if values.weights.size and values.weights.min() < -127:
            raise PatchFileError(
                f"patch {patch.task!r} at {resolution} px: weights[{values.weights.argmin()}] is "
                "-128; an int8 weight must lie in [-127, 127]; export the task again"
            )


def check_activations(task: str, resolution: int, scales: NDArray[np.float32]) -> None:
    """Check the activation scales alone (they decide the masked rows).

    Raises:
        PatchFileError: a scale that is not finite, positive and normal.
    """
    _check_scales(task, resolution, "activation_scale", scales)


def _check_scales(task: str, resolution: int, name: str, scales: NDArray[np.float32]) -> None:
    good = np.isfinite(scales) & (scales >= _SMALLEST_NORMAL)
    if not good.all():
        index = int(np.argmin(good))
        raise PatchFileError(
            f"patch {task!r} at {resolution} px: {name}[{index}] is {scales[index]!s}; a scale "
            "must be finite, positive and normal; export the task again"
        )
