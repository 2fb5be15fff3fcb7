"""Write vectors.json: patch files and, for each, what every reader must say about it.

Run it by hand when the format changes, and read the difference. Codes are written here by hand,
never recorded from a reader.
"""

import base64
import json
from pathlib import Path

from container_cases import (
    CONTEXT,
    GOOD,
    KEYS,
    ORDER,
    PAYLOAD,
    SEEDS,
    document,
    forge,
    message,
    sha,
    text,
)

PATH = Path(__file__).with_name("vectors.json")
CAP_BYTES = 16 + 65_536 + 4 * 65 + 8 * 2**20
POLICY = {
    "trusted": [key.public.hex() for key in KEYS],
    "threshold": 1,
    "allow_unsigned": False,
    "runtime": "onnx",
    "task": "flowers",
    "base_sha256": sha(b"base"),
    "base_bytes": 1000,
    "resolutions": None,
    "floor": 7,
    "now": 2_000_000_000,
    "engine": 1,
}
TWO = {"threshold": 2}
REVOKED = {"trusted": [None, *POLICY["trusted"][1:]]}
OTHER_HASH = sha(b"another")


SIDES = {"resolutions": [64, 80, 96]}


def two_sides(*sides: int) -> dict:
    return document(
        resolutions=list(sides), results={"onnx": {str(px): sha(b"%d" % px) for px in sides}}
    )


def good_files() -> list[tuple]:
    signed = document(expires=2_000_000_001)
    sides = {str(px): sha(b"%d" % px) for px in (96, 64, 128)}
    many = document(
        resolutions=[96, 64, 128],
        results={"onnx": sides, "tflite": dict(sides)},
        sites=[[0, 2], [3, 1], [5, 10]],
    )
    largest = document(
        task="a" * 64,
        classes=65_536,
        sequence=2**53 - 1,
        expires=2**53 - 1,
        base={"bytes": 2**53 - 1, "sha256": sha(b"base")},
        sites=[[2**31 - 2, 1]],
        resolutions=[4096],
        results={"r" * 32: {"4096": sha(b"result")}},
    )
    anything = dict.fromkeys(("runtime", "task", "base_sha256", "base_bytes", "now"))
    return [
        ("one signature", GOOD, {}, [0]),
        ("two signatures, threshold 2", forge(signers=(1, 0)), TWO, [1, 0]),
        ("four signatures, threshold 2", forge(signers=(0, 1, 2, 3)), TWO, [0, 1, 2, 3]),
        ("signed with a key after a revoked one", forge(signers=(1,)), REVOKED, [1]),
        ("unsigned, where that is allowed", forge(signers=()), {"allow_unsigned": True}, []),
        ("expires one second after now", forge(signed), {}, [0]),
        ("three resolutions, two runtimes, three runs", forge(many), {}, [0]),
        ("every field at its largest", forge(largest), anything, [0]),
        ("needs an older engine", GOOD, {"engine": 2}, [0]),
        ("the most pixels but 91 that two sides can have", forge(two_sides(4095, 90)), {}, [0]),
        ("for the one side at hand", GOOD, {"resolutions": [64]}, [0]),
        ("for two of three sides at hand", forge(two_sides(96, 64)), SIDES, [0]),
    ]


def bad_container() -> list[tuple]:
    """Check 1."""
    header = text(document())
    return [
        ("empty", b"", {}, "truncated"),
        ("15 bytes", GOOD[:15], {}, "truncated"),
        ("ends inside the header", GOOD[:100], {}, "truncated"),
        ("ends inside the signature", GOOD[: 16 + len(header) + 64], {}, "truncated"),
        ("magic of version 2", forge(magic=b"PDPATCH2"), {}, "magic"),
        ("magic in small letters", forge(magic=b"pdpatch1"), {}, "magic"),
        ("header of 1 byte", forge(b"1"), {}, "header_length"),
        ("header of 65,537 bytes", forge(header_bytes=65_537), {}, "header_length"),
        ("header of 2^32 - 1 bytes", forge(header_bytes=2**32 - 1), {}, "header_length"),
        ("byte 13 set", forge(reserved=b"\1\0\0"), {}, "reserved"),
        ("byte 14 set", forge(reserved=b"\0\1\0"), {}, "reserved"),
        ("byte 15 set", forge(reserved=b"\0\0\x80"), {}, "reserved"),
        ("five signatures", forge(signers=(0, 1, 2, 3, 4)), {}, "signature_count"),
        ("255 signatures", forge(count=255), {}, "signature_count"),
        ("order: magic before header length", forge(b"1", magic=bytes(8)), {}, "magic"),
        (
            "order: header length before reserved",
            forge(header_bytes=0, reserved=b"\1\1\1"),
            {},
            "header_length",
        ),
        (
            "order: reserved before count",
            forge(reserved=b"\1\1\1", count=5),
            {},
            "reserved",
        ),
        ("order: count before truncated", forge(count=5)[:16], {}, "signature_count"),
    ]


