"""The container of a patch file: who signed it, and whether it may be used here, before decoding.

In: the bytes of a ``.pdp`` file and a `Policy`. Out: a `CheckedPatch`, or a `PatchRefusedError`
with the code of the first check that failed. Nothing is parsed before its signatures verify, and
nothing is copied before its hash is right. docs/patch-format.md has the bytes and the order.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile.header import (
    ENGINE_VERSION,
    MAX_HEADER_BYTES,
    MAX_PAYLOAD_BYTES,
    PatchHeader,
    check_header_length,
)
from patchdeploy.patchfile.keys import SIGNATURE_BYTES, SigningKey, TrustedKeys, verify_signature
from patchdeploy.storage import sha256_hex

MAGIC = b"PDPATCH1"
CONTEXT = b"patchdeploy patch file, version 1\0"
"""What every signed message starts with: a signature made for anything else is no signature."""
PREFIX_BYTES = 16
ENTRY_BYTES = 1 + SIGNATURE_BYTES
MAX_SIGNATURES = 4
MAX_FILE_BYTES = PREFIX_BYTES + MAX_HEADER_BYTES + MAX_SIGNATURES * ENTRY_BYTES + MAX_PAYLOAD_BYTES

_COUNT_AT = 12
_DAMAGED = "the file is damaged or was not made by patchdeploy; fetch or pack it again"
_FORGED = "do not use the file; fetch it again, or ask who made it to sign it"
_ELSEWHERE = "use a patch that was packed for this app and base"

LOGGER = logging.getLogger("patchdeploy.patchfile")


@dataclass(frozen=True)
class Policy:
    """What a reader demands of a patch file; None: no demand.

    Attributes:
        trusted: pinned keys; without them no signature counts.
        allow_unsigned: take files with no signature, with a warning each time; for development.
        runtime: must be among the file's results.
        task: the task that it must be for.
        base_sha256, base_bytes: of the coding table at hand.
        resolutions: sides in pixels that the base files at hand were made for.
        floor: least sequence number.
        now: Unix seconds.
        engine: version of the decoder at hand.
    """

    trusted: TrustedKeys | None
    allow_unsigned: bool = False
    runtime: str | None = None
    task: str | None = None
    base_sha256: str | None = None
    base_bytes: int | None = None
    resolutions: frozenset[int] | None = None
    floor: int = 0
    now: int | None = None
    engine: int = ENGINE_VERSION


@dataclass(frozen=True)
class Container:
    """The parts of a file, none of them trusted yet.

    Attributes:
        header: bytes of the header.
        signatures: (key index, 64 bytes) in the order of the file.
        payload: a view of the rest; nothing is copied.
    """

    header: bytes
    signatures: tuple[tuple[int, bytes], ...]
    payload: memoryview


@dataclass(frozen=True)
class CheckedPatch:
    """A file that passed checks 1 to 6.

    Attributes:
        header: parsed.
        payload: a view of the bytes whose hash the header gives; nothing is copied.
        sha256: of the whole file, its name in a store.
        signed_by: indices of the keys; empty for an unsigned file.
    """

    header: PatchHeader
    payload: memoryview
    sha256: str
    signed_by: tuple[int, ...]


def build_patch(header: PatchHeader, payload: bytes | memoryview) -> bytes:
    """The file of ``header`` and ``payload``, unsigned.

    Raises:
        PatchRefusedError: codes "header_length", "length", "payload_hash".
    """
    _check_payload(header, memoryview(payload))
    return _join(header.to_bytes(), (), payload)


def add_signature(data: bytes, key: SigningKey, index: int) -> bytes:
    """``data`` with one more signature; those that are there stay.

    Args:
        data: a file that holds together (checks 1, 3 and 4): nobody signs a damaged one.
        index: of ``key`` among the readers' trusted keys, 0..255.

    Raises:
        PatchRefusedError: a check's code; "key_repeated" where key ``index`` has signed already,
            "signature_count" where 4 have, "key_unknown" for an index that no key can have.
    """
    container = read_container(data)
    read_header(container)
    if not 0 <= index <= 255:
        raise PatchRefusedError(
            "key_unknown",
            "key index",
            "from 0 to 255",
            str(index),
            "use the key's position in the list of trusted keys",
        )
    if index in dict(container.signatures):
        raise _repeated(index, "sign with another key")
    _check_count(len(container.signatures) + 1, "pack the patch again to sign it anew")
    entry = (index, key.sign(signed_message(container.header)))
    return _join(container.header, (*container.signatures, entry), container.payload)


def signed_message(header: bytes) -> bytes:
    """What a signature covers: context, the bytes [0, 12) of the file, the header."""
    return CONTEXT + _start(header) + header


def _start(header: bytes) -> bytes:
    return MAGIC + len(header).to_bytes(4, "little")


def _join(
    header: bytes, signatures: tuple[tuple[int, bytes], ...], payload: bytes | memoryview
) -> bytes:
    entries = [bytes([index]) + signature for index, signature in signatures]
    count = bytes([len(entries), 0, 0, 0])
    return b"".join([_start(header), count, header, *entries, payload])


def read_container(data: bytes) -> Container:
    """Check 1: sizes and fixed bytes, and where the parts lie.

    Who reads a file reads no more of it than one byte above the limit: it may be longer still.

    Raises:
        PatchRefusedError: "too_large", "truncated", "magic", "header_length", "reserved",
            "signature_count".
    """
    if len(data) > MAX_FILE_BYTES:
        raise PatchRefusedError(
            "too_large",
            "file length",
            f"at most {MAX_FILE_BYTES} bytes",
            f"{len(data)} bytes{' or more' if len(data) == MAX_FILE_BYTES + 1 else ''}",
            "do not use the file; no patch is that long",
        )
    _check_reaches(data, PREFIX_BYTES)
    if data[:8] != MAGIC:
        raise PatchRefusedError("magic", "bytes 0 to 7", repr(MAGIC), repr(data[:8]), _DAMAGED)
    header_bytes = int.from_bytes(data[8:_COUNT_AT], "little")
    check_header_length(header_bytes, _DAMAGED)
    if any(data[_COUNT_AT + 1 : PREFIX_BYTES]):
        raise PatchRefusedError(
            "reserved", "bytes 13 to 15", "zero", data[_COUNT_AT + 1 : PREFIX_BYTES].hex(), _DAMAGED
        )
    _check_count(data[_COUNT_AT], _DAMAGED)
    entries_at = PREFIX_BYTES + header_bytes
    payload_at = entries_at + data[_COUNT_AT] * ENTRY_BYTES
    _check_reaches(data, payload_at)
    return Container(
        header=data[PREFIX_BYTES:entries_at],
        signatures=tuple(
            (data[at], data[at + 1 : at + ENTRY_BYTES])
            for at in range(entries_at, payload_at, ENTRY_BYTES)
        ),
        payload=memoryview(data)[payload_at:],
    )


def _check_reaches(data: bytes, end: int) -> None:
    if len(data) < end:
        raise PatchRefusedError(
            "truncated", "file length", f"at least {end} bytes", f"{len(data)} bytes", _DAMAGED
        )


def _check_count(count: int, remedy: str) -> None:
    if count > MAX_SIGNATURES:
        raise PatchRefusedError(
            "signature_count", "signature count", f"at most {MAX_SIGNATURES}", str(count), remedy
        )


def read_header(container: Container) -> PatchHeader:
    """Checks 3 and 4: the header, and that the payload is the one that it names.

    Who signed is not asked: see `check_patch_file`.

    Raises:
        PatchRefusedError: those of `PatchHeader.from_bytes`; "length", "payload_hash".
    """
    header = PatchHeader.from_bytes(container.header)
    _check_payload(header, container.payload)
    return header


def check_signatures(container: Container, policy: Policy) -> tuple[int, ...]:
    """Check 2: the indices of the keys that signed. Every signature there must verify.

    Raises:
        PatchRefusedError: "unsigned", "key_unknown", "key_repeated", "signature", "threshold".
    """
    if not container.signatures:
        _check_unsigned(policy)
        return ()
    keys = policy.trusted.keys if policy.trusted is not None else ()
    message = signed_message(container.header)
    signed_by: list[int] = []
    for index, signature in container.signatures:
        public = keys[index] if index < len(keys) else None
        if public is None:
            raise PatchRefusedError(
                "key_unknown", "key index", "that of a trusted key", str(index), _FORGED
            )
        if index in signed_by:
            raise _repeated(index, _FORGED)
        if not verify_signature(public, signature, message):
            raise PatchRefusedError(
                "signature", f"signature of key {index}", "valid", "not valid", _FORGED
            )
        signed_by.append(index)
    _check_threshold(signed_by, policy)
    return tuple(signed_by)


def _check_unsigned(policy: Policy) -> None:
    if not policy.allow_unsigned:
        raise PatchRefusedError(
            "unsigned",
            "signature count",
            "at least 1",
            "0",
            "sign the patch; unsigned files are for development alone and must be allowed there",
        )
    LOGGER.warning("UNSIGNED patch file taken: anyone can have made it; never ship this setting")


def _check_threshold(signed_by: list[int], policy: Policy) -> None:
    if policy.trusted is not None and len(signed_by) < policy.trusted.threshold:
        raise PatchRefusedError(
            "threshold",
            "number of keys that signed",
            f"at least {policy.trusted.threshold}",
            str(len(signed_by)),
            "have the patch signed with more of the trusted keys",
        )


def _repeated(index: int, remedy: str) -> PatchRefusedError:
    return PatchRefusedError(
        "key_repeated", "key index", "one that signed once", f"{index} again", remedy
    )


def check_patch_file(data: bytes, policy: Policy) -> CheckedPatch:
    """Checks 1 to 6, in order; the first that fails is the one that is raised.

    Raises:
        PatchRefusedError: with the code, the field, what was expected and what was found.
    """
    data = bytes(data)  # itself, if it is bytes: what can be written to could change after this
    container = read_container(data)
    signed_by = check_signatures(container, policy)
    header = read_header(container)
    _check_place(header, policy)
    _check_time(header, policy)
    return CheckedPatch(header, container.payload, sha256_hex(data), signed_by)


def _check_payload(header: PatchHeader, payload: memoryview) -> None:
    """Check 4: nothing is missing, nothing follows, and it is what was signed."""
    if len(payload) != header.payload_bytes:
        raise PatchRefusedError(
            "length",
            "payload length",
            f"{header.payload_bytes} bytes",
            f"{len(payload)} bytes",
            _DAMAGED,
        )
    found = sha256_hex(payload)
    if found != header.payload_sha256:
        raise PatchRefusedError(
            "payload_hash", "payload SHA-256", header.payload_sha256, found, _DAMAGED
        )


def _check_place(header: PatchHeader, policy: Policy) -> None:
    """Check 5: runtime, engine, base, task, resolutions."""
    if policy.runtime is not None and policy.runtime not in header.results:
        made_for = ", ".join(sorted(header.results))
        raise PatchRefusedError(
            "runtime", "runtime at hand", f"one of {made_for}", policy.runtime, _ELSEWHERE
        )
    if header.engine > policy.engine:
        raise PatchRefusedError(
            "engine",
            "engine version that the patch needs",
            f"at most {policy.engine}",
            str(header.engine),
            "upgrade patchdeploy in the app",
        )
    _check_same("base", "base length", header.base_bytes, policy.base_bytes)
    _check_same("base", "base SHA-256", header.base_sha256, policy.base_sha256)
    _check_same("task", "task", header.task, policy.task)
    if policy.resolutions is not None:
        strangers = [px for px in header.resolutions if px not in policy.resolutions]
        if strangers:
            raise PatchRefusedError(
                "resolution",
                "resolution",
                f"one of {', '.join(map(str, sorted(policy.resolutions)))} px, which the base "
                "files at hand were made for",
                f"{strangers[0]} px",
                _ELSEWHERE,
            )


def _check_same(code: str, field: str, found: object, demanded: object) -> None:
    if demanded is not None and found != demanded:
        raise PatchRefusedError(code, field, str(demanded), str(found), _ELSEWHERE)


def _check_time(header: PatchHeader, policy: Policy) -> None:
    """Check 6: not older than the floor, not expired."""
    if header.sequence < policy.floor:
        raise PatchRefusedError(
            "sequence",
            "sequence",
            f"at least {policy.floor}",
            str(header.sequence),
            "fetch a newer patch; an older one may hold mistakes that were corrected since",
        )
    if policy.now is not None and 0 < header.expires <= policy.now:
        raise PatchRefusedError(
            "expired",
            "time of expiry",
            f"after {policy.now}",
            str(header.expires),
            "fetch a newer patch; if the clock is wrong, set it",
        )
