"""Bases, tasks and payloads to code: small real networks, and a tiny hand-made coding table."""

import hashlib
import struct
import zlib
from dataclasses import asdict, fields, replace
from functools import cache

import numpy as np
from graph_cases import GRAPH_CASES, random_images

from patchdeploy.coding.grid import CodingSteps
from patchdeploy.coding.layout import PatchLayout, masked_head_rows
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.coding.table import CodedConv, CodingTable
from patchdeploy.fold import fold_patch
from patchdeploy.patchfile.header import PatchHeader
from patchdeploy.patchfile.parts import PARTS, pack_planes
from patchdeploy.patchfile.payload import all_sites
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.quantize.base import quantize_base
from patchdeploy.quantize.calibrate import calibrate
from patchdeploy.quantize.model import flatten_variant
from patchdeploy.quantize.variant import quantize_variant
from patchdeploy.slots import PatchValues

CAPACITY = 10
SIDES = (24, 18, 16)
FIELDS = [field.name for field in fields(PatchValues)]


def perturbation(graph, seed: int) -> dict:
    """A patch far from the identity: scales 0.5 to 1.5 times, shifts of 0.2. `real_case` adds
    depthwise kernels where the base has slots for them.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    for conv in graph.convolutions():
        tensors[f"{conv.name}.patch_scale"] = rng.uniform(0.5, 1.5, conv.out_channels)
        tensors[f"{conv.name}.patch_bias"] = rng.normal(0, 0.2, conv.out_channels)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


@cache
def real_case(name: str, depthwise: bool = False, seed: int = 1):
    """A quantised base, its coding table, and a task's values at `SIDES`, calibrated at each.

    ``seed`` 0 is the identity: the base's own scales and shifts.
    """
    graph = GRAPH_CASES[name]()
    base = quantize_base(graph, CAPACITY, depthwise)
    tensors = perturbation(graph, seed) if seed else {}
    if depthwise and seed:
        rng = np.random.default_rng(seed)
        for conv in graph.convolutions():
            if conv.name in base.patch_owned and conv.name != graph.head:
                own = graph.parameters[conv.weight]
                tensors[conv.weight] = (own * rng.uniform(0.8, 1.2, own.shape)).astype(np.float32)
    network = fold_patch(graph, tensors or None)
    values = {}
    for px in SIDES:
        ranges = calibrate(network, random_images(4, px), "minmax")
        values[px] = flatten_variant(base, quantize_variant(base, network, ranges, "task", px))
    return base, make_coding_table(base), values


def with_classes(values: dict, classes: int, table: CodingTable) -> dict:
    return {px: masked_head_rows(one, classes, table.layout) for px, one in values.items()}


@cache
def tiny_table(capacity: int = 4) -> CodingTable:
    """Four convolutions, one with its own kernel before the head and one after: 8 + capacity rows,
    5 sites. The image is site 0.
    """
    convs = (
        CodedConv("stem", 3, 27, 0, 1, False),
        CodedConv("dw", 3, 9, 1, 2, True),
        CodedConv("head", capacity, 3, 2, 3, True),
        CodedConv("late", 2, 3, 2, 4, True),
    )
    rows, elements = 8 + capacity, 27 + 3 * capacity + 6
    layout = PatchLayout(
        rows=rows,
        elements=elements,
        sites=5,
        head_row=6,
        head_capacity=capacity,
        head_element=27,
        head_row_elements=3,
        head_input=2,
        head_output=3,
    )
    rng = np.random.default_rng(5)
    return CodingTable(
        reference_sha256="0" * 64,
        layout=layout,
        output_index=3,
        convs=convs,
        scale=rng.uniform(0.001, 0.02, rows).astype(np.float32),
        beta=rng.normal(0, 0.3, rows).astype(np.float32),
        slope=rng.normal(0, 9, rows).astype(np.float32),
        kernels=rng.integers(-127, 128, elements, np.int8),
    )


def tiny_values(classes: int = 3, seed: int = 1, capacity: int = 4) -> PatchValues:
    """A task over `tiny_table`, near the base as trained ones are."""
    table, rng = tiny_table(capacity), np.random.default_rng(seed)
    layout = table.layout
    activation_scale = rng.uniform(0.02, 0.05, layout.sites).astype(np.float32)
    weight_scale = (table.scale * np.exp2(rng.normal(0, 0.3, layout.rows))).astype(np.float32)
    x_index = np.array([conv.x_index for conv in table.convs])[table.row_conv]
    unit = activation_scale[x_index].astype(np.float64) * weight_scale
    shift = table.beta + rng.normal(0, 0.2, layout.rows) + table.slope * weight_scale
    values = PatchValues(
        weight_scale=weight_scale,
        bias=np.rint(shift / unit).astype(np.int32),
        activation_scale=activation_scale,
        activation_zero_point=rng.integers(-128, 128, layout.sites, np.int8),
        weights=rng.integers(-127, 128, layout.elements, np.int8),
    )
    return masked_head_rows(values, classes, layout)


def make_patch(values: dict, classes: int, table: CodingTable, /, **changes) -> PatchFile:
    labels = tuple(f"class {k}" for k in range(classes))
    return replace(PatchFile("task", labels, table.sha256, values, {"top1": 0.5}), **changes)


def make_header(
    payload: bytes,
    table: CodingTable,
    classes: int,
    sides: tuple[int, ...],
    runtimes: tuple[str, ...] = ("onnx", "tflite"),
    **changes,
) -> PatchHeader:
    """The header of ``payload``; results are hashes of nothing."""
    nothing = hashlib.sha256(b"").hexdigest()
    header = PatchHeader(
        task="task",
        base_sha256=table.sha256,
        base_bytes=table.length_bytes,
        classes=classes,
        engine=1,
        expires=0,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        payload_bytes=max(1, len(payload)),
        resolutions=sides,
        results={name: dict.fromkeys(sides, nothing) for name in runtimes},
        sequence=1,
        sites=all_sites(table),
    )
    return replace(header, **changes)


def assert_same(found: PatchValues, expected: PatchValues) -> None:
    """Bit for bit, dtypes too."""
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes(), name


# -- payloads part by part, in plain numbers -------------------------------------------------------


def part(number: int, content: bytes, method: int = 0, length: int | None = None) -> bytes:
    """One part; a ``method`` of 1 deflates ``content``, any other leaves it."""
    body = deflated(content) if method == 1 else content
    return framed(number, method, len(content) if length is None else length, body)


def framed(number: int, method: int, length: int, body: bytes) -> bytes:
    return struct.pack("<BBII", number, method, length, len(body)) + body


def deflated(content: bytes) -> bytes:
    """Raw deflate in stored blocks (RFC 1951, 3.2.4): the same bytes with every zlib."""
    blocks = [content[k : k + 65_535] for k in range(0, len(content), 65_535)] or [b""]
    return b"".join(
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block
        for block in blocks
    )


def label_bytes(*labels: bytes) -> bytes:
    return b"".join(struct.pack("<H", len(label)) + label for label in labels)


def zeros(classes: int = 3, sides: int = 1, capacity: int = 4) -> dict[str, bytes]:
    """The parts over `tiny_table` whose codes are all 0, at steps 0 and 2^-8: nearly the base."""
    table = tiny_table(capacity)
    layout = table.layout
    return {
        "labels": label_bytes(*(b"%d" % k for k in range(classes))),
        "notes": b"{}",
        "steps": bytes([0] * 4) + struct.pack("4b", *[-8] * 4),
        "activations": bytes(sides * layout.sites) + b"\0",
        "scales": b"\0",
        "biases": b"\0",
        "kernels": bytes(sides * (layout.elements - 3 * capacity)),
        "head": bytes(sides * 3 * classes),
        "golden": b"\0\0",
    }


def payload_of(contents: dict[str, bytes], method: int = 0) -> bytes:
    return b"".join(part(k, contents[name], method) for k, name in enumerate(PARTS))


def planes(*numbers: int) -> bytes:
    return pack_planes(np.array(numbers, np.int64))


def zlib_stream(content: bytes) -> bytes:
    """Raw deflate as any zlib writes it; not for bytes that are compared."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(content) + stream.flush()


def header_fields(header: PatchHeader) -> dict:
    """What the slow decoder reads of a header."""
    return {
        "sites": [list(run) for run in header.sites],
        "classes": header.classes,
        "resolutions": list(header.resolutions),
        "results": header.results,
        "encoding": header.encoding,
    }


def uniform_steps(table: CodingTable, t: int, e: int) -> CodingSteps:
    return CodingSteps((t,) * len(table.convs), (e,) * len(table.convs))


def layout_of(table: CodingTable) -> dict:
    return asdict(table.layout)
