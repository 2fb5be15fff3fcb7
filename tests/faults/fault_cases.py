"""Small real bases with a patch each, and files signed past every check of ours.

In: a graph case of tests/graph_cases.py. Out: a `Subject`: the base, its coding table, a patch in
codes and in bytes. `sign_parts` wraps any parts, valid or not, in a container whose hashes and
signature are right: what comes after check 6 is then on its own.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import case_folders  # noqa: F401  (adds the folders of the cases)
import numpy as np
from bundle_cases import LABELS
from container_cases import TRUSTED, forge, sha
from container_cases import text as canonical_text
from graph_cases import GRAPH_CASES, Graph, GraphBuilder, make_base, make_variant
from numpy.typing import NDArray

from patchdeploy.coding.decode import PatchCodes
from patchdeploy.coding.encode import encode_values
from patchdeploy.coding.grid import CodingSteps, exact_steps
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import Policy, read_container
from patchdeploy.patchfile.golden import Golden, golden_bytes
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.pack import open_patch
from patchdeploy.patchfile.parts import PARTS, pack_part, pack_planes
from patchdeploy.patchfile.payload import encode_payload
from patchdeploy.patchfile.values import PatchFile, check_patch
from patchdeploy.quantize.model import QuantizedBase, QuantizedVariant, flatten_variant

SIDES = (24, 16)
"""Resolutions of every subject, in the order of its file."""
RUNTIMES = ("onnx", "tflite")
POLICY = Policy(TRUSTED)
FAULT_BASES = ("tiny", *GRAPH_CASES)
"""Seven bases, one of them a few hundred bytes."""


def tiny() -> Graph:
    """The least that has a stem, a depthwise kernel that tasks may own, and a head."""
    g = GraphBuilder()
    x = g.conv("image", "stem", 2, 1, activation="relu6")
    return g.finish(g.depthwise(x, "dw", kernel=3, padding=(1, 1, 1, 1)), "tiny")


@dataclass(frozen=True, eq=False)
class Subject:
    """A base and one patch of it.

    Attributes:
        base, table: of the graph case.
        patch: with a self-test of random pictures and scores.
        codes: the patch coded exactly.
        parts: contents of the payload's parts, by name.
        payload: their bytes.
        fields: of the header, as JSON, and right.
        data: the file, signed with key 0.
    """

    base: QuantizedBase
    table: CodingTable
    patch: PatchFile
    codes: PatchCodes
    parts: Mapping[str, bytes]
    payload: bytes
    fields: Mapping[str, Any]
    data: bytes


@functools.cache
def make_subject(name: str, seed: int = 1, owned: tuple[str, ...] = ()) -> Subject:
    """The subject of a graph case; ``owned`` convolutions' kernels are the task's."""
    base = make_base({"tiny": tiny, **GRAPH_CASES}[name](), 0, owned)
    table = make_coding_table(base)
    values = {px: flatten_variant(base, one) for px, one in make_variants(base, seed).items()}
    golden = _random_golden(seed, len(LABELS))
    patch = PatchFile("first", LABELS, table.sha256, values, {"top1": 0.5}, golden)
    check_patch(patch, table.layout)
    steps = exact_steps(table)
    codes = encode_values(values, len(LABELS), table, steps)
    parts = part_contents(codes, golden)
    payload = encode_payload(patch, table, steps, RUNTIMES).payload
    packed = b"".join(pack_part(index, parts[part]) for index, part in enumerate(PARTS))
    assert payload == packed, "the parts made here are those that the package makes"
    fields = header_fields(table, payload)
    return Subject(
        base, table, patch, codes, parts, payload, fields, forge(canonical_text(fields), payload)
    )


def make_variants(base: QuantizedBase, seed: int) -> dict[int, QuantizedVariant]:
    """A random variant at each of `SIDES`, all on one head kernel, as a base file holds them."""
    variants = {px: make_variant(base, px, seed) for px in SIDES}
    head = variants[SIDES[0]].weights[base.graph.head]
    for variant in variants.values():
        variant.weights[base.graph.head][...] = head  # type: ignore[index]
    return variants


def _random_golden(seed: int, classes: int) -> Golden:
    rng = np.random.default_rng(seed)
    scores = {
        name: {px: rng.integers(-128, 128, (2, classes), np.int8) for px in SIDES}
        for name in RUNTIMES
    }
    return Golden(rng.integers(0, 256, (2, 8, 8, 3), np.uint8), scores, 8)


def header_fields(table: CodingTable, payload: bytes, **changes: Any) -> dict[str, Any]:
    """A right header of ``payload`` over ``table``, with some fields replaced."""
    result = {str(px): sha(b"result") for px in SIDES}
    fields = {
        "base": {"bytes": table.length_bytes, "sha256": table.sha256},
        "classes": len(LABELS),
        "encoding": "parts-1",
        "engine": 1,
        "expires": 0,
        "format": 1,
        "payload": {"bytes": len(payload), "sha256": sha(payload)},
        "resolutions": list(SIDES),
        "results": dict.fromkeys(RUNTIMES, result),
        "sequence": 1,
        "sites": [[0, table.slot_count]],
        "task": "first",
    }
    return {**fields, **changes}


def sign_payload(subject: Subject, payload: bytes, **changes: Any) -> bytes:
    """A file of ``payload`` with the right length and hash and a valid signature."""
    right = {"payload": {"bytes": len(payload), "sha256": sha(payload)}}
    return forge(canonical_text({**subject.fields, **right, **changes}), payload)


def sign_parts(subject: Subject, contents: Mapping[str, bytes]) -> bytes:
    """A signed file of parts with these contents."""
    return sign_payload(subject, join_parts(contents))


def join_parts(contents: Mapping[str, bytes]) -> bytes:
    """The payload of ``contents``, each part stored at its number."""
    return b"".join(store_part(index, contents[name]) for index, name in enumerate(PARTS))


def store_part(
    index: int,
    body: bytes,
    method: int = 0,
    length: int | None = None,
    stored: int | None = None,
) -> bytes:
    """A part with any prefix; by default a right one."""
    inflated = len(body) if length is None else length
    return (
        struct.pack("<BBII", index, method, inflated, len(body) if stored is None else stored)
        + body
    )


def part_contents(codes: PatchCodes, golden: Golden | None = None) -> dict[str, bytes]:
    """What docs/patch-format.md says that each part holds, for the labels of the subjects."""
    sides = list(codes.resolutions.values())

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(one, name) for one in sides])

    return {
        "labels": b"".join(
            len(one.encode()).to_bytes(2, "little") + one.encode() for one in LABELS
        ),
        "notes": b'{"top1":0.5}',
        "steps": bytes(one & 255 for one in (*codes.steps.scale, *codes.steps.bias)),
        "activations": joined("zero_points").tobytes() + pack_planes(joined("activation_scales")),
        "scales": pack_planes(joined("scales")),
        "biases": pack_planes(joined("biases")),
        "kernels": joined("kernels").tobytes(),
        "head": joined("head").tobytes(),
        "golden": golden_bytes(golden, RUNTIMES, SIDES, len(LABELS)),
    }


def edit_codes(
    codes: PatchCodes,
    resolution: int,
    array: str,
    index: int,
    value: int,
    steps: CodingSteps | None = None,
) -> PatchCodes:
    """``codes`` with one number of one resolution replaced."""
    one = codes.resolutions[resolution]
    changed = getattr(one, array).copy()
    changed[index] = value
    resolutions = {**codes.resolutions, resolution: replace(one, **{array: changed})}
    return PatchCodes(steps or codes.steps, codes.classes, resolutions)


def open_verdict(data: bytes, table: CodingTable, policy: Policy = POLICY) -> str:
    """ "ok" or the code of checks 1 to 8; a patch that is taken must be sound.

    Anything but a `PatchRefusedError` passes through and fails the proof.
    """
    try:
        _, patch = open_patch(data, policy, table)
    except PatchRefusedError as error:
        return error.code
    check_sound(patch, table)
    return "ok"


def check_sound(patch: PatchFile, table: CodingTable) -> None:
    """Every value of a patch that was taken may stand in its slot (`check_patch` reads each)."""
    check_patch(patch, table.layout)
    for values in patch.values.values():
        assert int(values.weights.min(initial=0)) >= -127
        for scales in (values.weight_scale, values.activation_scale):
            assert np.isfinite(scales).all()
            assert (scales >= np.finfo(np.float32).tiny).all()


def header_of(data: bytes) -> PatchHeader:
    """The parsed header of a file that holds together."""
    return PatchHeader.from_bytes(read_container(data).header)


def spread(length: int) -> Sequence[int]:
    """The first, the middle and the last index of an array."""
    return sorted({0, length // 2, length - 1})
