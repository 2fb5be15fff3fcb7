"""What ``inspect`` and the commands that write a bundle show of it: bytes, and its cascades."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from patchdeploy.cli.cascade_tables import carried_tables
from patchdeploy.cli.tables import emit, make_table

if TYPE_CHECKING:
    from patchdeploy.bundle import Bundle


def print_sizes(bundle: Bundle, as_json: bool) -> None:
    """Print the bytes of a bundle: its base files, what is shared in them, its patches."""
    from patchdeploy.bundle import size_report

    report = size_report(bundle)
    emit(as_json, report, *size_tables(report))


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
    ships = [
        [name, *(f"{count:,}" for count in totals["shipped_part_bytes"].values())]
        + [f"{totals['shipped_bytes']:,}"]
        for name, totals in report["totals"].items()
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
    cascades = {name: sizes["cascade"] for name, sizes in report["tasks"].items()}
    return [
        make_table("Files", ["file", "bytes"], files),
        make_table(
            "Base files, bytes",
            ["format", "file", "shared", "private", "duplicated", "app ships", "whole models"],
            shared,
        ),
        make_table(
            "App ships, bytes",
            ["format", "base", "slot table", "coding table", "manifest", "patches", "all"],
            ships,
        ),
        make_table(
            "Patches, bytes",
            ["task", "classes", "file", "head", "per resolution", "resolutions"],
            tasks,
        ),
        *carried_tables(cascades),
    ]
