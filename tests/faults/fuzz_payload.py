"""Fuzz target: any bytes as a payload, and as the content of one part of a good payload.

The first byte says which: 0 the payload, k the content of part k - 1, stored; 10 to 18 the same
part as a deflate stream; 19 all optional parts after the good ones, 20 the cascade's content.
Lengths, header and hash around it are right.
"""

from __future__ import annotations

import case_folders  # noqa: F401  (adds the folders of the cases)
from container_cases import forge
from container_cases import text as canonical_text
from fault_cases import check_sound, header_fields, make_subject, store_part

from patchdeploy.cascade import Cascade, CascadeRule, Certificate, Stage
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import read_container
from patchdeploy.patchfile.cascade_part import cascade_bytes
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.parts import PARTS, deflate
from patchdeploy.patchfile.payload import decode_payload

SUBJECT = make_subject("tiny", 1, ("dw",))
CODES = {"sites", "inflate", "parts", "values"}
OPTIONAL, CASCADE = 2 * len(PARTS) + 1, 2 * len(PARTS) + 2
GOOD = [store_part(index, SUBJECT.parts[name]) for index, name in enumerate(PARTS)]


def make_header(payload: bytes, **changes: object) -> PatchHeader:
    """A right header of ``payload``."""
    fields = header_fields(SUBJECT.table, payload) | changes
    container = read_container(forge(canonical_text(fields), payload, signers=()))
    return PatchHeader.from_bytes(container.header)


def payload_of(data: bytes) -> bytes:
    """The payload that ``data`` stands for."""
    kind, content = data[0], data[1:]
    if kind in (OPTIONAL, CASCADE):
        part = store_part(len(PARTS), content) if kind == CASCADE else content
        return b"".join([*GOOD, part])
    if kind == 0 or kind > 2 * len(PARTS):
        return content
    index = (kind - 1) % len(PARTS)
    length = len(SUBJECT.parts[PARTS[index]])
    is_stored = kind <= len(PARTS)
    part = store_part(index, content) if is_stored else store_part(index, content, 1, length)
    return b"".join([*GOOD[:index], part, *GOOD[index + 1 :]])


def fuzz_one(data: bytes) -> None:
    """A typed error, or a sound patch.

    Raises:
        AssertionError: neither; any other exception is a fault as well.
    """
    if not data:
        return
    payload = payload_of(data)
    if not payload:
        return
    header = HEADER_2 if data[0] in (OPTIONAL, CASCADE) else HEADER
    try:
        patch = decode_payload(payload, header, SUBJECT.table)
    except PatchRefusedError as error:
        if error.code not in CODES:
            raise AssertionError(f"code {error.code}") from error
        return
    check_sound(patch, SUBJECT.table)
    if data[0] == CASCADE:
        assert patch.cascade is not None
        if cascade_bytes(patch.cascade, header.resolutions) != data[1:]:
            raise AssertionError("a cascade that is read has other bytes when it is written")


HEADER = make_header(b"\0")
"""Decoding reads no length or hash of the payload: one header does for all."""
HEADER_2 = make_header(b"\0", encoding="parts-2", engine=2)


def cascade_seeds() -> dict[str, bytes]:
    """A cascade of each score, and optional parts that a reader passes over."""
    first, last = SUBJECT.patch.values
    certificate = Certificate(first, 0.01, 0.95, 2_000, True)
    rules = {
        "margin": CascadeRule("margin", (Stage(last, 40, 0), Stage(first, 0, 0))),
        "probability": CascadeRule("probability", (Stage(last, 2**29, 7), Stage(first, 0, 0))),
        "entropy": CascadeRule("entropy", (Stage(last, 2**31 - 1, 2**31), Stage(first, 0, 0))),
    }
    found = {
        f"cascade-{name}": cascade_bytes(Cascade(rule, certificate), HEADER_2.resolutions)
        for name, rule in rules.items()
    }
    later = store_part(len(PARTS), found["cascade-margin"]) + store_part(200, b"new")
    seeds = {name: bytes([CASCADE]) + content for name, content in found.items()}
    return seeds | {"optional-parts": bytes([OPTIONAL]) + later}


def seeds() -> dict[str, bytes]:
    """What a fuzzer starts from, by name."""
    found = {"payload": b"\0" + SUBJECT.payload, "payload-stored": b"\0" + b"".join(GOOD)}
    for index, name in enumerate(PARTS):
        content = SUBJECT.parts[name]
        found[f"stored-{name}"] = bytes([1 + index]) + content
        found[f"deflated-{name}"] = bytes([1 + len(PARTS) + index]) + deflate(content)
    found["notes-deep"] = b"\2" + b'{"a":' * 40 + b"1" + b"}" * 40
    found["notes-not-finite"] = b'\2{"a":1e999}'
    found["labels-not-utf8"] = b"\1\2\0\xff\xfe"
    return found | cascade_seeds()
