"""docs/arm.md from the files in results/: nothing there is written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from processors import PROCESSORS

Found = Mapping[str, Any]

HEAD = """# On ARM, emulated

`make arm` (x86-64 Debian, root; JDK 17 and Maven for the last part) writes this page from what it
saw (`tests/arm/results`). It unpacks Debian's arm64 Python, installs aarch64 wheels of the
versions in `constraints.txt`, and runs them under qemu as several ARM cores. A demo bundle's tasks
are asked at every resolution: 24 test images, 8 synthetic ones, black, white, noise, a chessboard.
Every score is compared, to the bit. **Nothing here ran on a phone or on any ARM processor, and no
time on an emulator says anything about one.**

What differs from x86-64 is in two operators: ONNX Runtime's QLinearAdd is fixed point, and LiteRT's
MUL (XNNPACK) rounds halves up. The integer executor has both (`patchdeploy/quantize/runtimes.py`),
and `verify` takes those of the machine that it runs on.
"""
NOT_RUN = """
## What was not run

A phone; an ARM processor; 32-bit ARM; macOS and Windows on ARM; accelerators. ONNX Runtime's
Android library (Maven Central does not have it). qemu's cores compute as ARM's manual says and
have no errata. The benchmark page of the app is how a person with a phone fills the gap.
"""
OPERATORS = """\
`tests/quantize/test_runtime_arithmetic.py` on each: a model of one operator, all 65,536 pairs of
codes for sums and products with 25 settings and more, against the executor.
"""
INSTRUCTIONS = """\
Instructions for int8 products that qemu translated in one inference, each place in the code once:
the kernels of that core ran, and not those of an older one.
"""
GOLDEN = """\
By the executor, in x86-64's arithmetic against ARM's: the packaged tasks on the pictures of their
self-tests; hand-made networks of the tests with 50 random patches each; networks of torchvision
with random weights. A patch's tolerance is 8, or twice the difference at its own pictures where
that is more.
"""
ANDROID = """\
`android_demo/arm-check` loads lib/arm64-v8a/libjnitensorflowlite.so of org.bytedeco:tensorflow-lite
(android-arm64), the file that the APK carries, into an emulated Android process with Android's own
C library (unidbg), and makes interpreters as `patchkit-litert` does: XNNPACK with its int8
operators on, one thread. The tasks and images are those above.
"""


def write_page(results: Path, page: Path) -> None:
    """Write ``page`` from the files in ``results``; a part that was not run says so."""
    found = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}
    sections = [
        ("Scores", "scores", _scores),
        ("Operators", "operators", _operators),
        ("Which instructions ran", "instructions", _instructions),
        ("How far apart the scores of a self-test are", "golden", _golden),
        ("The APK's library over Android's C library", "android", _android),
    ]
    parts = [HEAD]
    for title, name, lines in sections:
        parts.append(f"\n## {title}\n\n")
        if name not in found:
            parts.append(f"Not run: `make arm PARTS={name}`.\n")
            continue
        part = found[name]
        parts += [f"{line}\n" for line in lines(part["found"])]
        parts.append(f"\n{part['at']} UTC, qemu {part['qemu']}, on {part['device']}.\n")
    page.write_text("".join([*parts, NOT_RUN]))


def _scores(found: Found) -> Iterator[str]:
    yield "| processor | runtime | scores | equal to x86-64 | equal to the executor | top-1 equal |"
    yield "|---|---|---|---|---|---|"
    for name, one in found.items():
        for runtime, counts in one["scores"].items():
            package = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}[runtime]
            x86, own = counts["x86-64"], counts["executor"]
            cells = [name, f"{package} {one[package]}", f"{counts['scores']:,}"]
            cells += [_equal(x86), _equal(own), f"{x86['equal_top1']:,} of {counts['images']:,}"]
            yield f"| {' | '.join(cells)} |"
    yield ""
    yield "`verify` on the same bundle:"
    yield ""
    yield "| processor | machine | checks passed | failed | skipped |"
    yield "|---|---|---|---|---|"
    for name, one in found.items():
        counts = one["verify"]
        cells = [name, one["machine"], *(str(counts[word]) for word in ("passed", "failed"))]
        yield f"| {' | '.join([*cells, str(counts['skipped'])])} |"


def _equal(counts: Found) -> str:
    largest = counts["largest_lsb"]
    return f"{counts['equal']:,}" + (f", the others at most {largest} LSB away" if largest else "")


def _operators(found: Found) -> Iterator[str]:
    yield from OPERATORS.splitlines()
    yield ""
    yield "| processor | tests |"
    yield "|---|---|"
    for name, said in found.items():
        yield f"| {name} | {said} |"


def _instructions(found: Found) -> Iterator[str]:
    yield from INSTRUCTIONS.splitlines()
    yield ""
    yield "| processor | widest product | runtime | translated |"
    yield "|---|---|---|---|"
    widest = {one.name: one.product for one in PROCESSORS}
    for name, by_runtime in found.items():
        for runtime, counts in by_runtime.items():
            said = ", ".join(f"{word} {count:,}" for word, count in counts.items())
            yield f"| {name} | {widest[name]} | {runtime} | {said} |"


def _golden(found: Found) -> Iterator[str]:
    yield from GOLDEN.splitlines()
    yield ""
    yield "| network | format | scores | differ | at most |"
    yield "|---|---|---|---|---|"
    for name, by_format in found.items():
        for format_name, counts in by_format.items():
            cells = [name, format_name, f"{counts['scores']:,}", f"{counts['different']:,}"]
            yield f"| {' | '.join(cells)} | {counts['largest_lsb']} LSB |"


def _android(found: Found) -> Iterator[str]:
    counts = found["scores"]
    yield from ANDROID.splitlines()
    yield ""
    yield "| library | SHA-256 | scores | equal to LiteRT on x86-64 | equal to the executor |"
    yield "|---|---|---|---|---|"
    cells = [
        f"TensorFlow Lite {found['version']}",
        f"{found['sha256'][:16]}",
        f"{counts['scores']:,}",
    ]
    yield f"| {' | '.join([*cells, _equal(counts['x86-64']), _equal(counts['executor'])])} |"
