"""One task's values for every runtime, as one file: encode, decode and check.

In: a `PatchFile` (labels and the flat slot values of every resolution) and the base's
`PatchLayout`. Out: bytes, and back the very same arrays, or a typed error before anything is
applied. This is the one interface to how patches are stored: nothing else knows the encoding.

The encoding is a safetensors file. ``<px>/<name>`` holds one resolution's array and ``<name>``
one that every resolution shares. Rows of the head beyond the task's classes are not stored:
`masked_head_rows` derives them. Names and offsets stay with the slot table, so a patch can say
what to write and never where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from patchdeploy.errors import (
    ConfigError,
    PatchFileError,
    UnknownResolutionError,
    WrongBaseError,
)
from patchdeploy.patchfile_values import (
    MASKED_BIAS,
    PatchFile,
    PatchLayout,
    check_activations,
    check_classes,
    check_patch,
    masked_head_rows,
    masked_scale,
    padding_rows,
    patch_layout,
)
from patchdeploy.slots import PatchValues

__all__ = [
    "PatchFile",
    "PatchLayout",
    "check_classes",
    "check_patch",
    "decode_patch",
    "encode_patch",
    "masked_head_rows",
    "patch_layout",
]

FORMAT = 1
_METADATA_KEY = "patchdeploy"
_METADATA_KEYS = {"format", "task", "classes", "resolutions", "base_sha256", "metrics"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "weight_scale": np.dtype("<f4"),
    "bias": np.dtype("<i4"),
    "activation_scale": np.dtype("<f4"),
    "activation_zero_point": np.dtype("i1"),
    "kernels": np.dtype("i1"),
    "head": np.dtype("i1"),
}


def encode_patch(patch: PatchFile, layout: PatchLayout) -> bytes:
    """``patch`` as bytes; the same patch gives the same bytes.

    Raises:
        PatchFileError: a value that a slot may not take, or a padding row that is not masked.
        HeadCapacityError: more classes than the head has rows.
        ConfigError: a task name, labels or metrics outside the rules.
    """
    check_patch(patch, layout)
    parts = [_trim_head(values, patch, layout) for _, values in sorted(patch.values.items())]
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype in _DTYPES.items():
        stored = [np.ascontiguousarray(part[name], dtype) for part in parts]
        if all(np.array_equal(stored[0], one) for one in stored):
            arrays[name] = stored[0]
        else:
            arrays |= {
                f"{px}/{name}": one for px, one in zip(sorted(patch.values), stored, strict=True)
            }
    return save(arrays, {_METADATA_KEY: _metadata_text(patch)})


def _metadata_text(patch: PatchFile) -> str:
    metadata = {
        "format": FORMAT,
        "task": patch.task,
        "classes": list(patch.classes),
        "resolutions": sorted(patch.values),
        "base_sha256": patch.base_sha256,
        "metrics": dict(patch.metrics),
    }
    try:
        return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"metrics of task {patch.task!r} are not JSON ({error}); they may hold finite "
            "numbers, text, lists and mappings; convert or remove the value"
        ) from error


def _trim_head(
    values: PatchValues, patch: PatchFile, layout: PatchLayout
) -> dict[str, NDArray[Any]]:
    """The arrays as stored: padding rows gone, the head apart from the other kernels."""
    classes = len(patch.classes)
    masked = masked_head_rows(values, classes, layout)
    for name in ("weight_scale", "bias", "weights"):
        if not np.array_equal(getattr(masked, name), getattr(values, name)):
            raise PatchFileError(
                f"task {patch.task!r}: {name} of a head row beyond its {classes} classes is not "
                "masked; those rows follow from the rule of masked_head_rows; apply it first"
            )
    rows, elements = padding_rows(classes, layout)
    kernels = np.delete(values.weights, slice(layout.head_element, elements.stop))
    return {
        "weight_scale": np.delete(values.weight_scale, rows),
        "bias": np.delete(values.bias, rows),
        "activation_scale": values.activation_scale,
        "activation_zero_point": values.activation_zero_point,
        "kernels": kernels,
        "head": values.weights[layout.head_element : elements.start],
    }


def decode_patch(
    data: bytes, expected_base_sha256: str, layout: PatchLayout, resolution: int | None = None
) -> PatchFile:
    """The patch in ``data``, every value checked.

    Args:
        resolution: decode and check this one alone, which is faster; by default all.

    Raises:
        PatchFileError: truncated, extended, unknown or missing parts, or a value out of bounds.
        WrongBaseError: made for another base.
        HeadCapacityError: more classes than the head has rows.
        UnknownResolutionError: ``resolution`` is not in it.
    """
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = json.loads(header["__metadata__"][_METADATA_KEY])
        patch = _parse_metadata(metadata)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, PatchFileError):
            raise
        raise PatchFileError(
            f"patch file of {len(data)} bytes does not parse ({error}); it must be a whole file "
            "that patchdeploy wrote; copy it again"
        ) from error
    if patch.base_sha256 != expected_base_sha256:
        raise WrongBaseError(
            f"patch {patch.task!r} was made for base {patch.base_sha256}; this base is "
            f"{expected_base_sha256}; export the task over this base"
        )
    check_classes(patch.task, patch.classes, layout.head_capacity)
    held = metadata["resolutions"]
    if resolution is not None and resolution not in held:
        raise UnknownResolutionError(
            f"patch {patch.task!r} holds no {resolution} px; it has {', '.join(map(str, held))}; "
            "choose one of them or export the task again"
        )
    _check_names(patch.task, set(arrays), held)
    chosen = held if resolution is None else [resolution]
    patch = replace(patch, values={px: _read_values(arrays, px, patch, layout) for px in chosen})
    check_patch(patch, layout)
    return patch


def _check_names(task: str, names: set[str], resolutions: list[int]) -> None:
    """Each array is there once for all resolutions, or once for each, and nothing else is."""
    for name in _DTYPES:
        each = {f"{px}/{name}" for px in resolutions}
        found = names & ({name} | each)
        if found not in ({name}, each):
            raise PatchFileError(
                f"patch {task!r} holds {sorted(found)} for {name}; it must be there once, or once "
                "for each resolution; export the task again"
            )
        names = names - found
    if names:
        raise PatchFileError(
            f"patch {task!r} holds an unknown array {min(names)!r}; the arrays are "
            f"{', '.join(_DTYPES)}; export the task again"
        )


def _parse_metadata(metadata: Mapping[str, Any]) -> PatchFile:
    """Task, labels, base and metrics; ``values`` is still empty."""
    if metadata["format"] != FORMAT or set(metadata) != _METADATA_KEYS:
        raise PatchFileError(
            f"patch file has format {metadata['format']!r} and keys {sorted(metadata)}; this "
            f"version reads format {FORMAT} with {sorted(_METADATA_KEYS)}; export the task again "
            "or upgrade patchdeploy"
        )
    resolutions = metadata["resolutions"]
    if not resolutions or any(type(px) is not int for px in resolutions):
        raise PatchFileError(
            f"patch file lists resolutions {resolutions!r}; they must be at least one integer; "
            "export the task again"
        )
    return PatchFile(
        task=str(metadata["task"]),
        classes=tuple(str(label) for label in metadata["classes"]),
        base_sha256=str(metadata["base_sha256"]),
        values={},
        metrics=dict(metadata["metrics"]),
    )


def _read_values(
    arrays: Mapping[str, NDArray[Any]],
    resolution: int,
    patch: PatchFile,
    layout: PatchLayout,
) -> PatchValues:
    """The full arrays of one resolution, padding rows derived again."""
    classes = len(patch.classes)
    spare = layout.head_capacity - classes
    head_elements = layout.head_capacity * layout.head_row_elements
    lengths = {
        "weight_scale": layout.rows - spare,
        "bias": layout.rows - spare,
        "activation_scale": layout.sites,
        "activation_zero_point": layout.sites,
        "kernels": layout.elements - head_elements,
        "head": classes * layout.head_row_elements,
    }
    part: dict[str, NDArray[Any]] = {}
    for name, length in lengths.items():
        key = name if name in arrays else f"{resolution}/{name}"
        array = arrays.get(key)
        if array is None or array.shape != (length,) or array.dtype != _DTYPES[name]:
            found = "is missing" if array is None else f"is {array.dtype} {array.shape}"
            raise PatchFileError(
                f"patch {patch.task!r}: array {key!r} {found}; over this base it must be "
                f"{_DTYPES[name]} {(length,)}; export the task again"
            )
        part[name] = array
    check_activations(patch.task, resolution, part["activation_scale"])
    rows, elements = padding_rows(classes, layout)
    x, y = part["activation_scale"][[layout.head_input, layout.head_output]]
    return PatchValues(
        weight_scale=_widen(part["weight_scale"], rows, masked_scale(x, y)),
        bias=_widen(part["bias"], rows, MASKED_BIAS),
        activation_scale=part["activation_scale"],
        activation_zero_point=part["activation_zero_point"],
        weights=_join_head(part["kernels"], part["head"], elements, layout),
    )


def _widen(stored: NDArray[Any], run: slice, value: Any) -> NDArray[Any]:
    """``stored`` with ``value`` put in at the places of ``run``."""
    wide = np.empty(len(stored) + run.stop - run.start, stored.dtype)
    wide[: run.start], wide[run], wide[run.stop :] = stored[: run.start], value, stored[run.start :]
    return wide


def _join_head(
    kernels: NDArray[Any], head: NDArray[Any], padding: slice, layout: PatchLayout
) -> NDArray[Any]:
    """The other kernels and, in its place among them, the head with zeros in its padding rows."""
    first = layout.head_element
    weights = np.zeros(layout.elements, np.int8)
    weights[:first], weights[padding.stop :] = kernels[:first], kernels[first:]
    weights[first : padding.start] = head
    return weights
