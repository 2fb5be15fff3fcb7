"""The payload of a patch file: what each of its parts holds.

In: a `PatchFile` and the base's `CodingTable`. Out: bytes, and back a checked `PatchFile`. The
header and the table say how long each part may be before a byte is inflated. A part holds its
resolutions one after the other, the first one first.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.decode import PatchCodes, ResolutionCodes, decode_values
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodingSteps, check_steps
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import ConfigError, UnknownResolutionError
from patchdeploy.patchfile.cascade_part import MAX_BYTES as MAX_CASCADE_BYTES
from patchdeploy.patchfile.cascade_part import cascade_bytes, read_cascade
from patchdeploy.patchfile.golden import (
    MAX_IMAGES,
    Golden,
    check_work,
    golden_bytes,
    golden_length,
    read_golden,
)
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.parts import (
    MAX_PLANES,
    OPTIONAL_PARTS,
    PARTS,
    Int64Array,
    pack_part,
    pack_planes,
    read_parts,
    read_planes,
    refuse,
)
from patchdeploy.patchfile.values import PatchFile, check_patch
from patchdeploy.task_names import MAX_TEXT_BYTES, encode_labels

MAX_NOTES_BYTES = 1 << 18
"""Of the notes: as JSON objects they can take thirty times as much memory."""
MAX_LEVELS = 32
"""Objects and lists inside each other in the notes."""


@dataclass(frozen=True)
class CodedPatch:
    """A patch as its readers will see it.

    Attributes:
        patch: with the DECODED values: what accuracy is to be measured on.
        payload: the bytes.
        part_bytes: length of each part as it stands in the payload, its prefix included.
    """

    patch: PatchFile
    payload: bytes
    part_bytes: Mapping[str, int]


def encode_payload(
    patch: PatchFile,
    table: CodingTable,
    steps: CodingSteps,
    runtimes: Sequence[str] = (),
    make_golden: Callable[[PatchFile], Golden] | None = None,
) -> CodedPatch:
    """Code every resolution of ``patch``, the largest first: the others are coded against it.

    Args:
        runtimes: those that the header's results will name.
        make_golden: makes the self-test from the decoded patch; by default ``patch.golden``, made
            from decoded values, is kept.

    Raises:
        PatchFileError, HeadCapacityError, ConfigError: see `check_patch`; metrics or labels that
            no file can hold.
        PatchRefusedError: code "values": a value that no patch file may hold; "work": more images
            in its self-test than these resolutions allow.
    """
    check_patch(patch, table.layout)
    check_steps(steps, table)
    sides = sorted(patch.values, reverse=True)
    ordered = {px: patch.values[px] for px in sides}
    codes = encode_values(ordered, len(patch.classes), table, steps)
    decoded = replace(patch, values=decode_values(codes, table))
    if make_golden is not None:
        decoded = replace(decoded, golden=make_golden(decoded))
    check_work(0 if decoded.golden is None else len(decoded.golden.thumbnails), sides)
    contents = {
        "labels": _label_bytes(patch.classes),
        "notes": _notes_bytes(patch.task, patch.metrics),
        "steps": _steps_bytes(steps),
        **_code_bytes(list(codes.resolutions.values())),
        "golden": golden_bytes(decoded.golden, runtimes, sides, len(patch.classes)),
    }
    numbers = {name: number for number, name in enumerate(PARTS)}
    if patch.cascade is not None:
        numbers |= {name: number for number, name in OPTIONAL_PARTS.items()}
        contents["cascade"] = cascade_bytes(patch.cascade, sides)
    parts = {name: pack_part(number, contents[name]) for name, number in numbers.items()}
    return CodedPatch(
        decoded, b"".join(parts.values()), {name: len(one) for name, one in parts.items()}
    )


def decode_payload(
    payload: bytes | memoryview,
    header: PatchHeader,
    table: CodingTable,
    resolution: int | None = None,
) -> PatchFile:
    """The patch in ``payload``, which belongs to ``header``; every value checked.

    Args:
        resolution: decode this one alone, which is faster; by default all.

    Raises:
        PatchRefusedError: codes "sites", "inflate", "parts", "work", "values".
        UnknownResolutionError: ``resolution`` is not in it.
    """
    if resolution is not None and resolution not in header.resolutions:
        raise UnknownResolutionError(
            f"patch {header.task!r} holds no {resolution} px; it has "
            f"{', '.join(map(str, sorted(header.resolutions)))}; choose one of them or export the "
            "task again"
        )
    _check_sites(header, table)
    runtimes, sides, classes = tuple(header.results), header.resolutions, header.classes
    lengths = _Lengths.of(len(sides), classes, table)
    contents = read_parts(payload, lengths.most_bytes(len(runtimes)), header.has_optional_parts)
    labels = _read_labels(bytes(contents["labels"]), classes)
    notes = _read_notes(bytes(contents["notes"]))
    steps = _read_steps(bytes(contents["steps"]), lengths)
    codes = PatchCodes(steps, classes, _read_codes(contents, sides, lengths))
    golden = read_golden(bytes(contents["golden"]), runtimes, sides, classes)
    cascade = None
    if "cascade" in contents:
        cascade = read_cascade(bytes(contents["cascade"]), sides)
    check_work(0 if golden is None else len(golden.thumbnails), sides)
    check_steps(steps, table)
    values = decode_values(codes, table, resolution)
    return PatchFile(header.task, labels, header.base_sha256, values, notes, golden, cascade)


def read_steps(payload: bytes | memoryview, header: PatchHeader, table: CodingTable) -> CodingSteps:
    """How coarsely the values of ``payload`` are coded; for one that `decode_payload` takes.

    Raises:
        PatchRefusedError: codes "inflate", "parts".
    """
    lengths = _Lengths.of(len(header.resolutions), header.classes, table)
    most_bytes = lengths.most_bytes(len(header.results))
    contents = read_parts(payload, most_bytes, header.has_optional_parts)
    return _read_steps(bytes(contents["steps"]), lengths)


def all_sites(table: CodingTable) -> tuple[tuple[int, int], ...]:
    """The runs of slots that a whole patch sets: one run, all of them."""
    return ((0, table.slot_count),)


def _check_sites(header: PatchHeader, table: CodingTable) -> None:
    """A base file holds no task's values, so a patch must set every slot and no other."""
    if header.sites != all_sites(table):
        whole = f"[[0,{table.slot_count}]]: every slot of this base"
        raise refuse("sites", "sites", whole, [list(run) for run in header.sites[:4]])
    if header.classes > table.layout.head_capacity:
        rows = f"at most {table.layout.head_capacity}, the head's rows in this base"
        raise refuse("sites", "classes", rows, header.classes)


