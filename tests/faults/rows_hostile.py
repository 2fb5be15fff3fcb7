"""Row 3 of the fault table: hostile files of a signer whose key is trusted.

Headers, payloads and single parts are mutated and signed again, so every hash and signature is
right. A verdict must be a typed error or a sound patch, in bounded time and memory.
"""

from __future__ import annotations

import resource
import time
import tracemalloc
import zlib
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from container_cases import forge, mutant
from container_cases import text as canonical_text
from fault_cases import (
    Subject,
    join_parts,
    make_subject,
    open_verdict,
    sign_payload,
    store_part,
)
from tried import Progress, Told, in_processes, scaled

from patchdeploy.patchfile.parts import PARTS

MUTANTS = 1_000_000
MOST_CPU_SECONDS = 0.25
"""Of one verdict. An honest one takes 1 to 2 ms; the slowest text of 64 kB some 10 ms; the rest is
for the machine."""
REPEATS = 3
"""Of a bomb's verdict, the quickest counts: what a busy host takes from its guest is charged to the
program that ran."""
MOST_BYTES = 16 * 2**20
"""What a verdict may hold beside the file: the goal of docs/faults.md."""
BOMB_BYTES = 2**28
NOTES_BYTES = 2**18
"""The longest notes: docs/patch-format.md."""


@dataclass
class Cost:
    """What many verdicts took.

    Attributes:
        codes: how often each was given.
        slowest_seconds: processor time of the slowest.
        growth_bytes: how much the peak of the process's memory grew over all of them.
    """

    codes: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    growth_bytes: int = 0

    def add(self, other: Cost) -> None:
        """Both together."""
        self.codes += other.codes
        self.slowest_seconds = max(self.slowest_seconds, other.slowest_seconds)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)


def try_signed_mutants(count: int, seed: int) -> Cost:
    """Verdicts on ``count`` mutants: headers, payloads and parts in turn, each validly signed."""
    rng = np.random.default_rng(seed)
    subject = make_subject("tiny", 1, ("dw",))
    assert open_verdict(subject.data, subject.table) == "ok"
    cost = Cost()
    before = _peak_bytes()
    for number in range(count):
        data = MAKERS[number % len(MAKERS)](rng, subject)
        start = time.thread_time()
        code = open_verdict(data, subject.table)
        cost.slowest_seconds = max(cost.slowest_seconds, time.thread_time() - start)
        cost.codes[code] += 1
    cost.growth_bytes = _peak_bytes() - before
    return cost


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mutate_header(rng: np.random.Generator, subject: Subject) -> bytes:
    header = mutant(rng, canonical_text(dict(subject.fields)))[:65_536]
    return forge(header, subject.payload)


def _mutate_field(rng: np.random.Generator, subject: Subject) -> bytes:
    """A header that parses, with one field of another value."""
    fields = dict(subject.fields)
    name = rng.choice([*fields])
    fields[name] = HOSTILE_FIELDS[rng.integers(len(HOSTILE_FIELDS))]
    return forge(canonical_text(fields)[:65_536], subject.payload)


def _mutate_payload(rng: np.random.Generator, subject: Subject) -> bytes:
    """The deflated payload as it was packed."""
    return sign_payload(subject, mutant(rng, subject.payload) or b"\0")


def _mutate_part(rng: np.random.Generator, subject: Subject) -> bytes:
    """One part's content, in a payload whose lengths are right again."""
    name = PARTS[rng.integers(len(PARTS))]
    contents = {**subject.parts, name: mutant(rng, subject.parts[name] or b"\0")}
    return sign_payload(subject, join_parts(contents))


def _mutate_content(rng: np.random.Generator, subject: Subject) -> bytes:
    """One part's bytes without changing its length: what decoding itself must refuse."""
    name = PARTS[rng.integers(len(PARTS))]
    changed = bytearray(subject.parts[name])
    for _ in range(rng.integers(1, 5)):
        if changed:
            changed[rng.integers(len(changed))] = rng.integers(256)
    return sign_payload(subject, join_parts({**subject.parts, name: bytes(changed)}))


HOSTILE_FIELDS = (
    *(0, 1, 2, 65_536, 2**31 - 1, 2**31, 2**53 - 1, "", "first", "0" * 64, [], [0], [[0, 1]]),
    *([[0, 2**31 - 1]], [[2**31 - 2, 1]], {}, {"bytes": 1, "sha256": "0" * 64}, [16], [4096, 1]),
    {"onnx": {}},
)
MAKERS = (_mutate_header, _mutate_field, _mutate_payload, _mutate_part, _mutate_content)


