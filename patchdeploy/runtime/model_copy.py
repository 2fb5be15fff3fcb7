"""A private copy of a base file whose slots are set again for every resident.

In: a base file whose hash was compared, its slot table, slot values. Out: a model's bytes. Every
slot that a resolution's signature reads is set each time, so nothing of an earlier task can be
read; copying the whole base for each load would cost more than setting its slots.
"""

from __future__ import annotations

from threading import Lock

from patchdeploy.slots import PatchValues, SlotTable, apply_values, select_view


class ModelCopy:
    """One base file in memory; thread-safe."""

    def __init__(self, base_file: bytes, table: SlotTable) -> None:
        self._data = bytearray(base_file)
        self._table = table
        self._lock = Lock()
        offsets = {edit.offset_bytes for edits in table.views.values() for edit in edits}
        self._whole = {offset: base_file[offset : offset + 4] for offset in sorted(offsets)}

    def render(self, values: PatchValues, resolution: int) -> bytes:
        """The model of one task at ``resolution``, with that signature alone in reach.

        Raises:
            UnknownResolutionError: the file has no such signature.
        """
        with self._lock:
            for offset, original in self._whole.items():
                self._data[offset : offset + 4] = original
            apply_values(self._data, self._table, {resolution: values})
            return bytes(select_view(self._data, self._table, resolution))
