"""Random patch files, valid and mutated, each with what its reader demands.

In: a number and a seed. Out: files with right and wrong headers, payloads, parts, notes, values,
cascades and signatures, mostly signed by a trusted key, so that a verdict says something about the
check behind it. The makers of the fault rows are among them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import case_folders  # noqa: F401  (adds the folders of the cases)
import numpy as np
from coding_cases import deflated, framed, make_header, part, tiny_table, zeros, zlib_stream
from container_cases import KEYS, TRUSTED, forge, mutant
from fault_cases import make_subject
from rows_hostile import MAKERS

from patchdeploy.coding.table import CodingTable
from patchdeploy.patchfile import Policy
from patchdeploy.patchfile.keys import TrustedKeys
from patchdeploy.patchfile.parts import PARTS, pack_planes

Rng = np.random.Generator


@dataclass(frozen=True)
class PatchCase:
    """A file, the coding table at hand and the reader's demands."""

    data: bytes
    table: CodingTable
    policy: Policy


ODD_NOTES = (
    b' {"a" : [1, 2.5e3, -0, null, true] }\n',
    b'{"a":1,"a":[2]}',
    b'{"a":"\\ud800\\u00e9\\/\\b"}',
    b'{"a":"\xc3\xa9\xf0\x9f\x98\x80"}',
    b'{"a":"\xed\xa0\x80"}',
    b'\xef\xbb\xbf{"a":1}',
    b'{"a":"\t"}',
    b'{"a":"\\x41"}',
    b'{"a":"\\u12g4"}',
    b'{"a":01}',
    b'{"a":1.}',
    b'{"a":.5}',
    b'{"a":-}',
    b'{"a":+1}',
    b'{"a":1e}',
    b'{"a":1E+2,"b":1e-400}',
    b'{"a":1e400}',
    b'{"a":-Infinity}',
    b'{"a":' + b"9" * 308 + b"}",
    b'{"a":' + b"9" * 309 + b"}",
    b'{"a":' + b"9" * 5000 + b"}",
    b'{"a":' + b"[" * 31 + b"]" * 31 + b"}",
    b'{"a":' + b"[" * 32 + b"]" * 32 + b"}",
    b'{"a":' + b"[" * 40 + b"]" * 40 + b',"a":1}',
    b"[" * 5000,
    b"{} {}",
    b'{"a":1,}',
    b"{'a':1}",
    b'{"a" 1}',
    b'"a"',
    b"",
    b"null",
    b'{"\x7f\xc2\x80":"\x7f"}',
)
LABELS = ("", " ", "cat", "dog", "Bär", "犬", "😀", "a" * 300, "\0", "e\u0301", "\u00e9")


