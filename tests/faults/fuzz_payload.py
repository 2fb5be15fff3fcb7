"""Fuzz target: any bytes as a payload, and as the content of one part of a good payload.

The first byte says which: 0 the payload, k the content of part k - 1, stored; 10 to 18 the same
part as a deflate stream. Lengths, header and hash around it are right.
"""

from __future__ import annotations

import case_folders  # noqa: F401  (adds the folders of the cases)
from container_cases import forge
from container_cases import text as canonical_text
from fault_cases import check_sound, header_fields, make_subject, store_part

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import read_container
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.parts import PARTS, deflate
from patchdeploy.patchfile.payload import decode_payload

SUBJECT = make_subject("tiny", 1, ("dw",))
CODES = {"sites", "inflate", "parts", "values"}
GOOD = [store_part(index, SUBJECT.parts[name]) for index, name in enumerate(PARTS)]


def make_header(payload: bytes) -> PatchHeader:
    """A right header of ``payload``."""
    fields = header_fields(SUBJECT.table, payload)
    container = read_container(forge(canonical_text(fields), payload, signers=()))
    return PatchHeader.from_bytes(container.header)


def payload_of(data: bytes) -> bytes:
    """The payload that ``data`` stands for."""
    kind, content = data[0], data[1:]
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
    try:
        patch = decode_payload(payload, HEADER, SUBJECT.table)
    except PatchRefusedError as error:
        if error.code not in CODES:
            raise AssertionError(f"code {error.code}") from error
        return
    check_sound(patch, SUBJECT.table)


HEADER = make_header(b"\0")
"""Decoding reads no length or hash of the payload: one header does for all."""


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
    return found