def bad_signatures() -> list[tuple]:
    """Check 2."""
    header = text(document())
    at = 16 + len(header)
    signature = GOOD[at + 1 : at + 65]
    shifted = int.from_bytes(signature[32:], "little") + ORDER
    malleable = signature[:32] + shifted.to_bytes(32, "little")

    def carrying(one: bytes, index: int = 0) -> bytes:
        return GOOD[:at] + bytes([index]) + one + PAYLOAD

    changed = GOOD.replace(b'"classes":5', b'"classes":6')
    stripped = GOOD[:12] + bytes(4) + header + PAYLOAD
    second = forge(signers=(0, 1))
    second = second[:-8] + bytes([second[-8] ^ 1]) + second[-7:]
    return [
        ("unsigned", forge(signers=()), {}, "unsigned"),
        ("signature stripped", stripped, {}, "unsigned"),
        ("count set to 0", forge(count=0), {}, "unsigned"),
        ("key index past the list", carrying(signature, 5), {}, "key_unknown"),
        ("key index 255", carrying(signature, 255), {}, "key_unknown"),
        ("key revoked", GOOD, REVOKED, "key_unknown"),
        ("no key trusted", GOOD, {"trusted": None}, "key_unknown"),
        (
            "no key trusted, unsigned allowed",
            GOOD,
            {"trusted": None, "allow_unsigned": True},
            "key_unknown",
        ),
        ("one key twice", forge(signers=(0, 0)), {}, "key_repeated"),
        ("one key twice, threshold 2", forge(signers=(0, 1, 0)), TWO, "key_repeated"),
        ("signature of zeros", carrying(bytes(64)), {}, "signature"),
        ("signature with S + group order", carrying(malleable), {}, "signature"),
        ("signed by another key", carrying(signature, 1), {}, "signature"),
        (
            "signed without the context",
            carrying(KEYS[0].sign(message(header)[len(CONTEXT) :])),
            {},
            "signature",
        ),
        (
            "signed without the length",
            carrying(KEYS[0].sign(CONTEXT + b"PDPATCH1" + header)),
            {},
            "signature",
        ),
        ("header changed after signing", changed, {}, "signature"),
        ("second signature damaged, threshold 1", second, {}, "signature"),
        ("one signature, threshold 2", GOOD, TWO, "threshold"),
        (
            "one signature, threshold 2, unsigned allowed",
            GOOD,
            {**TWO, "allow_unsigned": True},
            "threshold",
        ),
        (
            "order: signature before header",
            forge(b"not JSON", signers=())[:12] + b"\1\0\0\0not JSON\0" + bytes(64),
            {},
            "signature",
        ),
        ("order: threshold before header", forge(b"not JSON"), TWO, "threshold"),
    ]


def bad_texts() -> list[tuple]:
    """Check 3, "header_text": what is not canonical, validly signed."""
    good = text(document())

    def swapped(old: bytes, new: bytes) -> bytes:
        assert good.count(old) == 1
        return forge(good.replace(old, new))

    files = {
        "not JSON": forge(b"not JSON"),
        "zero bytes": forge(bytes(10)),
        "space after a colon": swapped(b'"classes":5', b'"classes": 5'),
        "newline at the end": forge(good + b"\n"),
        "two documents": forge(good + good),
        "a bracket too many": forge(good + b"}"),
        "a bracket missing": forge(good[:-1]),
        "keys out of order": swapped(
            b'"classes":5,"encoding":"parts-1"', b'"encoding":"parts-1","classes":5'
        ),
        "a key twice": swapped(b'"classes":5', b'"classes":5,"classes":5'),
        "a key twice, different values": swapped(b'"classes":5', b'"classes":6,"classes":5'),
        "exponent": swapped(b'"classes":5', b'"classes":5e0'),
        "fraction": swapped(b'"classes":5', b'"classes":5.0'),
        "minus zero": swapped(b'"expires":0', b'"expires":-0'),
        "negative": swapped(b'"sequence":7', b'"sequence":-7'),
        "leading zero": swapped(b'"classes":5', b'"classes":05'),
        "plus sign": swapped(b'"classes":5', b'"classes":+5'),
        "NaN": swapped(b'"classes":5', b'"classes":NaN'),
        "true": swapped(b'"classes":5', b'"classes":true'),
        "null": swapped(b'"classes":5', b'"classes":null'),
        "integer 2^53": swapped(b'"sequence":7', b'"sequence":9007199254740992'),
        "integer 2^64 + 7": swapped(b'"sequence":7', b'"sequence":18446744073709551623'),
        "integer 10^400": swapped(b'"sequence":7', b'"sequence":1' + b"0" * 400),
        "escaped letter": swapped(b'"flowers"', b'"\\u0066lowers"'),
        "escaped solidus": swapped(b'"flowers"', b'"flow\\/ers"'),
        "letter beyond ASCII": swapped(b'"flowers"', '"blümen"'.encode()),
        "byte order mark": forge(b"\xef\xbb\xbf" + good),
        "control character": swapped(b'"flowers"', b'"flow\ters"'),
        "zero byte in a string": swapped(b'"flowers"', b'"flow\0ers"'),
        "delete character": swapped(b'"flowers"', b'"flow\x7fers"'),
        "comma at the end of a list": swapped(b"[[0,3]]", b"[[0,3],]"),
        "nine levels": swapped(b"[[0,3]]", b"[" * 8 + b"]" * 8),
        "string without an end": forge(good[:-2] + b"}"),
    }
    return [(f"header text: {name}", data, {}, "header_text") for name, data in files.items()]