def random_cases(count: int, seed: int) -> Iterator[PatchCase]:
    """``count`` files, of each of `KINDS` in turn."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        data, table = KINDS[number % len(KINDS)](rng)
        yield PatchCase(data, table, random_policy(rng) if number % 3 == 0 else Policy(TRUSTED))


def random_policy(rng: Rng) -> Policy:
    """Demands that some files meet and others do not."""

    def one(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    keys = [key.public if rng.random() < 0.9 else None for key in KEYS]
    live = [key for key in keys if key is not None]
    trusted = TrustedKeys(tuple(keys), one(1, 1, 2)) if len(live) > 1 else None
    return Policy(
        one(TRUSTED, TRUSTED, trusted, None),
        allow_unsigned=one(True, False),
        runtime=one(None, None, "onnx", "tflite", "other"),
        task=one(None, None, "task", "first", "other"),
        resolutions=one(None, None, frozenset((16, 24)), frozenset((24,)), frozenset()),
        floor=one(0, 1, 2, 2**53),
        now=one(None, 0, 1000, 2**40),
        engine=one(2, 2, 2, 1),
    )


def _contents(rng: Rng, classes: int, sides: int) -> dict[str, bytes]:
    """Parts over `tiny_table` that decode, mostly."""
    layout = tiny_table().layout
    rows = sides * (layout.rows - layout.head_capacity + classes)

    def small(number: int, most: int) -> bytes:
        return pack_planes(rng.integers(-most, most + 1, number))

    exact = rng.random() < 0.3
    scale_steps = [255] * 4 if exact else rng.integers(0, 13, 4).tolist()
    bias_steps = rng.integers(-12, -4, 4).tolist() if rng.random() < 0.8 else [-128] * 4
    most = 2**20 if exact else 2 ** (9 - max(scale_steps)) if max(scale_steps) < 9 else 0
    labels = [LABELS[k].encode() for k in rng.permutation(len(LABELS))[:classes]]
    images = int(rng.integers(0, 4))
    tolerance = int(rng.integers(0, 256)) if images else 0
    pixels = images * (192 + 2 * sides * classes)
    notes = {"top1": float(rng.random()), "n": [int(rng.integers(2**40)), {"é": None}]}
    return {
        **zeros(classes, sides),
        "labels": b"".join(struct.pack("<H", len(one)) + one for one in labels),
        "notes": json.dumps(notes, ensure_ascii=bool(rng.integers(2))).encode(),
        "steps": bytes(scale_steps) + struct.pack("4b", *bias_steps),
        "activations": rng.bytes(sides * layout.sites) + small(sides * layout.sites, 2**19),
        "scales": small(rows, most),
        "biases": small(rows, 200),
        "kernels": _near_zero(rng, sides * (layout.elements - layout.head_capacity * 3)),
        "head": _near_zero(rng, sides * 3 * classes),
        "golden": bytes([images, tolerance]) + rng.bytes(pixels),
    }


def _near_zero(rng: Rng, count: int) -> bytes:
    return rng.integers(-1, 2, count, np.int8).tobytes()


def _signed(
    rng: Rng, payload: bytes, classes: int, sides: tuple[int, ...], **changes: Any
) -> bytes:
    header = make_header(payload, tiny_table(), classes, sides, **changes)
    signers = tuple(rng.permutation(5)[: rng.integers(1, 5)].tolist())
    if rng.random() < 0.1:
        signers = ((), signers[:1] * 2)[rng.integers(2)]
    return forge(header.to_bytes(), payload, signers)


def _shape(rng: Rng) -> tuple[int, tuple[int, ...]]:
    """Classes, and sides in any order."""
    sides = rng.permutation([24, 16, 64, 1, 100])[: rng.integers(1, 4)].tolist()
    return int(rng.integers(2, 5)), tuple(sides)


def _valid(rng: Rng) -> tuple[bytes, CodingTable]:
    return _payload(rng, {})


def _payload(rng: Rng, changed: dict[str, bytes]) -> tuple[bytes, CodingTable]:
    classes, sides = _shape(rng)
    contents = {**_contents(rng, classes, len(sides)), **changed}
    parts = [_any_form(rng, k, contents[name]) for k, name in enumerate(PARTS)]
    changes: dict[str, Any] = {"sequence": int(rng.integers(1, 4))}
    changes["expires"] = int(rng.choice([0, 0, 1, 1000, 2**41]))
    optional = _optional(rng, len(sides))
    if optional:
        changes |= {"encoding": "parts-2", "engine": 2}
    return _signed(rng, b"".join(parts) + optional, classes, sides, **changes), tiny_table()


def _any_form(rng: Rng, number: int, content: bytes) -> bytes:
    form = rng.integers(3)
    if form == 0:
        return part(number, content)
    stream = deflated(content) if form == 1 else zlib_stream(content)
    return framed(number, 1, len(content), stream)


def _optional(rng: Rng, sides: int) -> bytes:
    """No optional part, a cascade, one that is passed over, one that is not, or several."""
    kind = rng.integers(8)
    passed = part(int(rng.integers(128, 256)), rng.bytes(5))
    if kind < 3:
        return b""
    if kind < 5:
        return part(9, _cascade(rng, sides))
    if kind == 5:
        return part(9, _cascade(rng, sides)) + passed
    return passed if kind == 6 else part(int(rng.integers(9, 140)), rng.bytes(29))


def _cascade(rng: Rng, sides: int) -> bytes:
    """Mostly sound; then perhaps one byte is another."""
    score, count = int(rng.integers(3)), int(rng.integers(1, sides + 1))
    places = rng.permutation(sides)[:count].tolist()
    head = struct.pack(
        "<BBBBB3xIII",
        *(1, score, int(rng.integers(2)), count, int(rng.integers(sides))),
        *(int(rng.integers(1, 10**6)), int(rng.integers(500_000, 10**6)), int(rng.integers(2**32))),
    )
    stages = [
        struct.pack("<BII", k, int(rng.integers(2**31)), int(rng.integers(1, 2**32)) * (score > 0))
        for k in places
    ]
    content = bytearray(head + b"".join([*stages[:-1], struct.pack("<BII", places[-1], 0, 0)]))
    if rng.random() < 0.4:
        content[rng.integers(len(content))] = rng.integers(256)
    return bytes(content)


def _odd_notes(rng: Rng) -> tuple[bytes, CodingTable]:
    notes = ODD_NOTES[rng.integers(len(ODD_NOTES))]
    return _payload(rng, {"notes": mutant(rng, notes or b"{}") if rng.random() < 0.2 else notes})


def _odd_values(rng: Rng) -> tuple[bytes, CodingTable]:
    """Codes and steps anywhere in their range."""
    classes, sides = _shape(rng)
    contents = _contents(rng, classes, len(sides))
    name = ("steps", "scales", "biases", "kernels", "head", "activations")[rng.integers(6)]
    changed = bytearray(contents[name])
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(changed))] = rng.choice([0, 1, 12, 13, 127, 128, 129, 254, 255])
    contents[name] = bytes(changed)
    payload = b"".join(part(k, contents[one]) for k, one in enumerate(PARTS))
    return _signed(rng, payload, classes, sides), tiny_table()


def _ties(rng: Rng) -> tuple[bytes, CodingTable]:
    """Biases half-way between two integers, where rounding and the order of operations show."""
    classes, sides = int(rng.integers(2, 5)), (24,)
    plain = tiny_table()
    rows = plain.layout.rows
    table = replace(
        plain,
        scale=rng.choice([2**-8, 3 * 2**-9], rows).astype(np.float32),
        beta=np.ldexp(rng.integers(-9000, 9001, rows), -15).astype(np.float32),
        slope=rng.integers(-9, 10, rows).astype(np.float32),
    )
    contents = _contents(rng, classes, 1)
    three_halves = rng.integers(2, size=plain.layout.sites) * 0x400000  # of 2^-5
    contents["steps"] = bytes(4) + struct.pack("4b", *[-15] * 4)
    contents["activations"] = bytes(plain.layout.sites) + pack_planes(three_halves)
    contents["scales"] = pack_planes(np.zeros(rows - plain.layout.head_capacity + classes, int))
    payload = b"".join(part(k, contents[one]) for k, one in enumerate(PARTS))
    header = make_header(payload, table, classes, sides)
    return forge(header.to_bytes(), payload, (0,)), table


def _tiny_scales(rng: Rng) -> tuple[bytes, CodingTable]:
    """Activation scales about the least normal float32, alike, so that no other rule refuses."""
    classes, sides = int(rng.integers(2, 5)), (24,)
    table = tiny_table()
    layout = table.layout
    rows, sites = layout.rows - layout.head_capacity + classes, layout.sites
    bits = int(rng.choice([0, 1, 0x7FFFFF, 0x800000, 0x800001]))
    contents = zeros(classes, 1)
    contents["steps"] = bytes(4) + struct.pack("4b", *[-128] * 4)
    contents["activations"] = bytes(sites) + pack_planes(np.full(sites, bits - 0x3D000000))
    contents["scales"] = contents["biases"] = pack_planes(np.zeros(rows, int))
    payload = b"".join(part(k, contents[one]) for k, one in enumerate(PARTS))
    return forge(make_header(payload, table, classes, sides).to_bytes(), payload, (0,)), table


def _odd_frame(rng: Rng) -> tuple[bytes, CodingTable]:
    """One part with another number, method or length, or another stream."""
    classes, sides = _shape(rng)
    contents = _contents(rng, classes, len(sides))
    odd = int(rng.integers(9))
    content = contents[PARTS[odd]]
    method, number, length = int(rng.integers(3)), int(rng.choice([odd, odd + 1, 9, 128])), -1
    length = int(rng.choice([len(content), len(content) + 1, 0, 2**32 - 1, 2**21]))
    body = mutant(rng, zlib_stream(content)) if rng.random() < 0.7 else zlib_stream(content)
    parts = [part(k, contents[one]) for k, one in enumerate(PARTS)]
    parts[odd] = framed(number, method, length, body)
    payload = b"".join(parts) + rng.bytes(int(rng.integers(2)))
    return _signed(rng, payload, classes, sides), tiny_table()


def _odd_file(rng: Rng) -> tuple[bytes, CodingTable]:
    data, table = _valid(rng)
    return mutant(rng, data), table


def _of_fault_row(index: int) -> Callable[[Rng], tuple[bytes, CodingTable]]:
    def make(rng: Rng) -> tuple[bytes, CodingTable]:
        subject = make_subject("tiny", 1, ("dw",))
        return MAKERS[index](rng, subject), subject.table

    return make


KINDS: tuple[Callable[[Rng], tuple[bytes, CodingTable]], ...] = (
    *(_valid, _odd_notes, _odd_values, _ties, _tiny_scales, _odd_frame, _odd_file),
    *(_of_fault_row(index) for index in range(len(MAKERS))),
)
