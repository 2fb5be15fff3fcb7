"""Private copies of a base file, each with the slots of one task set.

In: a base file whose hash was compared, its slot table, slot values. Out: a model's bytes. Every
copy starts from the base file, so nothing of an earlier task is in it. Copying takes longer than
setting the slots: `restock` makes the copy that the next swap will need beforehand, on a thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from threading import Lock

from patchdeploy.slot_plan import SlotPlan, apply_plan, plan_slots
from patchdeploy.slots import PatchValues, SlotTable, check_resolution

FREE = 0
"""Stands for every resolution of a file whose height and width are free."""


class ModelCopy:
    """One base file in memory, the plans of its slots and a spare copy; thread-safe."""

    def __init__(self, base_file: bytes, table: SlotTable) -> None:
        self._base = base_file
        self._table = table
        self._plans: Mapping[int, SlotPlan] = {
            resolution: plan_slots(table, resolution) for resolution in table.resolutions or (FREE,)
        }
        self._lock = Lock()
        self._spare: BytesIO | None = None
        self._restocker = ThreadPoolExecutor(1, thread_name_prefix="patchdeploy-spare")

    def render(self, values: PatchValues, resolution: int) -> bytes:
        """The model of one task at ``resolution``, with that signature alone in reach.

        Raises:
            UnknownResolutionError: the file has no such signature.
            SlotTableError: ``values`` do not fill the slots.
        """
        check_resolution(self._table, resolution)
        plan = self._plans[resolution if self._table.resolutions else FREE]
        with self._lock:
            copy, self._spare = self._spare, None
        copy = copy or _writable(self._base)
        with copy.getbuffer() as view:
            apply_plan(view, plan, values)
            for edit in self._table.views.get(resolution, ()):
                place = slice(edit.offset_bytes, edit.offset_bytes + 4)
                view[place] = edit.value.to_bytes(4, "little")
        return copy.getvalue()

    def restock(self) -> None:
        """Make a spare copy on a thread unless there is one; it is memory of one base file."""
        self._restocker.submit(self._make_spare)

    def _make_spare(self) -> None:
        if self._spare is None:
            spare = _writable(self._base)
            with self._lock:
                self._spare = spare


def _writable(base_file: bytes) -> BytesIO:
    """A copy to write to; unlike a bytearray's, its value is bytes without one copy more."""
    copy = BytesIO(base_file)
    copy.getbuffer().release()  # until here it shares the bytes of ``base_file``
    return copy
