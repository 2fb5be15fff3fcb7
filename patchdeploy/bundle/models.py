"""Whole models out of a bundle, and what its bytes are for.

In: a `Bundle`. Out: one task's model made in two ways that must agree byte for byte (the base
file with the patch laid over it; the task exported alone from the reference), and the size
report.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from patchdeploy.bundle.reader import REFERENCE, Bundle
from patchdeploy.convert import load_converter
from patchdeploy.patchfile import ENTRY_BYTES, PREFIX_BYTES, read_container, read_header
from patchdeploy.patchfile.parts import part_lengths
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.model import (
    QuantizedBase,
    QuantizedVariant,
    neutral_variant,
    unflatten_variant,
)
from patchdeploy.slots import WEIGHT_LAYOUTS, PatchValues, SlotTable, overlay

_TELLING_BYTES = 64
"""A kernel shorter than this may appear in a file by chance."""


def patched(bundle: Bundle, task: str, format_name: str, resolution: int | None = None) -> bytes:
    """The base file with ``task`` laid over it: a model of its own.

    A .onnx has int8 kernels, which ONNX Runtime multiplies wrongly on x86-64 without VNNI: outside
    of an Engine run what `patchdeploy_onnx.unsigned_kernels` makes of it.

    Args:
        resolution: set this one alone; by default all of the task's (in a format that is free
            in height and width: the smallest).

    Raises:
        UnknownTaskError, UnknownResolutionError, IntegrityError: see `Bundle`.
    """
    data, table = bundle.base(format_name)
    values = _chosen(bundle, table, bundle.patch(task), resolution)
    return bytes(overlay(data, table, values))


def standalone(bundle: Bundle, task: str, format_name: str, resolution: int | None = None) -> bytes:
    """``task`` exported on its own by the converter, from the reference; see `patched`.

    A signature that the task does not have (or that ``resolution`` leaves out) is neutral.

    Raises:
        ConfigError, MissingExtraError: the converter is not there.
    """
    table = bundle.table(format_name)
    base = bundle.reference()
    values = _chosen(bundle, table, bundle.patch(task), resolution)
    variants = {px: unflatten_variant(base, one, task, px) for px, one in values.items()}
    head = next(iter(variants.values())).weights[base.graph.head]
    for px in table.resolutions:
        if px not in variants:
            variants[px] = _neutral_with_head(base, px, head)
    return load_converter(format_name).write(base, variants).data


def _chosen(
    bundle: Bundle, table: SlotTable, patch: PatchFile, resolution: int | None
) -> dict[int, PatchValues]:
    if resolution is None:
        held = sorted(patch.values)
        return {px: patch.values[px] for px in (held if table.resolutions else held[:1])}
    bundle.check_resolution(patch.task, resolution)
    return {resolution: patch.values[resolution]}


def _neutral_with_head(base: QuantizedBase, resolution: int, head: Any) -> QuantizedVariant:
    """Every resolution of a .tflite reads one head kernel, so it is the task's here too."""
    neutral = neutral_variant(base, resolution)
    return replace(neutral, weights={**neutral.weights, base.graph.head: head})


def shares_one_head(bundle: Bundle, patch: PatchFile) -> bool:
    """Whether the head's int8 kernel is the same at every resolution of ``patch``."""
    layout = bundle.manifest.layout
    first = layout.head_element
    run = slice(first, first + layout.head_capacity * layout.head_row_elements)
    kernels = [values.weights[run] for values in patch.values.values()]
    return all(np.array_equal(kernels[0], one) for one in kernels)


def size_report(bundle: Bundle) -> dict[str, Any]:
    """What the bundle's bytes are for, as plain JSON values.

    ``formats.<name>``: ``shared_bytes`` of the base file that every task and resolution reads,
    ``slot_bytes`` that a patch sets, by resolution (``all``: slots that resolutions share), and
    ``duplicated_bytes``: int8 kernels that the file holds more than once (null where the bundle
    was deployed without its reference).
    ``tasks.<name>``: the patch file's bytes by part, what of it is the head, and per resolution
    what it privately sets in each format's file.
    ``totals.<name>``: bytes that an app with this runtime ships, by what they are and in all,
    against one whole model for every task and resolution.
    """
    tables = {name: bundle.table(name) for name in bundle.formats}
    tasks = {name: _task_sizes(bundle, name, tables) for name in bundle.tasks}
    formats = {name: _format_sizes(bundle, name, table) for name, table in tables.items()}
    return {
        "base": bundle.manifest.base_name,
        "resolutions": list(bundle.manifest.resolutions),
        "files": {path: entry.bytes for path, entry in sorted(bundle.manifest.files.items())},
        "formats": formats,
        "tasks": tasks,
        "totals": {name: _totals(bundle, formats[name], tasks) for name in tables},
    }


