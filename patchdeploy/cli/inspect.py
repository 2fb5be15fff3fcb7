"""What a patch file says about itself, and what it would change: ``inspect FILE.pdp``.

In: the bytes of a ``.pdp`` file, which need not be trusted; perhaps the keys and the bundle that it
is for. Out: a document of plain JSON values, and its tables. Without the bundle only the header and
the lengths of the parts are read; the values, labels and steps are coded against its base.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchdeploy.cli.cascade_tables import carried_tables
from patchdeploy.cli.patch import read_patch_file
from patchdeploy.cli.signing import show_time
from patchdeploy.cli.tables import emit, make_table
from patchdeploy.coding.grid import EXACT_BIASES, EXACT_SCALES
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import (
    ENTRY_BYTES,
    PREFIX_BYTES,
    Container,
    read_container,
    read_header,
    signed_message,
)
from patchdeploy.patchfile.header import ENGINE_VERSION, UPGRADE, PatchHeader
from patchdeploy.patchfile.keys import TrustedKeys, verify_signature
from patchdeploy.patchfile.parts import part_lengths
from patchdeploy.patchfile.payload import decode_payload, read_steps
from patchdeploy.slots import SlotTable
from patchdeploy.storage import sha256_hex

if TYPE_CHECKING:
    from patchdeploy.bundle import Bundle


def inspect_file(path: Path, trusted: Path | None, bundle: Path | None, as_json: bool) -> None:
    """Print what `describe_patch` finds in a file.

    Raises:
        PatchFileError: it cannot be read, or as `describe_patch`.
        PatchdeployError: the list ``trusted`` or ``bundle`` cannot be read.
    """
    from patchdeploy.bundle import open_bundle

    document = describe_patch(
        read_patch_file(path),
        None if trusted is None else TrustedKeys.load(trusted),
        None if bundle is None else open_bundle(bundle, verify_hashes=False),
    )
    emit(as_json, {"file": str(path), **document}, *patch_tables(path, document))


def describe_patch(
    data: bytes, trusted: TrustedKeys | None = None, bundle: Bundle | None = None
) -> dict[str, Any]:
    """Header, lengths, signatures, and with ``bundle`` what the patch would change.

    Raises:
        PatchRefusedError: the file does not hold together (checks 1, 3 and 4), or it does not fit
            ``bundle`` (checks 7 and 8), or needs a newer engine.
    """
    container = read_container(data)
    header = read_header(container)
    signatures = [
        {"key": index, "state": _state(container, index, signature, trusted)}
        for index, signature in container.signatures
    ]
    return {
        "sha256": sha256_hex(data),
        "bytes": len(data),
        "header": json.loads(container.header),
        "signatures": signatures,
        "threshold": None if trusted is None else trusted.threshold,
        "parts": {
            "prefix": PREFIX_BYTES,
            "header": len(container.header),
            "signatures": ENTRY_BYTES * len(signatures),
            **part_lengths(container.payload, header.has_optional_parts),
        },
        "slots": sum(count for _, count in header.sites),
        "changes": None if bundle is None else _changes(container.payload, header, bundle),
    }


def _state(container: Container, index: int, signature: bytes, trusted: TrustedKeys | None) -> str:
    if trusted is None:
        return "not checked"
    if index >= len(trusted.keys):
        return "unknown key"
    public = trusted.keys[index]
    if public is None:
        return "revoked key"
    valid = verify_signature(public, signature, signed_message(container.header))
    return "valid" if valid else "not valid"


def _changes(payload: memoryview, header: PatchHeader, bundle: Bundle) -> dict[str, Any]:
    """What the patch sets over the bundle's base; values only where it is the patch's own."""
    table = bundle.coding_table
    if header.base_sha256 != table.sha256:
        return {"base_matches": False}
    if header.engine > ENGINE_VERSION:
        raise PatchRefusedError(
            "engine",
            "engine version that the patch needs",
            f"at most {ENGINE_VERSION}",
            str(header.engine),
            UPGRADE,
        )
    patch = decode_payload(payload, header, table)
    steps = read_steps(payload, header, table)
    present = bundle.header(header.task).sequence if header.task in bundle.tasks else None
    golden = patch.golden
    return {
        "base_matches": True,
        "task": header.task,
        "bundle_sequence": present,
        "labels": list(patch.classes),
        "metrics": dict(patch.metrics),
        "cascade": None if patch.cascade is None else asdict(patch.cascade),
        "steps": asdict(steps),
        "self_test": None
        if golden is None
        else {"images": len(golden.thumbnails), "tolerance_lsb": golden.tolerance_lsb},
        "formats": {
            name: {str(px): _slots(bundle.table(name), px) for px in header.resolutions}
            for name in bundle.formats
            if name in header.results
        },
    }


def _slots(table: SlotTable, resolution: int) -> dict[str, Any]:
    """The slots of one base file that a resolution sets."""
    chosen = [slot for slot in table.slots if slot.resolution in (None, resolution)]
    return {
        "slots": len(chosen),
        "bytes": sum(slot.length_bytes for slot in chosen),
        "kinds": dict(sorted(Counter(slot.kind for slot in chosen).items())),
    }


def patch_tables(path: Path, document: dict[str, Any]) -> list[Any]:
    """The tables of `describe_patch`'s document."""
    header = document["header"]
    rows = [
        ["file", f"{document['bytes']:,} bytes, SHA-256 {document['sha256']}"],
        ["task", header["task"]],
        ["sequence", str(header["sequence"])],
        ["expires", show_time(header["expires"])],
        ["classes", str(header["classes"])],
        ["engine", _engine_text(header["engine"])],
        ["resolutions", ", ".join(map(str, header["resolutions"]))],
        ["runtimes' formats", ", ".join(sorted(header["results"]))],
        ["base", header["base"]["sha256"]],
        ["slots", f"{document['slots']:,}"],
        ["signatures", _signature_text(document)],
    ]
    parts = [[name, f"{count:,}"] for name, count in document["parts"].items()]
    tables = [
        make_table(f"Patch file {path}", ["", ""], rows, text=(0, 1)),
        make_table("Bytes", ["part", "bytes"], parts),
    ]
    if document["changes"] is not None:
        tables += _change_tables(document["changes"])
    return tables


