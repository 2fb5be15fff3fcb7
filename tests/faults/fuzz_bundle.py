"""Fuzz target: any bytes as a manifest, a slot table, a coding table's or a reference's document.

The first byte says which. A document's own hash, and the arrays beside it, are right where the
bytes are JSON, so that a fuzzer that cannot hash reaches every check.
"""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path

import case_folders  # noqa: F401  (adds the folders of the cases)
from bundle_cases import make_bundle
from hostile_bundles import MANIFEST, TABLES, TENSOR_FILES, read_document, with_notes
from hostile_bundles import canonical_manifest as canonical

from patchdeploy.bundle.manifest import Manifest
from patchdeploy.bundle.tables import check_base, check_fit
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import FileFormatError, IntegrityError
from patchdeploy.reference import load_reference
from patchdeploy.slots import SlotTable

FILES = (MANIFEST, *TABLES, *TENSOR_FILES)


@cache
def good() -> dict[str, bytes]:
    """The files of a small bundle, by name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        make_bundle(path, "residual", tasks=("first",), signed=True)
        names = (*FILES, "base.tflite", "base.onnx")
        return {name: (path / name).read_bytes() for name in names}


@cache
def good_manifest() -> Manifest:
    """The manifest of `good`."""
    return Manifest.from_json(good()[MANIFEST])


def fuzz_one(data: bytes) -> None:
    """A typed error, or a value that says itself again and fits the files beside it.

    Raises:
        AssertionError: neither; any other exception is a fault as well.
    """
    if not data:
        return
    file, content = FILES[data[0] % len(FILES)], data[1:]
    try:
        if file == MANIFEST:
            _read_manifest(content)
        elif file in TABLES:
            _read_table(file, content)
        else:
            _read_notes(file, content)
    except (FileFormatError, IntegrityError):
        pass


def _read_manifest(content: bytes) -> None:
    for text in (content, _with_own_hash(content)):
        manifest = Manifest.from_json(text)
        assert manifest.to_json() == text
        assert set(manifest.files) >= {manifest.coding}
        for task in manifest.tasks.values():
            assert set(task.resolutions) <= set(manifest.resolutions)
            assert all(isinstance(label, str) for label in task.classes)


def _with_own_hash(content: bytes) -> bytes:
    try:
        return canonical(json.loads(content))
    except (ValueError, RecursionError):
        return content


def _read_table(file: str, content: bytes) -> None:
    name = file.split(".")[1]
    table = SlotTable.from_json(content)
    assert SlotTable.from_json(table.to_json()) == table
    end = 0
    for slot in table.slots:
        assert end <= slot.offset_bytes < slot.offset_bytes + slot.length_bytes <= table.base_bytes
        end = slot.offset_bytes + slot.length_bytes
        assert slot.resolution is None or type(slot.resolution) is int
    manifest = good_manifest()
    check_fit(table, name, manifest.resolutions, manifest.layout)
    check_base(good()[f"base.{name}"], table)


def _read_notes(file: str, content: bytes) -> None:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return
    data = with_notes(good()[file], text)
    if file == "base.coding":
        CodingTable.from_bytes(data)
        return
    base = load_reference(data)
    assert base.layout().rows == sum(base.rows(conv.name) for conv in base.graph.convolutions())


def seeds() -> dict[str, bytes]:
    """What a fuzzer starts from, by name."""
    found = {}
    for index, file in enumerate(FILES):
        kind, name = bytes([index]), file.replace("/", "-").removesuffix(".json")
        raw = good()[file]
        if file in TENSOR_FILES:
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder) / file
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(raw)
                raw = json.dumps(read_document(Path(folder), file)).encode()
        found[name] = kind + raw
        found[f"{name}-deep"] = kind + b"[" * 3000
        found[f"{name}-twice"] = kind + b'{"format":1,"format":1}'
        found[f"{name}-long-number"] = kind + b'{"format":' + b"9" * 2000 + b"}"
        found[f"{name}-surrogate"] = kind + b'{"format":"\\ud800"}'
    return found
