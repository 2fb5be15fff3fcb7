"""What a patch file holds, and the rules that its values keep.

In: the flat slot values of a task. Out: the same, checked against the base's `PatchLayout`;
head rows beyond the task's classes follow from `masked_head_rows`, so no file stores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.cascade import Cascade
from patchdeploy.coding.layout import PatchLayout
from patchdeploy.errors import HeadCapacityError, PatchFileError
from patchdeploy.patchfile.golden import Golden
from patchdeploy.slots import PatchValues
from patchdeploy.task_names import TASK_NAME as TASK_NAME
from patchdeploy.task_names import check_labels, check_task_name

_SMALLEST_NORMAL = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class PatchFile:
    """One task over one base.

    Attributes:
        task: 1 to 64 of a-z, 0-9, underscore and hyphen.
        classes: labels, in the order of the head's rows; at least 2.
        base_sha256: of the base's coding table (`coding.table.CodingTable.sha256`).
        values: by resolution in pixels; the arrays cover the whole head capacity.
        metrics: anything that JSON holds (accuracies, settings), for people.
        golden: inputs and scores of the self-test; None where there is none.
        cascade: over its resolutions; None where none was fitted.
    """

    task: str
    classes: tuple[str, ...]
    base_sha256: str
    values: Mapping[int, PatchValues]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    golden: Golden | None = None
    cascade: Cascade | None = None


def check_classes(task: str, classes: Sequence[str], head_capacity: int) -> None:
    """Check a task's name and labels.

    Raises:
        HeadCapacityError: more classes than ``head_capacity``.
        ConfigError: see `check_task_name` and `check_labels`.
    """
    check_task_name(task)
    if len(classes) > head_capacity:
        raise HeadCapacityError(
            f"task {task!r} has {len(classes)} classes; the exported head has {head_capacity} "
            "rows; export the base with a larger head capacity"
        )
    check_labels(task, classes)


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
