"""Patch files forged byte by byte, from docs/patch-format.md alone and past every check of ours.

The layout stands here in plain numbers: a mistake in the package's own constants shows. The keys
are TEST KEYS: their seeds are public, so anyone can sign with them.
"""

import hashlib
import json
import struct
from collections import Counter

import numpy as np
from hypothesis import strategies as st

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import Policy, check_patch_file
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.keys import SigningKey, TrustedKeys

SEEDS = tuple(hashlib.sha256(b"patchdeploy test key %d" % k).digest() for k in range(5))
KEYS = tuple(SigningKey.from_seed(seed) for seed in SEEDS)
TRUSTED = TrustedKeys(tuple(key.public for key in KEYS), 1)
PAYLOAD = b"payload"
CONTEXT = b"patchdeploy patch file, version 1\0"
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of Ed25519's group (RFC 8032, 5.1)."""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def document(**changes) -> dict:
    """A header that every check takes, with some fields replaced; None takes one away."""
    fields = {
        "base": {"bytes": 1000, "sha256": sha(b"base")},
        "classes": 5,
        "encoding": "parts-1",
        "engine": 1,
        "expires": 0,
        "format": 1,
        "payload": {"bytes": len(PAYLOAD), "sha256": sha(PAYLOAD)},
        "resolutions": [64],
        "results": {"onnx": {"64": sha(b"result")}},
        "sequence": 7,
        "sites": [[0, 3]],
        "task": "flowers",
    }
    return {key: one for key, one in {**fields, **changes}.items() if one is not None}


def text(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def message(header: bytes) -> bytes:
    return CONTEXT + b"PDPATCH1" + struct.pack("<I", len(header)) + header


def forge(
    header: bytes | dict | None = None,
    payload: bytes = PAYLOAD,
    signers: tuple[int, ...] = (0,),
    *,
    magic: bytes = b"PDPATCH1",
    header_bytes: int | None = None,
    count: int | None = None,
    reserved: bytes = bytes(3),
) -> bytes:
    """A file with any header, signed with `KEYS` at their own indices."""
    if header is None:
        header = document()
    if isinstance(header, dict):
        header = text(header)
    entries = [bytes([index]) + KEYS[index].sign(message(header)) for index in signers]
    start = magic + struct.pack("<I", len(header) if header_bytes is None else header_bytes)
    number = bytes([len(signers) if count is None else count])
    return start + number + reserved + header + b"".join(entries) + payload


GOOD = forge()


def make_header(payload: bytes = PAYLOAD, **changes) -> PatchHeader:
    fields = {
        "task": "flowers",
        "base_sha256": sha(b"base"),
        "base_bytes": 1000,
        "classes": 5,
        "engine": 1,
        "expires": 0,
        "payload_sha256": sha(payload),
        "payload_bytes": len(payload),
        "resolutions": (64,),
        "results": {"onnx": {64: sha(b"result")}},
        "sequence": 7,
        "sites": ((0, 3),),
    }
    return PatchHeader(**{**fields, **changes})


HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAMES = "abcdefghijklmnopqrstuvwxyz0123456789_-"


@st.composite
def headers(draw, payload: bytes = PAYLOAD) -> PatchHeader:
    """Any header that keeps the rules, bounds included."""
    exact = st.integers(1, 2**53 - 1)
    several = st.lists(st.integers(1, 1024), min_size=1, max_size=16, unique=True)  # 2^24 pixels
    sides = draw(st.one_of(several, st.integers(1, 4096).map(lambda px: [px])))
    runtimes = draw(st.lists(st.text(NAMES, min_size=1, max_size=32), min_size=1, max_size=8))
    steps = draw(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1))
    sites, at = [], draw(st.integers(0, 2)) - 1
    for gap, run in steps:
        sites.append((at + gap, run))
        at += gap + run
    return make_header(
        payload,
        task=draw(st.text(NAMES, min_size=1, max_size=64)),
        base_sha256=draw(HASHES),
        base_bytes=draw(exact),
        classes=draw(st.integers(2, 65_536)),
        engine=draw(st.integers(1, 2**31 - 1)),
        expires=draw(st.integers(0, 2**53 - 1)),
        resolutions=tuple(sides),
        results={name: {px: draw(HASHES) for px in sides} for name in runtimes},
        sequence=draw(exact),
        sites=tuple(sites),
    )


def verdict(data: bytes, policy: Policy) -> str:
    """ "ok", or the code; anything but a `PatchRefusedError` passes through and fails the test."""
    try:
        check_patch_file(data, policy)
    except PatchRefusedError as error:
        return error.code
    return "ok"


def mutant(rng: np.random.Generator, data: bytes) -> bytes:
    """``data`` after 1 to 4 random edits: a bit, a byte, a cut, a copy, a swap of two pieces."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        a, b = sorted(int(k) for k in rng.integers(0, len(changed) + 1, 2))
        kind = rng.integers(0, 6)
        if kind == 0 and a < len(changed):
            changed[a] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1 and a < len(changed):
            changed[a] = int(rng.integers(0, 256))
        elif kind == 2:
            del changed[a:b]
        elif kind == 3:
            changed[b:b] = changed[a:b]
        elif kind == 4:
            changed[a:b] = changed[a:b][::-1]
        else:
            changed[a:a] = rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8).tobytes()
    return bytes(changed)


def try_mutants(count: int, seed: int) -> Counter[str]:
    """Verdicts on ``count`` mutants of a signed file, and "same" for one that is the file."""
    rng, policy = np.random.default_rng(seed), Policy(TRUSTED)
    found: Counter[str] = Counter()
    for _ in range(count):
        data = mutant(rng, GOOD)
        found["same" if data == GOOD else verdict(data, policy)] += 1
    return found


def try_signed_mutants(count: int, seed: int) -> Counter[str]:
    """Verdicts on ``count`` mutants of a header, each validly signed."""
    rng, policy, header = np.random.default_rng(seed), Policy(TRUSTED), text(document())
    found: Counter[str] = Counter()
    for _ in range(count):
        data = mutant(rng, header)[:65_536]
        found["same" if data == header else verdict(forge(data), policy)] += 1
    return found
