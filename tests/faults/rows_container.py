"""Rows 1, 2 and 4 of the fault table: bytes that nobody signed, and signatures that do not count.

Each function tries one row at a scale and says what it tried; anything that does not hold raises.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
from container_cases import (
    GOOD,
    KEYS,
    ORDER,
    PAYLOAD,
    TRUSTED,
    document,
    forge,
    message,
    text,
    try_mutants,
    verdict,
)
from fault_cases import POLICY, make_subject, open_verdict
from tried import Progress, Told, Verdicts, in_processes, scaled

from patchdeploy.patchfile import Policy
from patchdeploy.patchfile.keys import TrustedKeys, verify_signature

WYCHEPROOF = Path(__file__).resolve().parents[1] / "patchfile" / "wycheproof_ed25519.json"
MUTANTS = 1_000_000
MOST_EXTRA = 4096
DEVELOPMENT = replace(POLICY, allow_unsigned=True)


def try_bit_flips(scale: float, progress: Progress) -> Told:
    """Row 1: every bit of a patch that decodes, then random mutants of a signed file."""
    flips = flip_bits(1 if scale >= 1 else round(1 / scale))
    mutants: Counter[str] = Counter()
    for one in in_processes(try_mutants, scaled(MUTANTS, scale), 100, progress):
        mutants += one
    if mutants["ok"]:
        raise AssertionError(f"{mutants['ok']} mutants were taken")
    same = mutants.pop("same", 0)
    return Told(
        f"{flips.count // 2:,} bits of a {len(make_subject('tiny').data):,}-byte patch, each under "
        f"two policies; {mutants.total():,} random mutants of a signed file (and {same:,} that "
        "came out as the file itself)",
        f"0 taken, 0 other errors; {len(flips.codes | mutants)} codes",
        flips.count + mutants.total(),
    )


def flip_bits(step: int) -> Verdicts:
    """Verdicts on a patch with one bit flipped, each ``step``-th in turn.

    Raises:
        AssertionError: one was taken.
    """
    subject = make_subject("tiny")
    assert open_verdict(subject.data, subject.table) == "ok"
    seen = Verdicts()
    for place in range(0, 8 * len(subject.data), step):
        changed = bytearray(subject.data)
        changed[place // 8] ^= 1 << place % 8
        for policy in (POLICY, DEVELOPMENT):
            code = open_verdict(bytes(changed), subject.table, policy)
            if code == "ok":
                raise AssertionError(f"bit {place} flipped was taken")
            seen.codes[code] += 1
    return seen


def try_lengths(scale: float, progress: Progress) -> Told:
    """Row 2: every truncation of a signed and an unsigned patch, every extension by three tails."""
    subject = make_subject("tiny")
    table = subject.table
    unsigned = forge(text(dict(subject.fields)), subject.payload, signers=())
    assert open_verdict(unsigned, table, DEVELOPMENT) == "ok"
    seen = Verdicts()
    step = 1 if scale >= 1 else round(1 / scale)
    for file in (subject.data, unsigned):
        for end in range(0, len(file), step):
            code = open_verdict(file[:end], table, DEVELOPMENT)
            seen.expect(code, {"truncated", "length"}, f"cut at {end}")
    cuts = seen.count
    noise = np.random.default_rng(2).integers(0, 256, MOST_EXTRA, np.uint8).tobytes()
    again = (subject.data * (MOST_EXTRA // len(subject.data) + 1))[:MOST_EXTRA]
    for tail in (bytes(MOST_EXTRA), noise, again):
        for extra in range(1, MOST_EXTRA + 1, step):
            code = open_verdict(subject.data + tail[:extra], table)
            seen.expect(code, "length", f"{extra} bytes more")
        progress(seen.count / (cuts + 3 * MOST_EXTRA))
    return Told(
        f"{cuts:,} lengths of a signed and an unsigned patch; 1 to {MOST_EXTRA:,} bytes more, of "
        f"zeros, noise and the file again ({seen.count - cuts:,})",
        seen.listed(),
        seen.count,
    )


def try_signatures(scale: float, progress: Progress) -> Told:
    """Row 4: Wycheproof's vectors, then wrong, repeated, moved, short and malleable signatures."""
    vectors = _try_wycheproof()
    seen = Verdicts()
    for attempt in (_try_keys, _try_thresholds, _try_coverage, _try_signature_bytes):
        attempt(seen)
    return Told(
        f"{vectors} vectors of Wycheproof; {seen.count:,} files: every wrong and revoked key, "
        "repeated keys, thresholds, signatures over less or other bytes, every bit of a signature",
        f"Wycheproof's verdicts; {seen.listed()}",
        vectors + seen.count,
    )


def _try_wycheproof() -> int:
    tests = json.loads(WYCHEPROOF.read_text())["tests"]
    for one in tests:
        key, signature, signed = (bytes.fromhex(one[name]) for name in ("key", "sig", "msg"))
        valid = one["result"] == "valid"
        assert verify_signature(key, signature, signed) == valid, f"vector {one['tcId']}"
    assert len(tests) == 151
    return len(tests)


