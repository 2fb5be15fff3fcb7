"""A trained patch as one safetensors file that notices its own damage.

In: a description (JSON values) and float32 arrays by resolution and name. Out: bytes, and the same
back. The description is the file's metadata and holds the SHA-256 of the whole file, taken with
zeros in the place of its own 64 digits: neither safetensors nor JSON notices a changed bit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from patchdeploy.storage import sha256_hex

FORMAT, FORMAT_WITHOUT_HASH = 2, 1
MOST_BYTES = 2**30
"""Of a file: every patch of a network that fits on a phone is a hundredth of it."""
MOST_RESOLUTION, MOST_RESOLUTIONS = 4096, 64
ALL = "all"
HASH = "file_sha256"
KEYS = frozenset(
    ("format", "task", "base_sha256", "config", "classes", "resolutions", "metrics", HASH)
)
_ZEROS = "0" * 64
_MARK = f'\\"{HASH}\\": \\"'.encode()
"""As it stands in the file: JSON inside a JSON text."""

Tensors = Mapping[str, NDArray[np.float32]]

_log = logging.getLogger("patchdeploy.patch")


def write_stored(
    document: Mapping[str, Any], variants: Mapping[int, Tensors]
) -> tuple[bytes, dict[str, Any]]:
    """The file, and the description as it is in it.

    Arrays that are equal at every resolution are stored once.

    Args:
        document: all of `KEYS` but the format and the hash.
    """
    full = {**document, "format": FORMAT}
    text = json.dumps(full, sort_keys=True)
    text = f'{text[:-1]}, "{HASH}": "{_ZEROS}"}}'  # the last key, so that its place is known
    data = save(_pack(variants), metadata={"patchdeploy": text})
    place = _find_hash(data, _ZEROS)
    digest = sha256_hex(data)
    data = data[:place] + digest.encode() + data[place + len(digest) :]
    return data, {**full, HASH: digest}


def read_stored(data: bytes) -> tuple[dict[str, Any], dict[int, dict[str, NDArray[np.float32]]]]:
    """The description and the arrays by resolution. What they mean is the caller's matter, as is
    `check_hash`.

    Raises:
        ValueError, LookupError, TypeError, RecursionError, SafetensorError: not such a file.
    """
    arrays = load(data)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    document = json.loads(header["__metadata__"]["patchdeploy"])
    if document["format"] not in (FORMAT, FORMAT_WITHOUT_HASH):
        raise ValueError(f"format {document['format']!r}; this version reads {FORMAT}")
    known = KEYS if document["format"] == FORMAT else KEYS - {HASH}
    if set(document) != known:
        raise ValueError(f"keys {sorted(document)}, not {sorted(known)}")
    for key, kind in (("task", str), ("base_sha256", str), ("config", dict), ("metrics", dict)):
        if type(document[key]) is not kind:
            raise ValueError(f"{key} is no {kind.__name__}")
    _check_list(document, "classes", str)
    _check_list(document, "resolutions", int)
    sides = document["resolutions"]
    if len(sides) > MOST_RESOLUTIONS or not all(1 <= px <= MOST_RESOLUTION for px in sides):
        raise ValueError(f"up to {MOST_RESOLUTIONS} resolutions of 1 to {MOST_RESOLUTION} px")
    return document, _unpack(arrays, sides)


def check_hash(data: bytes, document: Mapping[str, Any], name: str) -> None:
    """Compare the hash of the file with the one that it carries. Where a version that knew no hash
    has written it, a warning is logged.

    Raises:
        ValueError: another hash: the file is damaged.
    """
    if document["format"] == FORMAT_WITHOUT_HASH:
        _log.warning(
            "%s is of a version that wrote no hash: whether it is damaged cannot be seen; load and "
            "save the patch again to give it one",
            name,
        )
        return
    given = document[HASH]
    place = _find_hash(data, given) if isinstance(given, str) and len(given) == 64 else -1
    blank = data[:place] + _ZEROS.encode() + data[place + len(_ZEROS) :]
    if place < 0 or sha256_hex(blank) != given:
        raise ValueError("its SHA-256 is not the one that it carries, so it is damaged")


def _find_hash(data: bytes, digest: str) -> int:
    """Where the digits of the file's own hash begin; -1: nowhere."""
    end = 8 + int.from_bytes(data[:8], "little")
    found = data.rfind(_MARK + digest.encode(), 8, end)
    return -1 if found < 0 else found + len(_MARK)


def _check_list(document: Mapping[str, Any], key: str, kind: type) -> None:
    value = document[key]
    if type(value) is not list or not all(type(one) is kind for one in value):
        raise ValueError(f"{key} is no list of {kind.__name__}")


def _pack(variants: Mapping[int, Tensors]) -> dict[str, NDArray[np.float32]]:
    """``all/<name>`` for what every resolution shares, ``<px>/<name>`` for the rest."""
    first, *others = variants.values()
    shared = {
        key
        for key, value in first.items()
        if all(key in other and np.array_equal(value, other[key]) for other in others)
    }
    arrays = {f"{ALL}/{key}": np.ascontiguousarray(first[key]) for key in shared}
    for resolution, tensors in variants.items():
        for key, value in tensors.items():
            if key not in shared:
                arrays[f"{resolution}/{key}"] = np.ascontiguousarray(value)
    return arrays


def _unpack(
    arrays: Mapping[str, NDArray[np.float32]], resolutions: Sequence[int]
) -> dict[int, dict[str, NDArray[np.float32]]]:
    variants: dict[int, dict[str, NDArray[np.float32]]] = {px: {} for px in resolutions}
    owners = {str(px): [px] for px in variants} | {ALL: list(variants)}
    for key, value in arrays.items():
        if value.dtype != np.float32:
            raise ValueError(f"array {key!r} is {value.dtype}, not float32")
        owner, _, name = key.partition("/")
        for resolution in owners[owner]:
            variants[resolution][name] = value
    return variants