def _engine_text(needed: int) -> str:
    if needed <= ENGINE_VERSION:
        return str(needed)
    return f"{needed}; this version has {ENGINE_VERSION}: {UPGRADE}"


def _signature_text(document: dict[str, Any]) -> str:
    found = [f"key {one['key']}: {one['state']}" for one in document["signatures"]]
    if document["threshold"] is not None:
        found.append(f"{document['threshold']} needed")
    return "; ".join(found) if document["signatures"] else "UNSIGNED"


def _change_tables(changes: dict[str, Any]) -> list[Any]:
    if not changes["base_matches"]:
        rows = [["base", "another one than this bundle's: nothing can be laid over it"]]
        return [make_table("Over this bundle", ["", ""], rows, text=(0, 1))]
    held, test = changes["bundle_sequence"], changes["self_test"]
    steps = changes["steps"]
    about = [
        ["in the bundle", "no such task" if held is None else f"sequence {held}"],
        ["labels", ", ".join(changes["labels"])],
        ["metrics", json.dumps(changes["metrics"], sort_keys=True)],
        ["steps of scales", _range_text(steps["scale"], EXACT_SCALES, "2^{} / 256 octave")],
        ["steps of biases, absolute", _range_text(steps["bias"], EXACT_BIASES, "2^{}")],
        [
            "self-test",
            "none"
            if test is None
            else f"{test['images']} images, within {test['tolerance_lsb']} LSB",
        ],
    ]
    rows = [
        [
            f"{name}, {px} px",
            f"{found['slots']:,}",
            f"{found['bytes']:,}",
            ", ".join(f"{kind} {count}" for kind, count in found["kinds"].items()),
        ]
        for name, sides in changes["formats"].items()
        for px, found in sides.items()
    ]
    return [
        make_table("Over this bundle", ["", ""], about, text=(0, 1)),
        *carried_tables({changes["task"]: changes["cascade"]}),
        make_table("Slots it sets", ["base file", "slots", "bytes", "kinds"], rows, text=(0, 3)),
    ]


def _range_text(exponents: list[int], exact: int, form: str) -> str:
    """From the finest to the coarsest step of all convolutions.

    A bias's step is absolute, beta + n * 2^e: no part of the step between two int8 values.
    """
    coded = [one for one in exponents if one != exact]
    if not coded:
        return "exact"
    low, high = form.format(min(coded)), form.format(max(coded))
    text = low if low == high else f"{low} to {high}"
    return text if len(coded) == len(exponents) else f"{text}; {len(exponents) - len(coded)} exact"
