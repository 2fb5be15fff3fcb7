"""Setting slots fast: what `slots.apply_values` does, prepared once for a table and a resolution.

In: a slot table and a resolution. Out: a `SlotPlan`: which run of which array goes to which bytes.
`apply_plan` then sets a task's slots without looking at a slot again. The bytes are those of
`apply_values`, which stays the definition: tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.slots import (
    SLOT_DTYPES,
    PatchValues,
    Slot,
    SlotTable,
    check_resolution,
    check_value_counts,
    slot_values,
    value_counts,
)

Run = tuple[slice, slice]
"""Bytes of the file, and the bytes of an array that go there."""
Source = tuple[str, str]
"""A slot's kind and dtype: what an array is made from, and how its elements are stored."""


@dataclass(frozen=True, eq=False)
class SlotPlan:
    """The slots that one resolution reads, in the order of the table.

    Attributes:
        runs: by source; a source's array is made once for all of its runs.
        x_index, rows: intp [n], for ``bias_scale``: element k of its array is
            activation_scale[x_index[k]] * weight_scale[rows[k]], rounded once to float32.
        weights: slots of kernels, whose layout may differ from the patch's.
        counts: elements that each array of `PatchValues` must have at least, by its name.
    """

    runs: Mapping[Source, tuple[Run, ...]]
    x_index: NDArray[np.intp]
    rows: NDArray[np.intp]
    weights: tuple[Slot, ...]
    counts: Mapping[str, int]


def plan_slots(table: SlotTable, resolution: int) -> SlotPlan:
    """The plan of ``table`` for ``resolution``, with the slots that every resolution shares.

    Raises:
        UnknownResolutionError: the file has no such signature.
    """
    check_resolution(table, resolution)
    slots = [slot for slot in table.slots if slot.resolution in (None, resolution)]
    runs: dict[Source, list[Run]] = {}
    derived = [slot for slot in slots if slot.kind == "bias_scale"]
    starts = dict(zip(derived, np.cumsum([0, *(slot.count for slot in derived)]), strict=False))
    for slot in slots:
        if slot.kind != "weight":
            first = int(starts.get(slot, slot.start)) * SLOT_DTYPES[slot.dtype].itemsize
            target = slice(slot.offset_bytes, slot.offset_bytes + slot.length_bytes)
            run = (target, slice(first, first + slot.length_bytes))
            runs.setdefault((slot.kind, slot.dtype), []).append(run)
    counts = [slot.count for slot in derived]
    return SlotPlan(
        runs={source: tuple(found) for source, found in runs.items()},
        x_index=np.repeat(np.array([slot.x_index for slot in derived], np.intp), counts),
        rows=np.concatenate(
            [np.arange(slot.start, slot.start + slot.count) for slot in derived]
            or [np.empty(0, np.intp)]
        ),
        weights=tuple(slot for slot in slots if slot.kind == "weight"),
        counts=value_counts(slots),
    )


def apply_plan(target: bytearray | memoryview, plan: SlotPlan, values: PatchValues) -> None:
    """Set the slots of ``plan`` in ``target``, a copy of the base file whose hash was checked.

    Raises:
        SlotTableError: an array is shorter than the slots that it fills; nothing is set then.
    """
    check_value_counts(plan.counts, values)
    view = memoryview(target)
    for source, runs in plan.runs.items():
        elements = source_array(source, plan, values).data.cast("B")
        for place, run in runs:
            view[place] = elements[run]
    for slot in plan.weights:
        kernel = np.ascontiguousarray(slot_values(slot, values))
        view[slot.offset_bytes : slot.offset_bytes + slot.length_bytes] = kernel.data.cast("B")


def source_array(source: Source, plan: SlotPlan, values: PatchValues) -> NDArray[Any]:
    """The whole array that the runs of ``source`` are taken from, in its stored dtype."""
    kind, dtype = source
    if kind == "bias_scale":
        scales = np.multiply(
            values.activation_scale[plan.x_index], values.weight_scale[plan.rows], dtype=np.float32
        )
        return np.ascontiguousarray(scales, SLOT_DTYPES[dtype])
    array: NDArray[Any] = getattr(values, kind)
    if kind == "activation_zero_point" and dtype == "u8":
        array = array.astype(np.int16) + 128
    return np.ascontiguousarray(array, SLOT_DTYPES[dtype])