def bad_fields() -> list[tuple]:
    """Check 3, "header_field": canonical, validly signed, against a rule."""
    digest = sha(b"result")
    hashes = {"64": digest}
    sides = list(range(1, 18))
    documents = {
        "a list": [1],
        "a number": 12,
        "unknown key": document(zebra=1),
        "key missing": document(engine=None),
        "format 2": document(format=2),
        "format 2 with other keys": {"format": 2},
        "unknown encoding": document(encoding="parts-2"),
        "classes as text": document(classes="5"),
        "1 class": document(classes=1),
        "65,537 classes": document(classes=65_537),
        "engine 0": document(engine=0),
        "engine 2^31": document(engine=2**31),
        "expires as text": document(expires="0"),
        "sequence 0": document(sequence=0),
        "task empty": document(task=""),
        "task of 65 characters": document(task="a" * 65),
        "task with a capital": document(task="Flowers"),
        "task with a path": document(task="../flowers"),
        "task as a number": document(task=5),
        "base as text": document(base=sha(b"base")),
        "base of 0 bytes": document(base={"bytes": 0, "sha256": sha(b"base")}),
        "base hash in capitals": document(base={"bytes": 1000, "sha256": "A" * 64}),
        "base hash of 63 digits": document(base={"bytes": 1000, "sha256": "a" * 63}),
        "base hash missing": document(base={"bytes": 1000}),
        "base with a path": document(base={"bytes": 1000, "path": "a", "sha256": sha(b"base")}),
        "payload of 0 bytes": document(payload={"bytes": 0, "sha256": sha(b"")}),
        "payload of 8 MiB + 1": document(payload={"bytes": 2**23 + 1, "sha256": sha(PAYLOAD)}),
        "no resolution": document(resolutions=[], results={"onnx": {}}),
        "a resolution twice": document(resolutions=[64, 64]),
        "resolution 0": document(resolutions=[0], results={"onnx": {"0": digest}}),
        "resolution 4097": document(resolutions=[4097], results={"onnx": {"4097": digest}}),
        "17 resolutions": document(
            resolutions=sides, results={"onnx": {str(px): digest for px in sides}}
        ),
        "sides of 2^24 + 90 pixels together": two_sides(4095, 91),
        "a side of 4096 and another": two_sides(4096, 1),
        "sixteen sides of 1040 to 1025": two_sides(*range(1040, 1024, -1)),
        "no runtime": document(results={}),
        "9 runtimes": document(results={f"r{k}": hashes for k in range(9)}),
        "runtime with a capital": document(results={"ONNX": hashes}),
        "runtime without a name": document(results={"": hashes}),
        "runtime of 33 characters": document(results={"a" * 33: hashes}),
        "result of a resolution missing": document(resolutions=[64, 96], results={"onnx": hashes}),
        "result of another resolution": document(results={"onnx": {**hashes, "96": digest}}),
        "resolution with a leading zero": document(results={"onnx": {"064": digest}}),
        "result hash as a number": document(results={"onnx": {"64": 1}}),
        "no site": document(sites=[]),
        "a run of 0 slots": document(sites=[[0, 0]]),
        "runs that touch": document(sites=[[0, 3], [3, 1]]),
        "runs that overlap": document(sites=[[0, 3], [2, 4]]),
        "runs out of order": document(sites=[[5, 1], [0, 3]]),
        "a run past 2^31 - 1": document(sites=[[2**31 - 2, 2]]),
        "a run of 2^53 - 1 slots": document(sites=[[0, 2**53 - 1]]),
        "a run of three numbers": document(sites=[[0, 3, 1]]),
        "a run that is a number": document(sites=[0]),
    }
    return [
        (f"header field: {name}", forge(text(one)), {}, "header_field")
        for name, one in documents.items()
    ]