@dataclass(frozen=True)
class _Lengths:
    """How many values the parts hold, all resolutions together.

    Attributes:
        sides: resolutions.
        classes: of the task.
        convs: convolutions.
        rows: less the head's spare ones.
        sites: activation sites.
        kernels: int8 values of owned kernels, less the head's.
        head: int8 values of the head's kernel, less the spare rows'.
    """

    sides: int
    classes: int
    convs: int
    rows: int
    sites: int
    kernels: int
    head: int

    @classmethod
    def of(cls, sides: int, classes: int, table: CodingTable) -> _Lengths:
        layout = table.layout
        row = layout.head_row_elements
        return cls(
            sides=sides,
            classes=classes,
            convs=len(table.convs),
            rows=sides * (layout.rows - layout.head_capacity + classes),
            sites=sides * layout.sites,
            kernels=sides * (layout.elements - layout.head_capacity * row),
            head=sides * classes * row,
        )

    def most_bytes(self, runtimes: int) -> dict[str, int]:
        """The greatest length of each part, in the order of PARTS."""
        return {
            "labels": MAX_TEXT_BYTES + 2 * self.classes,
            "notes": MAX_NOTES_BYTES,
            "steps": 2 * self.convs,
            "activations": 1 + self.sites * (1 + MAX_PLANES),
            "scales": 1 + self.rows * MAX_PLANES,
            "biases": 1 + self.rows * MAX_PLANES,
            "kernels": self.kernels,
            "head": self.head,
            "golden": golden_length(MAX_IMAGES, runtimes * self.sides, self.classes),
            "cascade": MAX_CASCADE_BYTES,
        }


def _code_bytes(resolutions: Sequence[ResolutionCodes]) -> dict[str, bytes]:
    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(one, name) for one in resolutions])

    return {
        "activations": joined("zero_points").tobytes() + pack_planes(joined("activation_scales")),
        "scales": pack_planes(joined("scales")),
        "biases": pack_planes(joined("biases")),
        "kernels": joined("kernels").tobytes(),
        "head": joined("head").tobytes(),
    }