def _try_keys(seen: Verdicts) -> None:
    """A file of every key, read with every list of one key, and with every key revoked."""
    count = len(KEYS)
    for signer in range(count):
        file = forge(signers=(signer,))
        for pinned in range(count):
            keys = tuple(KEYS[pinned].public if k == signer else None for k in range(count))
            expected = "ok" if pinned == signer else "signature"
            policy = Policy(TrustedKeys(keys, 1))
            seen.expect(verdict(file, policy), expected, f"key {signer} under {pinned}")
            rest = tuple(None if k == pinned else key.public for k, key in enumerate(KEYS))
            expected = "key_unknown" if pinned == signer else "ok"
            policy = Policy(TrustedKeys(rest, 1))
            seen.expect(verdict(file, policy), expected, f"key {signer}, {pinned} revoked")
        shorter = Policy(TrustedKeys(tuple(key.public for key in KEYS[: max(signer, 1)]), 1))
        seen.expect(verdict(file, shorter), "ok" if signer == 0 else "key_unknown", signer)
    seen.expect(verdict(GOOD, Policy(None)), "key_unknown", "no trusted key")


def _try_thresholds(seen: Verdicts) -> None:
    """Each ordered choice of 1 to 4 of four keys under each threshold; then one key twice."""
    for count in range(1, 5):
        for signers in permutations(range(4), count):
            file = forge(signers=signers)
            for threshold in range(1, 5):
                policy = Policy(TrustedKeys(TRUSTED.keys, threshold))
                expected = "ok" if count >= threshold else "threshold"
                seen.expect(verdict(file, policy), expected, (signers, threshold))
    for signers in ((0, 0), (0, 1, 0), (2, 2, 2, 2), (0, 1, 1, 0)):
        for threshold in range(1, 5):
            policy = Policy(TrustedKeys(TRUSTED.keys, threshold))
            seen.expect(verdict(forge(signers=signers), policy), "key_repeated", signers)
    for count in (5, 6, 255):
        file = forge(signers=(0,), count=count)
        seen.expect(verdict(file, POLICY), "signature_count", count)
    seen.expect(verdict(forge(signers=()), POLICY), "unsigned", "no signature")


def _try_coverage(seen: Verdicts) -> None:
    """Signatures by a trusted key over anything but the message that is due."""
    header, other = text(document()), text(document(sequence=8))
    due = message(header)
    context = due[: due.index(b"PDPATCH1")]
    candidates = {
        "nothing": b"",
        "the header alone": header,
        "no context": due[len(context) :],
        "no context's zero": due.replace(b"\0", b"", 1),
        "the start alone": due[: len(context) + 12],
        "the header's hash": hashlib.sha256(header).digest(),
        "the count byte too": context + GOOD[:16] + header,
        "the payload too": due + PAYLOAD,
        "another header": message(other),
        **{f"all but the last {k}": due[:-k] for k in range(1, len(header) + 1)},
        **{f"all but the first {k}": due[k:] for k in range(1, len(context) + 13)},
    }
    for what, signed in candidates.items():
        file = _with_signature(header, KEYS[0].sign(signed))
        seen.expect(verdict(file, POLICY), "signature", f"signed {what}")
    seen.expect(verdict(_with_signature(header, KEYS[0].sign(due)), POLICY), "ok", "the message")


def _try_signature_bytes(seen: Verdicts) -> None:
    """Every bit of the entry, S plus the group's order, R and S of other messages."""
    header = text(document())
    good = KEYS[0].sign(message(header))
    for bit in range(8 * 64):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        file = _with_signature(header, bytes(changed))
        seen.expect(verdict(file, POLICY), "signature", f"bit {bit} of the signature")
    for index in range(1, 256):
        expected = "signature" if index < len(KEYS) else "key_unknown"
        seen.expect(verdict(_with_signature(header, good, index), POLICY), expected, index)
    scalar = int.from_bytes(good[32:], "little")
    for times in range(1, 16):
        more = scalar + times * ORDER
        if more < 2**256:
            file = _with_signature(header, good[:32] + more.to_bytes(32, "little"))
            seen.expect(verdict(file, POLICY), "signature", f"S + {times} L")
    other = KEYS[0].sign(message(text(document(sequence=8))))
    for mixed in (good[:32] + other[32:], other[:32] + good[32:], bytes(64), good[::-1]):
        file = _with_signature(header, mixed)
        seen.expect(verdict(file, POLICY), "signature", "parts of two signatures")


def _with_signature(header: bytes, signature: bytes, index: int = 0) -> bytes:
    start = b"PDPATCH1" + len(header).to_bytes(4, "little") + b"\1\0\0\0"
    return start + header + bytes([index]) + signature + PAYLOAD