def _format_sizes(bundle: Bundle, name: str, table: SlotTable) -> dict[str, Any]:
    slot_bytes: dict[str, int] = {}
    for slot in table.slots:
        key = "all" if slot.resolution is None else str(slot.resolution)
        slot_bytes[key] = slot_bytes.get(key, 0) + slot.length_bytes
    entry = bundle.manifest.converters[name]
    return {
        "file_bytes": table.base_bytes,
        "slot_table_bytes": bundle.manifest.files[entry.slots].bytes,
        "shared_bytes": table.base_bytes - sum(slot_bytes.values()),
        "slot_bytes": slot_bytes,
        "duplicated_bytes": _duplicated_bytes(bundle, name),
    }


def _duplicated_bytes(bundle: Bundle, name: str) -> int | None:
    """int8 kernel bytes beyond the first copy of each kernel in the base file."""
    if not (bundle.path / REFERENCE).exists():
        return None
    data, base = bundle.base_file(name), bundle.reference()
    duplicated = 0
    for conv in base.graph.convolutions():
        kernel = base.weights[conv.name]
        if conv.name in base.patch_owned or kernel.size < _TELLING_BYTES:
            continue
        layouts = {kernel.transpose(axes).tobytes() for axes in WEIGHT_LAYOUTS.values()}
        copies = sum(data.count(one) for one in layouts)
        duplicated += max(0, copies - 1) * kernel.size
    return duplicated


def _task_sizes(bundle: Bundle, task: str, tables: Mapping[str, SlotTable]) -> dict[str, Any]:
    entry = bundle.task(task)
    data = bundle.read(entry.file)
    container = read_container(data)
    optional = read_header(container).has_optional_parts
    parts = part_lengths(container.payload, optional)
    parts |= {
        "header": PREFIX_BYTES + len(container.header),
        "signatures": ENTRY_BYTES * len(container.signatures),
    }
    sides = len(entry.resolutions)
    return {
        "file_bytes": len(data),
        "part_bytes": parts,
        "classes": len(entry.classes),
        "cascade": _describe_cascade(bundle, task) if optional else None,
        "head_bytes": parts["head"],
        "bytes_per_resolution_without_head": (len(data) - parts["head"]) // sides,
        "resolutions": {
            str(px): {
                name: sum(s.length_bytes for s in table.slots if s.resolution in (px, None))
                for name, table in tables.items()
            }
            for px in entry.resolutions
        },
    }


def _describe_cascade(bundle: Bundle, task: str) -> dict[str, Any] | None:
    """What the task's patch says about its cascade, as plain JSON values."""
    cascade = bundle.patch(task, bundle.task(task).resolutions[0]).cascade
    return None if cascade is None else asdict(cascade)


def _totals(bundle: Bundle, sizes: Mapping[str, Any], tasks: Mapping[str, Any]) -> dict[str, Any]:
    manifest = bundle.manifest
    parts = {
        "base": sizes["file_bytes"],
        "slot_table": sizes["slot_table_bytes"],
        "coding_table": manifest.files[manifest.coding].bytes,
        "manifest": len(manifest.to_json()),
        "patches": sum(task["file_bytes"] for task in tasks.values()),
    }
    pairs = sum(len(task["resolutions"]) for task in tasks.values())
    others = [count for px, count in sizes["slot_bytes"].items() if px != "all"]
    single = sizes["file_bytes"] - sum(others[1:])
    return {
        "shipped_bytes": sum(parts.values()),
        "shipped_part_bytes": parts,
        "whole_models": pairs,
        "whole_models_bytes": pairs * single,
    }
