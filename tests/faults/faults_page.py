"""docs/faults.md from the results of run_faults.py and fuzz.py: nothing there is written by hand.

In: a folder of JSON files, one a row and part. Out: one page. A row without a result says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rows import ROWS, Row

COSTS = 21
"""The row that is no fault: what checking costs."""
HEAD = """# Faults, and what was tried

A patch file crosses networks, disks, crashes and other people's hands. Each row is one fault: what
must come of it, what was tried, and what was found. `make faults` tries all of them and writes
this page from what it saw; `make test` runs a short form of each; `make fuzz` runs the fuzzers.
A typed error is a `PatchRefusedError` or another of `patchdeploy.errors`, with its code of
[patch-format.md](patch-format.md); any other exception, a wrong verdict or a half-written state
would have failed the row.

| # | fault | expected | tried | count | found | seconds | result |
|---|---|---|---|---|---|---|---|
"""
LIMITS = """
## What this does not show

- **Power.** Rows 12 and 13 end processes and drop, tear and reorder writes in a simulated disk. No
  real phone's power was cut, and no real flash was asked whether it keeps what it says.
- **Signers.** Who holds a trusted key can sign any sound patch. Row 3 shows that such a file
  cannot break the reader; rows 5, 6 and 9 bind it to its base and to values that may stand there.
- **The self-test compares scores, row by row.** A patch whose scores stay within 8 LSB at the
  pictures that travel with it passes, and so does one whose labels are in another order: labels
  are text, and only a person can tell. How far a mistake shows depends on the network and on the
  pictures: choose pictures whose scores differ.
- **The scale of the image** is a value of the patch that TFLite files do not hold (they take the
  base's); an ONNX file does. There the self-test sees a wrong one, and TFLite is not affected.
"""


def write_page(results: Path, page: Path, source_sha256: Callable[[Row], str]) -> None:
    """Write ``page`` from the rows' and the fuzzers' files in ``results``."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("row-*.json"))}
    fuzzed = [json.loads(path.read_text()) for path in sorted(results.glob("fuzz-*.json"))]
    page.write_text(make_page(found, fuzzed, source_sha256))


def make_page(
    found: Mapping[str, Mapping[str, Any]],
    fuzzed: Sequence[Mapping[str, Any]],
    source_sha256: Callable[[Row], str],
) -> str:
    """The text of the page.

    Args:
        found: results by file name without suffix.
        source_sha256: of a row's sources now; results of other sources are listed.
    """
    lines = [line for row in ROWS if row.number != COSTS for line in _row_lines(row, found)]
    parts = [HEAD + "\n".join(lines) + "\n", _cost_text(found), _fuzz_text(fuzzed), LIMITS]
    return "\n".join([*parts, _origin_text(found, source_sha256)])


def _row_lines(row: Row, found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, _ in row.parts:
        result = found.get(f"row-{row.number:02}-{name}")
        number = str(row.number) if not lines else ""
        fault, expected = (row.fault, row.expected) if not lines else ("", "")
        if result is None:
            cells = [number, fault, expected, "not run", "", "", "", "not run"]
        else:
            scale = "" if result["scale"] >= 1 else f" (scale {result['scale']})"
            count = f"{result['count']:,}" if result["count"] else ""
            cells = [number, fault, expected, result["tried"], count]
            held = result["held"] if result["result"] == "held" else "see the output"
            cells += [held, f"{result['seconds']:,}", result["result"] + scale]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return lines


def _cost_text(found: Mapping[str, Mapping[str, Any]]) -> str:
    result = found.get("row-21-limits")
    told = "Not measured." if result is None else result["held"].replace("; ", "\n- ")
    told = told.replace("per MiB. ", "per MiB (the slowest file of a MiB and more).\n\n- ")
    return (
        "## What checking costs\n\n"
        "Goals: at most 50 ms per MiB of patch, and at most 16 MiB of memory beside the file,\n"
        f"what the caller gets included.\n\n{told}\n"
    )


def _fuzz_text(fuzzed: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "## Fuzzers\n",
        "atheris (libFuzzer) over `patchdeploy`, from the corpus in `tests/faults/corpus`; a typed",
        "error or a sound value each time. Every file of the corpus is a test, with or without it.",
        "",
        "| target | inputs | branches reached | inputs kept | seconds | result |",
        "|---|---|---|---|---|---|",
    ]
    for one in fuzzed:
        numbers = [f"{one[name]:,}" for name in ("inputs", "edges", "kept", "seconds")]
        lines.append(f"| {one['target']} | {' | '.join(numbers)} | {one['result']} |")
    return "\n".join([*lines[:4], *(lines[4:] if fuzzed else ["Not run."])]) + "\n"


def _origin_text(
    found: Mapping[str, Mapping[str, Any]], source_sha256: Callable[[Row], str]
) -> str:
    now = {row.number: source_sha256(row) for row in ROWS}
    origins: dict[str, list[str]] = {}
    older = []
    for result in found.values():
        packages = ", ".join(f"{name} {one}" for name, one in result["versions"].items())
        origin = f"{result['date']}, {result['device']}; {packages}"
        origins.setdefault(origin, []).append(str(result["row"]))
        if result["source_sha256"] != now.get(result["row"]):
            older.append(result["row"])
    lines = ["## Where it ran\n"]
    for origin, rows in origins.items():
        numbers = ", ".join(str(one) for one in sorted({int(row) for row in rows}))
        lines.append(
            f"- Rows {numbers}: {origin}. The machine was shared; seconds are no benchmark."
        )
    if older:
        numbers = ", ".join(str(one) for one in sorted(set(older)))
        lines.append(f"- Rows {numbers} ran on an earlier state of the sources.")
    return "\n".join(lines) + "\n"
