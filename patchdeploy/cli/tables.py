"""How the command line prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from patchdeploy.verify import VerifyReport

PIPE_WIDTH = 140
"""Columns where standard output is no terminal: wide enough that no figure is cut."""


def emit(as_json: bool, document: Any, *tables: Table) -> None:
    """Print ``document`` as JSON, or ``tables``, to standard output."""
    if as_json:
        sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")
        return
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    for table in tables:
        console.print(table)


def make_table(
    title: str, columns: list[str], rows: list[list[str]], *, text: Sequence[int] = (0,)
) -> Table:
    """A table; the columns of ``text`` hold words, the others figures (to the right).

    Title and cells may hold what others wrote, names of files above all: see `show_text`.
    """
    table = Table(title=escape(show_text(title)), title_justify="left", header_style="bold cyan")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(show_text(cell)) for cell in row))
    return table


def show_text(text: str) -> str:
    """Text that others wrote, safe on a terminal: what is not printable becomes its escape.

    A byte of a file's name that is no UTF-8 is a lone surrogate here, and not printable either.
    Shown twice, a text stays as it was shown once.
    """
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def verify_table(report: VerifyReport) -> Table:
    """One row a check."""
    words = {True: "pass", False: "FAIL", None: "skipped"}
    rows = [[words[c.passed], c.name, c.subject, c.detail] for c in report.checks]
    columns = ["", "check", "of", "detail"]
    return make_table(f"Verify {report.path}", columns, rows, text=(0, 1, 2, 3))


def describe_prediction(path: Path, outcome: Any, top: int) -> dict[str, Any]:
    """A prediction, or the error that stands in its place, as plain JSON values."""
    if isinstance(outcome, Exception):
        return {"image": str(path), "error": str(outcome)}
    best = outcome.top(top)
    return {
        "image": str(path),
        "resolution": outcome.resolution,
        "top": [{"label": label, "probability": probability} for label, probability in best],
    }


def prediction_table(title: str, document: list[dict[str, Any]]) -> Table:
    """The table of `describe_prediction`'s values."""

    def words(one: dict[str, Any]) -> str:
        return one.get("error") or ", ".join(
            f"{c['label']} {100 * c['probability']:.1f} %" for c in one["top"]
        )

    rows = [[one["image"], str(one.get("resolution", "")), words(one)] for one in document]
    return make_table(title, ["image", "px", "classes"], rows, text=(0, 2))


def bench_tables(report: dict[str, Any]) -> list[Table]:
    """The tables of `patchdeploy.evaluate.bench_bundle`."""
    latency = [
        [
            f"{r['runtime']}, {r['threads']} thread{'s' if r['threads'] > 1 else ''}",
            f"{r['resolution']} px",
            f"{r['median_ms']:.3f}",
            f"{r['p10_ms']:.3f} to {r['p90_ms']:.3f}",
        ]
        for r in report["latency"]
    ]
    swaps = [[r["runtime"], r["kind"], f"{r['median_ms']:.3f}"] for r in report["swaps"]]
    columns = ["runtime", "resolution", "median", "p10 to p90"]
    return [
        make_table("Latency, ms per image", columns, latency),
        make_table("Swap, ms", ["runtime", "swap", "median"], swaps, text=(0, 1)),
    ]
