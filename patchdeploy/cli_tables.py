"""How the command line prints: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

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


def make_table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """A table whose first column is text and whose other columns are figures."""
    table = Table(title=escape(title), title_justify="left", header_style="bold cyan")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def size_tables(report: dict[str, Any]) -> list[Table]:
    """The tables of `patchdeploy.bundle.size_report`."""
    files = [[path, f"{count:,}"] for path, count in report["files"].items()]
    shared = [
        [
            name,
            f"{sizes['file_bytes']:,}",
            f"{sizes['shared_bytes']:,}",
            ", ".join(f"{px}: {count:,}" for px, count in sizes["slot_bytes"].items()),
            "unknown" if sizes["duplicated_bytes"] is None else f"{sizes['duplicated_bytes']:,}",
            f"{report['totals'][name]['shipped_bytes']:,}",
            f"{report['totals'][name]['whole_models_bytes']:,}",
        ]
        for name, sizes in report["formats"].items()
    ]
    tasks = [
        [
            name,
            str(sizes["classes"]),
            f"{sizes['file_bytes']:,}",
            f"{sizes['head_bytes']:,}",
            f"{sizes['bytes_per_resolution_without_head']:,}",
            ", ".join(sizes["resolutions"]),
        ]
        for name, sizes in report["tasks"].items()
    ]
    return [
        make_table("Files", ["file", "bytes"], files),
        make_table(
            "Base files, bytes",
            ["format", "file", "shared", "private", "duplicated", "app ships", "whole models"],
            shared,
        ),
        make_table(
            "Patches, bytes",
            ["task", "classes", "file", "head", "per resolution", "resolutions"],
            tasks,
        ),
    ]