def _read_codes(
    contents: Mapping[str, bytes | memoryview], sides: Sequence[int], lengths: _Lengths
) -> dict[int, ResolutionCodes]:
    sites, activations = lengths.sites, contents["activations"]
    _check_length("activations", len(activations), sites, least=True)
    arrays: dict[str, NDArray[Any]] = {
        "zero_points": np.frombuffer(activations, np.uint8, sites),
        "activation_scales": _read_all("activations", activations, sites, sites),
        "scales": _read_all("scales", contents["scales"], 0, lengths.rows),
        "biases": _read_all("biases", contents["biases"], 0, lengths.rows),
    }
    for name, length in (("kernels", lengths.kernels), ("head", lengths.head)):
        _check_length(name, len(contents[name]), length)
        arrays[name] = np.frombuffer(contents[name], np.uint8)
    split = {name: array.reshape(len(sides), -1) for name, array in arrays.items()}
    return {
        px: ResolutionCodes(**{name: parts[k] for name, parts in split.items()})
        for k, px in enumerate(sides)
    }


def _read_all(name: str, content: bytes | memoryview, place: int, count: int) -> Int64Array:
    numbers, end = read_planes(name, content, place, count)
    _check_length(name, len(content), end)
    return numbers


def _check_length(name: str, found: int, expected: int, least: bool = False) -> None:
    if found < expected or (found != expected and not least):
        bound = "at least " if least else ""
        raise refuse("parts", f"{name} length", f"{bound}{expected} bytes over this base", found)


# -- small parts -----------------------------------------------------------------------------------


def _steps_bytes(steps: CodingSteps) -> bytes:
    return bytes(steps.scale) + np.array(steps.bias, np.int8).tobytes()


def _read_steps(content: bytes, lengths: _Lengths) -> CodingSteps:
    """Steps of any value; `check_steps` looks at them."""
    count = lengths.convs
    _check_length("steps", len(content), 2 * count)
    biases = np.frombuffer(content, np.int8, count, count)
    return CodingSteps(tuple(content[:count]), tuple(biases.tolist()))


def _label_bytes(labels: Sequence[str]) -> bytes:
    coded = encode_labels(labels)
    return b"".join(struct.pack("<H", len(label)) + label for label in coded)


def _read_labels(content: bytes, count: int) -> tuple[str, ...]:
    labels: list[str] = []
    place = 0
    while place + 2 <= len(content) and len(labels) <= count:
        (length,) = struct.unpack_from("<H", content, place)
        label = content[place + 2 : place + 2 + length]
        place += 2 + length
        labels.append(_read_text("labels", label))
    if place != len(content) or len(labels) != count or len(set(labels)) != count:
        found = f"{len(labels)}, {len(set(labels))} of them different"
        raise refuse("parts", "labels", f"{count} labels, each once", found)
    return tuple(labels)


def _notes_bytes(task: str, metrics: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(dict(metrics), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"metrics of task {task!r} are not JSON ({error}); they may hold finite "
            "numbers, text, lists and mappings; convert or remove the value"
        ) from error
    levels = _levels(dict(metrics))
    if len(text) > MAX_NOTES_BYTES or levels > MAX_LEVELS:
        raise ConfigError(
            f"metrics of task {task!r} take {len(text)} bytes on {levels} levels; a file "
            f"holds at most {MAX_NOTES_BYTES} on {MAX_LEVELS}; remove some"
        )
    return text.encode()


def _read_notes(content: bytes) -> dict[str, Any]:
    text = _read_text("notes", content)
    try:
        notes = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise refuse("parts", "notes", "JSON", error) from error
    if not isinstance(notes, dict):
        raise refuse("parts", "notes", "a JSON object", type(notes).__name__)
    if _levels(notes) > MAX_LEVELS:
        raise refuse("parts", "notes", f"at most {MAX_LEVELS} levels deep", _levels(notes))
    return notes


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def _whole(text: str) -> int:
    _finite(text)
    return int(text)


def _levels(notes: Any) -> int:
    """Objects and lists inside each other."""
    levels, inside = 0, [notes]
    while inside := [one for one in inside if isinstance(one, dict | list | tuple)]:
        levels += 1
        inside = [
            child for one in inside for child in (one.values() if isinstance(one, dict) else one)
        ]
    return levels


def _read_text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise refuse("parts", name, "UTF-8", error) from error
