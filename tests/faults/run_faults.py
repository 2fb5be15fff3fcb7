"""Every fault row at full length: what was tried, and what held.

In: rows and a scale. Out: a JSON file for each part of a row, and a line for each; exit status 1
where a row did not hold. A part that held on this machine with the sources as they are is not tried
again, so that a stopped run can be resumed. The results are kept in the repository: docs/faults.md
is written from them by a separate step, so a new row needs no other row to be run again.

    python tests/faults/run_faults.py [--rows 1,3,9] [--scale 0.01] [--again] [--out FOLDER]
    python tests/faults/run_faults.py --write-docs
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rows import Row

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from case_folders import ROOT  # noqa: E402

OUT = HERE / "results"
PACKAGES = ("cryptography", "numpy", "pillow", "ai-edge-litert", "onnxruntime")


def main(arguments: list[str]) -> int:
    """Run rows, or write the page; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", default="", help="numbers, with commas; by default all")
    parser.add_argument("--scale", type=float, default=1.0, help="of the counts, 0 to 1")
    parser.add_argument("--again", action="store_true", help="also rows that have a result")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args(arguments)
    if options.write_docs:
        from faults_page import write_page

        write_page(options.out, ROOT / "docs" / "faults.md", source_sha256)
        return 0
    chosen = {int(one) for one in options.rows.split(",") if one}
    return run_rows(chosen, options.scale, options.again, options.out)


def run_rows(chosen: set[int], scale: float, again: bool, out: Path) -> int:
    """Try the rows (none: all); 1 where one did not hold."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rows import ROWS

    out.mkdir(parents=True, exist_ok=True)
    rows = [row for row in ROWS if not chosen or row.number in chosen]
    failed = 0
    console = Console()
    columns = (TextColumn("row {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        for row in rows:
            for name, attempt in row.parts:
                label = f"{row.number} {row.fault} ({name})"
                path = out / f"row-{row.number:02}-{name}.json"
                if not again and is_done(path, row, scale):
                    console.print(f"row {label}: held before, {path.name}")
                    continue
                bar = bars.add_task(label, total=1.0)
                result = try_part(
                    attempt, scale, lambda part, bar=bar: bars.update(bar, completed=part)
                )
                bars.remove_task(bar)
                result |= {"row": row.number, "part": name, "scale": scale}
                result["source_sha256"] = source_sha256(row)
                write_result(path, result)
                failed += result["result"] != "held"
                console.print(f"row {label}: {describe(result)}", highlight=False, markup=False)
    return 1 if failed else 0


def try_part(attempt: Any, scale: float, progress: Any) -> dict[str, Any]:
    """One part's result: what was tried and held, or why not."""
    start = time.perf_counter()
    found: dict[str, Any]
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            told = attempt(scale, Path(folder), progress)
            found = {"result": "held", "tried": told.tried, "held": told.held}
            found["count"] = told.count
        except Exception:
            found = {"result": "FAILED", "tried": "", "held": traceback.format_exc(), "count": 0}
    return found | {
        "seconds": round(time.perf_counter() - start, 1),
        "date": time.strftime("%Y-%m-%d"),
        "device": device(),
        "versions": versions(),
    }


def is_done(path: Path, row: Row, scale: float) -> bool:
    """Whether it held here, with these sources and at this scale or a greater one."""
    if not path.exists():
        return False
    result = json.loads(path.read_text())
    same = result["source_sha256"] == source_sha256(row) and result["device"] == device()
    return bool(result["result"] == "held" and same and result["scale"] >= scale)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """The file, whole: a run may be stopped at any time."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    new.replace(path)


def describe(result: dict[str, Any]) -> str:
    """A result in a line."""
    if result["result"] != "held":
        return f"FAILED after {result['seconds']} s\n{result['held']}"
    return f"tried {result['tried']}; held: {result['held']} ({result['seconds']} s)"


def source_sha256(row: Row) -> str:
    """Of the sources that a row is about, to know which result is of which state."""
    digest = hashlib.sha256()
    for pattern in row.sources:
        for path in sorted((ROOT / "patchdeploy").glob(pattern)):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def device() -> str:
    """The machine, in words."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in lines.splitlines() if "model name" in line]
    name = models[0] if models else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def versions() -> dict[str, str]:
    """Python and the packages that check and run patches."""
    return {"python": platform.python_version(), **{one: version(one) for one in PACKAGES}}


if __name__ == "__main__":
    logging.getLogger("patchdeploy").setLevel(logging.ERROR)  # a line for each unsigned file
    sys.exit(main(sys.argv[1:]))
