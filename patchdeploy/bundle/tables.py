"""Whether a slot table fits the manifest and the base file that it lies with.

In: a table that holds together in itself, the manifest's resolutions and layout, the base file's
bytes. Out: nothing, or a SlotTableError. Why: a table decides which bytes of a model a patch sets;
one that reads outside of a patch, names another tensor than the one at its offset, or leaves
another signature in reach would run a wrong model.
"""

from __future__ import annotations

from patchdeploy_onnx import wire  # by module: it is half imported where it imports patchdeploy

from patchdeploy.coding.layout import PatchLayout
from patchdeploy.errors import SlotTableError
from patchdeploy.slots import Slot, SlotTable
from patchdeploy.slots_views import check_views

TFLITE, ONNX = "tflite", "onnx"


def check_fit(
    table: SlotTable, format_name: str, resolutions: tuple[int, ...], layout: PatchLayout
) -> None:
    """Check ``table`` of format ``format_name`` against the manifest's resolutions and layout.

    Raises:
        SlotTableError: naming the first thing that does not fit.
    """
    if table.runtime != format_name:
        raise SlotTableError(
            f"slot table of {format_name} is for {table.runtime!r}; it must be for the format that "
            "the manifest names; export the bundle again"
        )
    if table.resolutions not in ((), resolutions) or (format_name == TFLITE) != bool(
        table.resolutions
    ):
        raise SlotTableError(
            f"slot table of {format_name} has resolutions {list(table.resolutions)}; the bundle "
            f"has {list(resolutions)}, which a .tflite must have, and a .onnx free height and "
            "width; export the bundle again"
        )
    lengths = {"weight": layout.elements, "weight_scale": layout.rows, "bias": layout.rows}
    lengths |= {"bias_scale": layout.rows}
    for slot in table.slots:
        length = lengths.get(slot.kind, layout.sites)
        if slot.start + slot.count > length or slot.x_index >= layout.sites:
            raise SlotTableError(
                f"slot {slot.site[:80]!r} of {format_name} reads {slot.kind} {slot.start} to "
                f"{slot.start + slot.count} and activation site {slot.x_index}; a patch has "
                f"{length}, and {layout.sites} sites; export the bundle again"
            )


def check_base(data: bytes, table: SlotTable) -> None:
    """Check what ``table`` says of the base file ``data``, whose hash it is bound to.

    Raises:
        SlotTableError: a view or a name that is not the file's own.
        FileFormatError: the file cannot be read as far as that.
    """
    if table.runtime == TFLITE:
        check_views(data, table)
    elif table.views:
        raise SlotTableError(
            f"slot table of {table.runtime} has views; only a .tflite has; export the bundle again"
        )
    if table.runtime == ONNX:
        _check_names(data, table.slots)


def _check_names(data: bytes, slots: tuple[Slot, ...]) -> None:
    """A runtime may find a slot by its name: that must be the tensor at the slot's offset."""
    spans = wire.find_initializers(data)
    for slot in slots:
        span = spans.get(slot.name, wire.Span(-1, -1))
        if (span.start, span.length_bytes) != (slot.offset_bytes, slot.length_bytes):
            raise SlotTableError(
                f"slot {slot.site[:80]!r} of onnx names the initialiser {slot.name[:80]!r}, which "
                f"lies at bytes {span.start} to {span.end}; it must lie at the slot's "
                f"{slot.offset_bytes} to {slot.offset_bytes + slot.length_bytes}; export the "
                "bundle again"
            )
