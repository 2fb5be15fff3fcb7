"""What checking costs: time per MiB of patch, and memory. Goals: 50 ms and 16 MiB.

Memory is all that is allocated beside the file, also what the caller gets in the end. The pace is
that of every file of a MiB and more; of a small one the signature and the tables take most.

Measured on the largest file there may be, on one that decodes to the largest values, and on
MobileNetV2's structure, with the most that a hostile signer can make of each.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from container_cases import forge, make_header
from container_cases import text as canonical_text
from fault_cases import POLICY, header_fields, store_part
from graph_cases import make_base, mobilenet_v2
from tried import Progress, Told

from patchdeploy.coding.layout import PatchLayout
from patchdeploy.coding.make_table import make_coding_table
from patchdeploy.coding.table import CodedConv, CodingTable
from patchdeploy.patchfile import check_patch_file
from patchdeploy.patchfile.header import MAX_PAYLOAD_BYTES
from patchdeploy.patchfile.pack import open_patch
from patchdeploy.patchfile.parts import PARTS, deflate

MIB = 2**20
MOST_MS_PER_MIB = 50
MOST_MIB = 16
REPEATS = 5
CLASSES = 7
"""Labels of `header_fields`."""


@dataclass(frozen=True)
class Measured:
    """One subject.

    Attributes:
        name: of the file and the checks.
        file_bytes: its length.
        milliseconds: median of `REPEATS`.
        peak_bytes: allocated at most at one time, beside the file.
        kept_bytes: of that, what the caller gets: the payload, and the decoded values.
    """

    name: str
    file_bytes: int
    milliseconds: float
    peak_bytes: int
    kept_bytes: int


def measure_limits(scale: float, progress: Progress) -> Told:
    """All subjects; each within the goals."""
    done = []
    subjects = (_measure_largest, _measure_large_values, _measure_mobilenet, _measure_sixteen)
    for number, subject in enumerate(subjects):
        done.append(subject(REPEATS if scale >= 1 else 1))
        progress((number + 1) / len(subjects))
    paces = [one.milliseconds / (one.file_bytes / MIB) for one in done if one.file_bytes >= MIB]
    pace = max(paces)
    assert pace <= MOST_MS_PER_MIB, f"{pace:.1f} ms per MiB"
    for one in done:
        assert one.peak_bytes <= MOST_MIB * MIB, f"{one.name}: {one.peak_bytes} bytes"
    told = "; ".join(
        f"{one.name} ({one.file_bytes:,} bytes): {one.milliseconds:.1f} ms, peak "
        f"{one.peak_bytes / MIB:.1f} MiB beside the file, of which {one.kept_bytes / MIB:.1f} MiB "
        "are what it returns"
        for one in done
    )
    return Told(
        f"{len(done)} files, median of {REPEATS}", f"{pace:.1f} ms per MiB. {told}", len(done)
    )


def _measure(name: str, data: bytes, check: Callable[[bytes], object], repeats: int) -> Measured:
    check(data)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        check(data)
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    result = check(data)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result is not None
    return Measured(name, len(data), 1000 * statistics.median(times), peak, kept)


def _measure_largest(repeats: int) -> Measured:
    """Checks 1 to 6 on 8 MiB of payload."""
    payload = np.random.default_rng(0).integers(0, 256, MAX_PAYLOAD_BYTES, np.uint8).tobytes()
    data = forge(make_header(payload).to_bytes(), payload)
    return _measure(
        "the largest file, checks 1 to 6", data, lambda one: check_patch_file(one, POLICY), repeats
    )


def _measure_large_values(repeats: int) -> Measured:
    """Checks 1 to 8 where one head kernel fills 7 MiB."""
    table = _table_of_one_head(MIB)
    kernel = np.random.default_rng(1).integers(0, 127, CLASSES * MIB, np.uint8).tobytes()
    return _measure_open("a head of 7 MiB, checks 1 to 8", table, kernel, repeats)


def _table_of_one_head(taps: int) -> CodingTable:
    """A base of one convolution, the head, with ``taps`` elements a row."""
    rows = CLASSES
    layout = PatchLayout(rows, rows * taps, 2, 0, rows, 0, taps, 0, 1)
    ones = np.ones(rows, np.float32)
    return CodingTable(
        reference_sha256="0" * 64,
        layout=layout,
        output_index=1,
        convs=(CodedConv("head", rows, taps, 0, 1, True),),
        scale=ones,
        beta=np.zeros(rows, np.float32),
        slope=np.zeros(rows, np.float32),
        kernels=np.zeros(rows * taps, np.int8),
    )


def _measure_mobilenet(repeats: int) -> Measured:
    """Checks 1 to 8 on MobileNetV2 1.0 with 7 classes at one resolution."""
    table = make_coding_table(make_base(mobilenet_v2(CLASSES)))
    head = np.random.default_rng(2).integers(0, 127, CLASSES * 1280, np.uint8).tobytes()
    return _measure_open("MobileNetV2, checks 1 to 8", table, head, repeats)


def _measure_sixteen(repeats: int) -> Measured:
    """The same at the 16 resolutions that a file can hold, every code as wide as it can be."""
    table = make_coding_table(make_base(mobilenet_v2(CLASSES)))
    head = bytes(CLASSES * 1280)
    name = "MobileNetV2 at 16 resolutions in 5 planes, checks 1 to 8"
    return _measure_open(name, table, head, repeats, sides=16, planes=5)


def _measure_open(
    name: str, table: CodingTable, head: bytes, repeats: int, sides: int = 1, planes: int = 0
) -> Measured:
    """A file whose codes are all 0, in ``planes`` planes, with this head kernel at each side."""
    layout = table.layout
    rows = layout.rows - layout.head_capacity + CLASSES
    contents = {
        "labels": b"".join(b"\1\0%d" % k for k in range(CLASSES)),
        "notes": b"{}",
        "steps": bytes(2 * len(table.convs)),
        "activations": bytes(sides * layout.sites)
        + bytes([planes])
        + bytes(planes * sides * layout.sites),
        "scales": bytes([planes]) + bytes(planes * sides * rows),
        "biases": bytes([planes]) + bytes(planes * sides * rows),
        "kernels": b"",
        "head": head * sides,
        "golden": bytes(2),
    }
    payload = b"".join(_shorter(index, contents[one]) for index, one in enumerate(PARTS))
    resolutions = [16 * (k + 1) for k in range(sides)]
    result = {str(px): "0" * 64 for px in resolutions}
    fields = header_fields(table, payload, resolutions=resolutions, results={"onnx": result})
    data = forge(canonical_text(fields), payload)

    return _measure(name, data, lambda one: open_patch(one, POLICY, table), repeats)


def _shorter(index: int, content: bytes) -> bytes:
    """Deflated where that is shorter; a large random kernel is stored at once."""
    if len(content) > MIB:
        return store_part(index, content)
    packed = deflate(content)
    if len(packed) < len(content):
        return store_part(index, packed, 1, len(content))
    return store_part(index, content)
