"""Slots: the places of a base file that a patch may set, and nothing else.

In: a base file, its slot table (written with it), the flat values of a task at a resolution.
Out: the patched file, byte-identical to exporting the task on its own. A slot table is bound
to its base file by SHA-256 and is the only place where offsets are kept: a patch carries
values in site order, so neither torch nor the graph is needed to apply one.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from patchdeploy.documents import DECIMAL, HEX64, HEX64_RULE, Field, parse_document
from patchdeploy.errors import IntegrityError, SlotTableError, UnknownResolutionError
from patchdeploy.storage import sha256_hex

SlotKind = Literal[
    "weight", "weight_scale", "bias", "bias_scale", "activation_scale", "activation_zero_point"
]
SLOT_KINDS: dict[str, frozenset[str]] = {
    "weight": frozenset(("i8", "u8")),
    "weight_scale": frozenset(("f32",)),
    "bias": frozenset(("i32",)),
    "bias_scale": frozenset(("f32",)),
    "activation_scale": frozenset(("f32",)),
    "activation_zero_point": frozenset(("i8", "u8", "i32", "i64")),
}
"""The dtypes that each kind may be stored as."""
SLOT_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "i32": np.dtype("<i4"),
    "i64": np.dtype("<i8"),
    "i8": np.dtype("i1"),
    "u8": np.dtype("u1"),
}
WEIGHT_LAYOUTS: dict[str, tuple[int, int, int, int]] = {
    "ohwi": (0, 1, 2, 3),
    "1hwo": (3, 1, 2, 0),
    "oihw": (0, 3, 1, 2),
}
FORMAT = 1
MAX_TABLE_BYTES = 16 << 20
MAX_BASE_BYTES = 1 << 30
MAX_SLOTS = 65_536
MAX_COUNT = 2**31 - 1
"""Elements of a patch's array."""
MAX_SIDES, MAX_SIDE_PX = 16, 4096
"""Resolutions of a base file, as in a patch's header."""
MAX_EDITS = 64
MAX_NAME = 4096
_NAME = re.compile(r"[a-z0-9_-]{1,32}")


@dataclass(frozen=True)
class PatchValues:
    """One task at one resolution as flat arrays, in the base's site order.

    Attributes:
        weight_scale: float32 [rows], the output channels of every convolution in graph order.
        bias: int32 [rows], in the same order.
        activation_scale: float32 [activation sites], positive and normal.
        activation_zero_point: int8 [activation sites].
        weights: int8 [n], the patch-owned kernels [O, kh, kw, I/groups], one after the other.
    """

    weight_scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    activation_scale: NDArray[np.float32]
    activation_zero_point: NDArray[np.int8]
    weights: NDArray[np.int8]


@dataclass(frozen=True)
class Slot:
    """One run of bytes in the base file.

    Attributes:
        site: a convolution's name or an activation site's, for people and messages.
        kind: which values of `PatchValues` the bytes hold. ``bias_scale`` is derived:
            activation_scale[x_index] * weight_scale, rounded once to float32.
        resolution: the signature that reads it; None where every resolution shares the slot.
        offset_bytes: from the start of the file.
        start, count: the run of elements in the array that ``kind`` names.
        dtype: a key of SLOT_DTYPES, little-endian; a ``u8`` zero point or kernel is the int8 one
            plus 128.
        x_index: for ``bias_scale``, the activation site of the convolution's input; else -1.
        layout, shape: for ``weight``, a key of WEIGHT_LAYOUTS and [O, kh, kw, I/groups]; else
            empty.
        name: the runtime's own name, where it overrides by name (an ONNX initialiser).
    """

    site: str
    kind: SlotKind
    resolution: int | None
    offset_bytes: int
    start: int
    count: int
    dtype: str
    x_index: int = -1
    layout: str = ""
    shape: tuple[int, ...] = ()
    name: str = ""

    @property
    def length_bytes(self) -> int:
        return self.count * SLOT_DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Edit:
    """A little-endian uint32 to set at an offset: see ``SlotTable.views``."""

    offset_bytes: int
    value: int