def bad_payload_place_time() -> list[tuple]:
    """Checks 4 to 6."""
    other = {"bytes": 1000, "sha256": OTHER_HASH}
    longer = {"bytes": 1001, "sha256": sha(b"base")}
    files = [
        ("payload missing", GOOD[: -len(PAYLOAD)], {}, "length"),
        ("payload one byte short", GOOD[:-1], {}, "length"),
        ("one byte follows", GOOD + b"\0", {}, "length"),
        ("a file appended", GOOD + GOOD, {}, "length"),
        ("payload changed", GOOD[:-1] + b"D", {}, "payload_hash"),
        ("runtime not among the results", GOOD, {"runtime": "tflite"}, "runtime"),
        ("needs a newer engine", forge(document(engine=2)), {}, "engine"),
        ("another base", forge(document(base=other)), {}, "base"),
        ("a base of another length", forge(document(base=longer)), {}, "base"),
        ("another task", forge(document(task="food")), {}, "task"),
        ("a side that is not at hand", forge(two_sides(96, 48)), SIDES, "resolution"),
        ("the first side not at hand", forge(two_sides(97, 64)), SIDES, "resolution"),
        ("no side at hand", GOOD, {"resolutions": []}, "resolution"),
        ("older than the floor", forge(document(sequence=6)), {}, "sequence"),
        ("expires now", forge(document(expires=2_000_000_000)), {}, "expired"),
        ("expired long ago", forge(document(expires=1)), {}, "expired"),
    ]
    failing = [
        ("length before payload hash", {"payload": {"bytes": 8, "sha256": OTHER_HASH}}, "length"),
        (
            "payload hash before runtime",
            {"payload": {"bytes": 7, "sha256": OTHER_HASH}},
            "payload_hash",
        ),
        ("runtime before engine", {"results": {"coreml": {"64": OTHER_HASH}}}, "runtime"),
        ("engine before base", {"engine": 2}, "engine"),
        ("base before task", {"base": other}, "base"),
        ("task before resolution", {"task": "food"}, "task"),
        ("resolution before sequence", {}, "resolution"),
        ("sequence before expiry", {"sequence": 6}, "sequence"),
    ]
    changes: dict = {"expires": 1}
    cases: list[tuple] = []
    for name, change, code in reversed(failing):
        changes = {**changes, **change}
        policy = {} if code == "sequence" else {"resolutions": []}
        cases.append((f"order: {name}", forge(document(**changes)), policy, code))
    return files + cases[::-1]


def padded() -> list[dict]:
    """Files that end in many zeros, which the JSON counts instead of holding them."""
    room = CAP_BYTES - len(GOOD)
    return [
        entry("the longest file that is looked at", GOOD, {}, "length") | {"zeros": room},
        entry("one byte longer than any file", GOOD, {}, "too_large") | {"zeros": room + 1},
        entry("order: length before magic", bytes(8), {}, "too_large") | {"zeros": CAP_BYTES},
        entry("header of 65,536 bytes", forge(b"[" * 65_536)[:16], {}, "truncated"),
    ]


def entry(name: str, data: bytes, policy: dict, code: str) -> dict:
    return {
        "name": name,
        "file": base64.b64encode(data).decode("ascii"),
        "policy": policy,
        "code": code,
    }


def make_vectors() -> dict:
    good = [
        entry(name, data, policy, "ok") | {"signed_by": signed_by}
        for name, data, policy, signed_by in good_files()
    ]
    bad = bad_container() + bad_signatures() + bad_texts() + bad_fields() + bad_payload_place_time()
    return {
        "about": "Patch files for readers in any language; see docs/patch-format.md. The keys are "
        "TEST KEYS: their seeds stand here, so anyone can sign with them. Never trust them.",
        "format": 1,
        "test_key_seeds": [seed.hex() for seed in SEEDS],
        "policy": POLICY,
        "container": good + [entry(*one) for one in bad] + padded(),
    }


def encode(vectors: dict) -> str:
    return json.dumps(vectors, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(encode(make_vectors()))
