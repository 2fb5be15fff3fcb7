"""The coding table: what a patch file is coded against, one file per base for every runtime.

In: the bytes of ``base.coding``, which ship with the base. Out: a `CodingTable`: where every
convolution and activation site lies in the flat arrays, and the base's own scales, betas and
kernels. A patch names the table by its SHA-256 and sets its slots by index; it carries no offset,
no tensor name and no path. Reading it needs neither torch nor the graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from patchdeploy.coding.layout import PatchLayout
from patchdeploy.documents import HEX64, HEX64_RULE, Field
from patchdeploy.errors import ConfigError, FileFormatError
from patchdeploy.storage import sha256_hex

FORMAT = 1
_METADATA_KEY = "patchdeploy"
_SMALLEST_NORMAL = np.finfo(np.float32).tiny
_MOST = 2**31


@dataclass(frozen=True)
class CodedConv:
    """One convolution, in graph order; its rows follow those of the one before.

    Attributes:
        name: of the site, for people.
        rows: output channels.
        taps: kernel elements of one row.
        x_index, y_index: activation sites that it reads and writes.
        owned: the kernel is the task's: its elements follow those of the owned one before.
    """

    name: str
    rows: int
    taps: int
    x_index: int
    y_index: int
    owned: bool


@dataclass(frozen=True, eq=False)
class CodingTable:
    """What patches of one base are coded against.

    Slots are numbered: the activation sites, then the rows of each convolution, then the kernel of
    each convolution that tasks own.

    Attributes:
        reference_sha256: of the base's reference file, for people and `verify`.
        layout: lengths of the flat arrays.
        output_index: activation site of the scores, as integers.
        convs: in graph order.
        scale: float32 [rows], the base's own weight_scale; positive and normal.
        beta: float32 [rows], the base's own shift.
        slope: float32 [rows]: a row's real bias is beta + slope * weight_scale.
        kernels: int8 [elements], the base's own kernels where tasks own them; 0 for the head.
    """

    reference_sha256: str
    layout: PatchLayout
    output_index: int
    convs: tuple[CodedConv, ...]
    scale: NDArray[np.float32]
    beta: NDArray[np.float32]
    slope: NDArray[np.float32]
    kernels: NDArray[np.int8]

    @property
    def slot_count(self) -> int:
        """Slots that a patch sets, by index."""
        return self.layout.sites + len(self.convs) + sum(conv.owned for conv in self.convs)

    @cached_property
    def row_conv(self) -> NDArray[np.intp]:
        """intp [rows]: which convolution each row belongs to."""
        return np.repeat(np.arange(len(self.convs)), [conv.rows for conv in self.convs])

    @cached_property
    def encoded(self) -> bytes:
        """The file; the same table gives the same bytes. One that was read keeps its own."""
        document = {
            "format": FORMAT,
            "reference_sha256": self.reference_sha256,
            "layout": asdict(self.layout),
            "output_index": self.output_index,
            "conv_fields": _CONV_FIELDS,
            "convs": [list(astuple(conv)) for conv in self.convs],
        }
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return save(arrays, {_METADATA_KEY: text})

    @cached_property
    def sha256(self) -> str:
        """The name that patches know the base by: SHA-256 of `encoded`."""
        return sha256_hex(self.encoded)

    @property
    def length_bytes(self) -> int:
        """Length of `encoded`."""
        return len(self.encoded)

    @classmethod
    def from_bytes(cls, data: bytes) -> CodingTable:
        """Parse and check a table.

        Raises:
            FileFormatError: truncated, of another format, or parts that do not fit each other.
        """
        try:
            arrays = load(data)
            length = int.from_bytes(data[:8], "little")
            document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA_KEY])
            table = _parse(document, arrays)
        except FileFormatError:
            raise
        except (
            SafetensorError,
            ConfigError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise FileFormatError(
                f"coding table of {len(data)} bytes does not parse ({error}); it must be the whole "
                "base.coding of a bundle; copy it again or export the base again"
            ) from error
        table.__dict__["encoded"] = bytes(data)  # patches name these bytes, whoever wrote them
        return table


_CONV_FIELDS = [field.name for field in fields(CodedConv)]
_ARRAYS: dict[str, np.dtype[Any]] = {
    "scale": np.dtype("<f4"),
    "beta": np.dtype("<f4"),
    "slope": np.dtype("<f4"),
    "kernels": np.dtype("i1"),
}


def _parse(document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> CodingTable:
    keys = {"format", "reference_sha256", "layout", "output_index", "conv_fields", "convs"}
    if (
        type(document["format"]) is not int
        or document["format"] != FORMAT
        or set(document) != keys
        or document["conv_fields"] != _CONV_FIELDS
    ):
        raise FileFormatError(
            f"coding table has format {document['format']!r} and keys {sorted(document)}; this "
            f"version reads format {FORMAT} with {sorted(keys)}; export the base again or upgrade "
            "patchdeploy"
        )
    if set(arrays) != set(_ARRAYS):
        raise FileFormatError(
            f"coding table has arrays {sorted(arrays)}; it must have {sorted(_ARRAYS)}; export the "
            "base again"
        )
    table = CodingTable(
        reference_sha256=Field(document["reference_sha256"], "coding table: reference_sha256").text(
            HEX64, HEX64_RULE
        ),
        layout=PatchLayout(**document["layout"]),
        output_index=document["output_index"],
        convs=tuple(
            CodedConv(**dict(zip(_CONV_FIELDS, row, strict=True))) for row in document["convs"]
        ),
        scale=arrays["scale"],
        beta=arrays["beta"],
        slope=arrays["slope"],
        kernels=arrays["kernels"],
    )
    _check(table)
    return table


def _check(table: CodingTable) -> None:
    """Lengths agree and every reference is a value that decoding can start from."""
    layout = table.layout
    lengths = {"scale": layout.rows, "beta": layout.rows, "slope": layout.rows}
    lengths["kernels"] = layout.elements
    for name, length in lengths.items():
        array = getattr(table, name)
        if array.shape != (length,) or array.dtype != _ARRAYS[name]:
            raise FileFormatError(
                f"coding table: {name} is {array.dtype} {array.shape}; it must be {_ARRAYS[name]} "
                f"{(length,)}; export the base again"
            )
    for conv in table.convs:
        if not _is_sound(conv, layout.sites):
            raise FileFormatError(
                f"coding table: convolution {conv} does not fit {layout.sites} activation sites; "
                "export the base again"
            )
    if type(table.output_index) is not int or not 0 <= table.output_index < layout.sites:
        raise FileFormatError(
            f"coding table: output_index is {table.output_index!r}; it must be one of "
            f"{layout.sites} activation sites; export the base again"
        )
    rows = sum(conv.rows for conv in table.convs)
    elements = sum(conv.rows * conv.taps for conv in table.convs if conv.owned)
    if (rows, elements) != (layout.rows, layout.elements):
        raise FileFormatError(
            f"coding table: its convolutions have {rows} rows and {elements} owned elements; its "
            f"layout says {layout.rows} and {layout.elements}; export the base again"
        )
    if _head_places(layout) not in _owned_places(table.convs):
        raise FileFormatError(
            f"coding table: none of its convolutions is the head of {layout}; export the base again"
        )
    finite = np.isfinite(table.beta).all() and np.isfinite(table.slope).all()
    normal = np.isfinite(table.scale) & (table.scale >= _SMALLEST_NORMAL)
    if not finite or not normal.all():
        raise FileFormatError(
            "coding table: a reference is NaN, infinite, or a scale that is not positive and "
            "normal; export the base again"
        )


def _is_sound(conv: CodedConv, sites: int) -> bool:
    numbers = (conv.rows, conv.taps, conv.x_index, conv.y_index)
    if not all(type(one) is int and 0 <= one < _MOST for one in numbers):
        return False
    inside = min(conv.rows, conv.taps) >= 1 and max(conv.x_index, conv.y_index) < sites
    return inside and type(conv.owned) is bool and type(conv.name) is str


def _head_places(layout: PatchLayout) -> tuple[int, ...]:
    """First row, rows, first element, elements of a row, and the sites of the head."""
    rows = (layout.head_row, layout.head_capacity)
    elements = (layout.head_element, layout.head_row_elements)
    return (*rows, *elements, layout.head_input, layout.head_output)


def _owned_places(convs: Sequence[CodedConv]) -> list[tuple[int, ...]]:
    """The same of every convolution whose kernel tasks own."""
    places: list[tuple[int, ...]] = []
    row = element = 0
    for conv in convs:
        if conv.owned:
            places.append((row, conv.rows, element, conv.taps, conv.x_index, conv.y_index))
            element += conv.rows * conv.taps
        row += conv.rows
    return places