@dataclass(frozen=True)
class SlotTable:
    """Every slot of one base file.

    Attributes:
        runtime: the converter's name, "tflite" or "onnx".
        base_sha256: of the base file's bytes.
        base_bytes: its length.
        resolutions: the signatures in the file; empty where height and width are free.
        slots: sorted by offset, inside the file, without overlap.
        views: per resolution, edits that leave only that resolution's signature reachable, so
            that a runtime packs one subgraph instead of all (empty where there is no need).
    """

    runtime: str
    base_sha256: str
    base_bytes: int
    resolutions: tuple[int, ...]
    slots: tuple[Slot, ...]
    views: Mapping[int, tuple[Edit, ...]]

    def to_json(self) -> bytes:
        """Canonical JSON: one row a slot, columns named once."""
        document = {
            "format": FORMAT,
            "runtime": self.runtime,
            "base_sha256": self.base_sha256,
            "base_bytes": self.base_bytes,
            "resolutions": list(self.resolutions),
            "slot_fields": _SLOT_FIELDS,
            "slots": [list(astuple(slot)) for slot in self.slots],
            "views": {
                str(resolution): [list(astuple(edit)) for edit in edits]
                for resolution, edits in self.views.items()
            },
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SlotTable:
        """Parse and check a slot table.

        Raises:
            SlotTableError: truncated, an unknown key, a value of another type or out of its
                range, or slots and views that leave the file or overlap; it names the field.
        """
        table = _parse_table(
            parse_document(data, "slot table", MAX_TABLE_BYTES, SlotTableError, most_depth=4)
        )
        check_table(table)
        return table


_SLOT_FIELDS = [field.name for field in fields(Slot)]
_TYPES: dict[str, type] = {
    "site": str,
    "kind": str,
    "resolution": int,
    "offset_bytes": int,
    "start": int,
    "count": int,
    "dtype": str,
    "x_index": int,
    "layout": str,
    "shape": list,
    "name": str,
}
_KEYS = ("format", "runtime", "base_sha256", "base_bytes", "resolutions") + (
    "slot_fields",
    "slots",
    "views",
)


def _parse_table(document: Field) -> SlotTable:
    if type(document.value) is dict and document.value.get("format") != FORMAT:
        raise SlotTableError(
            f"slot table has format {document.value.get('format')!r:.80}; this version reads "
            f"format {FORMAT}; export the base again or upgrade patchdeploy"
        )
    body = document.keys(_KEYS)
    body["format"].integer(FORMAT, FORMAT)
    if body["slot_fields"].value != _SLOT_FIELDS:
        body["slot_fields"].refuse(f"{', '.join(_SLOT_FIELDS)}, in this order")
    length = body["base_bytes"].integer(1, MAX_BASE_BYTES)
    sides = [px.integer(1, MAX_SIDE_PX) for px in body["resolutions"].items(MAX_SIDES)]
    return SlotTable(
        runtime=body["runtime"].text(_NAME, "1 to 32 of a-z, 0-9, underscore and hyphen"),
        base_sha256=body["base_sha256"].text(HEX64, HEX64_RULE),
        base_bytes=length,
        resolutions=tuple(sides),
        slots=tuple(_parse_slot(row) for row in body["slots"].items(MAX_SLOTS)),
        views=_parse_views(body["views"], length),
    )


def _parse_slot(row: Field) -> Slot:
    """A slot whose values have their types; `check_table` has the ranges."""
    values = row.value
    if type(values) is not list or len(values) != len(_SLOT_FIELDS):
        row.refuse(f"a list of {len(_SLOT_FIELDS)} values")
    for name, value in zip(_SLOT_FIELDS, values, strict=True):
        if type(value) is not _TYPES[name] and not (name == "resolution" and value is None):
            rule = {int: "an integer", str: "a text", list: "a list"}[_TYPES[name]]
            Field(value, f"{row.name}, {name}", row.error).refuse(rule)
    if max(len(value) for value in values if type(value) is str) > MAX_NAME:
        row.refuse(f"of texts of at most {MAX_NAME} characters")
    found: dict[str, Any] = dict(zip(_SLOT_FIELDS, values, strict=True))
    shape = found["shape"]
    if len(shape) not in (0, 4) or any(type(one) is not int for one in shape):
        Field(shape, f"{row.name}, shape", row.error).refuse("empty or four integers")
    return Slot(**{**found, "shape": tuple(shape)})


def _parse_views(document: Field, base_bytes: int) -> dict[int, tuple[Edit, ...]]:
    views = {}
    for px, edits in document.table(DECIMAL, "a side in pixels", most=MAX_SIDES).items():
        pairs = [edit.items(2, least=2) for edit in edits.items(MAX_EDITS)]
        views[int(px)] = tuple(
            Edit(offset.integer(0, base_bytes - 4), word.integer(0, 2**32 - 1))
            for offset, word in pairs
        )
    return views


def check_table(table: SlotTable) -> None:
    """Check that slots are known, sorted, inside the file and do not overlap, and likewise views.

    Raises:
        SlotTableError: naming the first slot or view that breaks a rule.
    """
    if list(table.resolutions) != sorted(set(table.resolutions)):
        raise SlotTableError(
            f"slot table has resolutions {list(table.resolutions)}; they must be ascending, each "
            "once; export the base again"
        )
    end = 0
    for index, slot in enumerate(table.slots):
        if not _is_known(slot, table.resolutions):
            raise SlotTableError(
                f"slot {index} ({slot.site[:80]!r}, kind {slot.kind[:40]!r}, dtype "
                f"{slot.dtype[:40]!r}, resolution {slot.resolution!r}) is not one this version "
                "knows; export the base again or upgrade patchdeploy"
            )
        if slot.offset_bytes < end or slot.offset_bytes + slot.length_bytes > table.base_bytes:
            raise SlotTableError(
                f"slot {index} ({slot.site[:80]!r}) covers bytes {slot.offset_bytes} to "
                f"{slot.offset_bytes + slot.length_bytes}; slots lie in order, apart, inside the "
                f"{table.base_bytes} bytes of the base file; export the base again"
            )
        end = slot.offset_bytes + slot.length_bytes
    _check_views(table)


def _is_known(slot: Slot, resolutions: tuple[int, ...]) -> bool:
    """Whether a slot's own values hold together."""
    whole = (slot.offset_bytes, slot.start, slot.count, slot.x_index, *slot.shape)
    if slot.dtype not in SLOT_KINDS.get(slot.kind, ()) or any(type(k) is not int for k in whole):
        return False
    if slot.kind == "weight":
        sides = slot.layout in WEIGHT_LAYOUTS and len(slot.shape) == 4 and min(slot.shape) > 0
        shaped = sides and math.prod(slot.shape) == slot.count
    else:
        shaped = slot.layout == "" and slot.shape == ()
    least, most = (0, MAX_COUNT) if slot.kind == "bias_scale" else (-1, -1)
    numbers = least <= slot.x_index <= most and slot.offset_bytes >= 0
    run = slot.start >= 0 and slot.count >= 1 and slot.start + slot.count <= MAX_COUNT
    return shaped and numbers and run and slot.resolution in (None, *resolutions)


def _check_views(table: SlotTable) -> None:
    """Views are of resolutions that the file has, and each word of one is apart from the others
    and from every slot."""
    slots = [(slot.offset_bytes, slot.offset_bytes + slot.length_bytes) for slot in table.slots]
    starts = [start for start, _ in slots]
    for px, edits in table.views.items():
        if px not in table.resolutions:
            raise SlotTableError(
                f"slot table has a view of {px} px; its base file has "
                f"{', '.join(map(str, table.resolutions)) or 'none'}; export the base again"
            )
        end = 0
        for edit in sorted(edits, key=lambda one: one.offset_bytes):
            first, last = edit.offset_bytes, edit.offset_bytes + 4
            before = bisect_left(starts, last) - 1
            if first < end or last > table.base_bytes or (before >= 0 and slots[before][1] > first):
                raise SlotTableError(
                    f"a view of {px} px edits bytes {first} to {last}; its words must lie apart, "
                    f"outside of slots, inside the {table.base_bytes} bytes of the base file; "
                    "export the base again"
                )
            end = last


def check_resolution(table: SlotTable, resolution: int) -> None:
    """Check that ``table``'s file can run at ``resolution``.

    Raises:
        UnknownResolutionError: it has no such signature.
    """
    if table.resolutions and resolution not in table.resolutions:
        raise UnknownResolutionError(
            f"resolution {resolution} px is not in this base file, which has "
            f"{', '.join(map(str, table.resolutions))}; choose one of them or export again"
        )


def value_counts(slots: Iterable[Slot]) -> dict[str, int]:
    """Elements that each array of `PatchValues` must have at least to fill ``slots``, by name."""
    counts = {field.name: 0 for field in fields(PatchValues)}
    for slot in slots:
        name = {"weight": "weights", "bias_scale": "weight_scale"}.get(slot.kind, slot.kind)
        counts[name] = max(counts[name], slot.start + slot.count)
        counts["activation_scale"] = max(counts["activation_scale"], slot.x_index + 1)
    return counts


def check_value_counts(counts: Mapping[str, int], values: PatchValues) -> None:
    """Check that ``values`` fill every slot.

    Raises:
        SlotTableError: naming the array that is too short.
    """
    for name, count in counts.items():
        found = len(getattr(values, name))
        if found < count:
            raise SlotTableError(
                f"the slot table sets {count} elements of {name}; the values have {found}; use "
                "the slot table and the patch of one bundle"
            )


def slot_values(slot: Slot, values: PatchValues) -> NDArray[Any]:
    """The elements of ``values`` for ``slot``, flat, in the slot's dtype and layout."""
    run = slice(slot.start, slot.start + slot.count)
    dtype = SLOT_DTYPES[slot.dtype]
    if slot.kind == "weight":
        kernel = values.weights[run].reshape(slot.shape)
        flat: NDArray[Any] = kernel.transpose(WEIGHT_LAYOUTS[slot.layout]).reshape(-1)
        return flat.view(np.uint8) ^ np.uint8(128) if slot.dtype == "u8" else flat
    if slot.kind == "weight_scale":
        return values.weight_scale[run].astype(dtype, copy=False)
    if slot.kind == "bias":
        return values.bias[run].astype(dtype, copy=False)
    if slot.kind == "bias_scale":
        x_scale = values.activation_scale[slot.x_index]
        scales: NDArray[Any] = np.multiply(x_scale, values.weight_scale[run], dtype=np.float32)
        return scales
    if slot.kind == "activation_scale":
        return values.activation_scale[run].astype(dtype, copy=False)
    shift = 128 if slot.dtype == "u8" else 0
    zero_points: NDArray[Any] = values.activation_zero_point[run].astype(np.int64) + shift
    return zero_points.astype(dtype)


def overlay(
    base_file: bytes | memoryview, table: SlotTable, variants: Mapping[int, PatchValues]
) -> bytearray:
    """A copy of ``base_file`` with the slots of every resolution in ``variants`` set.

    A slot that every resolution shares is set from the first variant. A table without
    resolutions (free height and width) takes exactly one variant, under any key.

    Raises:
        IntegrityError: the base file is not the one that the table is bound to.
        UnknownResolutionError: a variant's resolution has no signature in the file.
    """
    digest = sha256_hex(base_file)
    if digest != table.base_sha256:
        raise IntegrityError(
            f"base file has SHA-256 {digest}; its slot table is bound to {table.base_sha256}; "
            "restore the base file that the table was exported with"
        )
    return apply_values(bytearray(base_file), table, variants)


def apply_values(
    target: bytearray, table: SlotTable, variants: Mapping[int, PatchValues]
) -> bytearray:
    """Set slots in ``target``, a copy of a base file whose hash was checked; returns it.

    Raises:
        UnknownResolutionError: a variant's resolution has no signature in the file.
        SlotTableError: an array is shorter than the slots that it fills; nothing is set then.
    """
    first = next(iter(variants.values()))
    for resolution in variants:
        check_resolution(table, resolution)
    counts = value_counts(table.slots)
    for values in variants.values():
        check_value_counts(counts, values)
    for slot in table.slots:
        chosen = first if slot.resolution is None else variants.get(slot.resolution)
        if chosen is not None:
            end = slot.offset_bytes + slot.length_bytes
            target[slot.offset_bytes : end] = slot_values(slot, chosen).tobytes()
    return target


def select_view(target: bytearray, table: SlotTable, resolution: int) -> bytearray:
    """Leave only ``resolution``'s signature reachable in ``target``; returns it.

    Raises:
        UnknownResolutionError: the file has no such signature.
    """
    check_resolution(table, resolution)
    for edit in table.views.get(resolution, ()):
        target[edit.offset_bytes : edit.offset_bytes + 4] = edit.value.to_bytes(4, "little")
    return target