def try_hostile(scale: float, progress: Progress) -> Told:
    """Row 3: the mutants, then bombs and texts made to cost as much as they can."""
    total = Cost()
    for one in in_processes(try_signed_mutants, scaled(MUTANTS, scale), 3000, progress):
        total.add(one)
    assert total.slowest_seconds < MOST_CPU_SECONDS, f"slowest verdict {total.slowest_seconds} s"
    assert total.growth_bytes < MOST_BYTES, f"memory grew by {total.growth_bytes} bytes"
    bombs = try_bombs(BOMB_BYTES if scale >= 1 else 2**22)
    assert bombs.slowest_seconds < MOST_CPU_SECONDS, f"slowest bomb {bombs.slowest_seconds} s"
    told = ", ".join(f"{code} {count:,}" for code, count in total.codes.most_common())
    return Told(
        f"{total.codes.total():,} signed mutants of headers, fields, payloads, parts and their "
        f"contents; {bombs.count} bombs and costly texts",
        f"{told}; every patch that was taken is sound; slowest verdict "
        f"{1000 * total.slowest_seconds:.0f} ms of processor time (bombs "
        f"{1000 * bombs.slowest_seconds:.0f} ms); a process's peak memory (that "
        f"of its start included) grew by {total.growth_bytes / 2**20:.1f} MiB, a bomb allocated "
        f"{bombs.peak_bytes / 2**20:.1f} MiB beside the file",
        total.codes.total() + bombs.count,
    )


@dataclass
class BombCost:
    """What files that were made to cost much did cost."""

    count: int = 0
    slowest_seconds: float = 0.0
    peak_bytes: int = 0


def try_bombs(bomb_bytes: int) -> BombCost:
    """Verdicts on deflate bombs in every part, and on texts of the greatest length.

    Args:
        bomb_bytes: what a bomb inflates to.
    """
    subject = make_subject("tiny")
    cost = BombCost()
    for what, data in {**_bombs(subject, bomb_bytes), **_texts(subject)}.items():
        code = open_verdict(data, subject.table)
        seconds = min(_verdict_seconds(data, subject) for _ in range(REPEATS))
        tracemalloc.start()
        again = open_verdict(data, subject.table)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert again == code, f"{what}: {code}, then {again}"
        assert (code == "ok") == what.startswith("sound"), f"{what}: {code}"
        assert peak - len(data) < MOST_BYTES, f"{what} took {peak} bytes"
        cost.count += 1
        cost.slowest_seconds = max(cost.slowest_seconds, seconds)
        cost.peak_bytes = max(cost.peak_bytes, peak)
    return cost


def _verdict_seconds(data: bytes, subject: Subject) -> float:
    start = time.thread_time()
    open_verdict(data, subject.table)
    return time.thread_time() - start


def _bombs(subject: Subject, bomb_bytes: int) -> dict[str, bytes]:
    """In each part zeros without end: told, told as u32's greatest, and hidden."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    chunk = bytes(2**20)
    body = b"".join(packer.compress(chunk) for _ in range(bomb_bytes // 2**20)) + packer.flush()
    files = {}
    for index, name in enumerate(PARTS):
        for what, length in (
            ("told", bomb_bytes),
            ("told short", len(subject.parts[name])),
            ("told as u32's greatest", 2**32 - 1),
        ):
            parts = [store_part(k, subject.parts[one]) for k, one in enumerate(PARTS)]
            parts[index] = store_part(index, body, 1, length)
            payload = b"".join(parts)
            if len(payload) <= 8 * 2**20:
                files[f"{name}: a bomb {what}"] = sign_payload(subject, payload)
    return files


def _texts(subject: Subject) -> dict[str, bytes]:
    """Headers, notes and labels of the greatest length, of one thing; some of the notes sound."""
    headers = {
        "open lists": b"[" * 65_536,
        "open objects": (b'{"a":' * 14_000)[:65_536],
        "digits": b"9" * 65_536,
        "a string": b'"' + b"a" * 65_534 + b'"',
        "sites": _many_sites(subject),
    }
    notes = {
        "open lists": b"[" * NOTES_BYTES,
        "open objects": b'{"a":' * (NOTES_BYTES // 5),
        "digits": b"9" * NOTES_BYTES,
        "numbers in a list": b"[" + b"1e9," * (NOTES_BYTES // 4 - 1) + b"1]",
        "escapes": b'"' + b"\\u0000" * (NOTES_BYTES // 6 - 1) + b'"',
        "a byte too much": b'{"a":"' + b"a" * (NOTES_BYTES - 7) + b'"}',
    }
    sound = {
        "objects": b'{"a":[' + b"{}," * (NOTES_BYTES // 3 - 4) + b"{}]}",
        "lists": b'{"a":[' + b"[]," * (NOTES_BYTES // 3 - 4) + b"[]]}",
        "keys": b"{" + b",".join(b'"%x":{}' % k for k in range(25_000)) + b"}",
    }
    assert all(len(one) <= NOTES_BYTES for one in sound.values())
    labels = {"empty": bytes(2**20), "not UTF-8": b"\xff\xff" + b"\xff" * 2**16}
    files = {f"header of {what}": forge(one, subject.payload) for what, one in headers.items()}
    for part, texts in (("notes", notes), ("labels", labels)):
        for what, content in texts.items():
            contents = {**subject.parts, part: content}
            files[f"{part} of {what}"] = sign_payload(subject, join_parts(contents))
    for what, content in sound.items():
        contents = {**subject.parts, "notes": content}
        files[f"sound notes of {what}"] = sign_payload(subject, join_parts(contents))
    return files


def _many_sites(subject: Subject) -> bytes:
    """As many runs as a header holds: each is looked at once."""
    sites = [[2 * k, 1] for k in range(4500)]
    header = canonical_text({**subject.fields, "sites": sites})
    assert len(header) <= 65_536
    return header
