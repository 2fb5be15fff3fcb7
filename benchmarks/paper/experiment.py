"""One table or figure of the paper in small: its cells, its claims, how it is shown.

In: records of cells. Out: a table in Markdown with mean and spread over seeds, each claim with the
number that it stands or falls by, a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cells import Cell, Record, Spread, by_place
from gaps import MOST_SEEDS, Gap, seeds_to_decide

Records = Mapping[str, Record]


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and what was found here.

    Attributes:
        text: the paper's claim.
        gap: what decides.
        allowed: how far below 0 the gap may be; above 0 where the claim is "comparable".
        unit: factor that makes ``gap`` readable; 100 for points.
    """

    text: str
    gap: Gap
    allowed: float = 0.0
    unit: float = 100.0

    @property
    def verdict(self) -> str:
        """Decided where the bound on the mean gap (see gaps.py) is on one side of -``allowed``.

        A mean over columns can hide one that says the opposite: those are named.
        """
        mean, margin = self.gap.spread.mean, self.gap.margin
        if not self.gap.by_seed:
            return "not run"
        if mean + margin < -self.allowed:
            return "does not hold"
        if mean - margin <= -self.allowed:
            return "undecided" if len(self.gap.by_seed) > 1 else "undecided: one seed"
        against = [name for name, own in self.gap.by_column.items() if own <= -self.allowed]
        return f"holds on average, not for {', '.join(against)}" if against else "holds"

    def markdown(self) -> str:
        """One row of the table of claims: mean and spread over seeds, the columns' range."""
        text = self.text
        if self.allowed:
            text += f" (at most {self.unit * self.allowed:g} below)"
        if not self.gap.by_seed:
            return f"| {text} | - | {self.verdict} |"
        mean, deviation = (
            self.unit * value for value in (self.gap.spread.mean, self.gap.spread.deviation)
        )
        shown = f"{mean:+.1f}"
        if len(self.gap.by_seed) > 1:
            shown += f" ± {deviation:.1f}"
        shown += f", n = {len(self.gap.by_seed)}"
        if len(self.gap.by_column) > 1:
            each = [self.unit * own for own in self.gap.by_column.values()]
            shown += f"; columns {min(each):+.1f} to {max(each):+.1f}"
        return f"| {text} | {shown} | {self.verdict}{self._needed()} |"

    def _needed(self) -> str:
        """How many seeds an undecided claim would take."""
        if self.verdict != "undecided":
            return ""
        count = seeds_to_decide(self.gap, self.allowed)
        return f"; n = {count} might decide" if count else f"; n = {MOST_SEEDS} would not decide"


def _nothing(records: Records) -> str:
    return ""


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Attributes:
        name: of its results file and picture.
        title: heading in docs/paper.md.
        setup: what was run, in a sentence or two.
        paper: the paper's own table in Markdown.
        cells: (quick, seeds) -> what to run.
        measure: (settings, seed) -> record; importable.
        claims: records -> claims.
        draw: (records, path of a PNG) -> None.
        note: what is to be said about the result, its figures computed from the records: a reason
            for each claim that does not hold, or that none is known.
    """

    name: str
    title: str
    setup: str
    paper: str
    cells: Callable[[bool, int], list[Cell]]
    measure: Callable[[Mapping[str, Any], int], Record]
    claims: Callable[[Records], list[Claim]]
    draw: Callable[[Records, Path], None]
    figures: Sequence[tuple[str, str]] = field(default=(("test_top1", "test top-1, %"),))
    note: Callable[[Records], str] = _nothing


def markdown_table(records: Records, cells: Sequence[Cell], figure: str) -> str:
    """Rows and columns in the order of ``cells``; what was not run says so."""
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column for cell in cells))
    wanted = {(cell.row, cell.column) for cell in cells}
    found = by_place(records, figure)
    sizes: dict[str, set[int]] = {row: set() for row in rows}
    failed: dict[tuple[str, str], int] = {}
    for record in records.values():
        sizes[record["row"]].add(record.get("parameters", 0))
        place = (record["row"], record["column"])
        failed[place] = failed.get(place, 0) + ("failed" in record)
    lines = [
        "| " + " | ".join(["", *columns, "parameters"]) + " |",
        "|" + "---|" * (len(columns) + 2),
    ]
    for row in rows:
        texts = []
        for column in columns:
            place = (row, column)
            text = found.get(place, Spread(0, 0, 0)).percent() if place in wanted else "-"
            if failed.get(place):
                text += f" ({failed[place]} of {found[place].count} failed, counted as chance)"
            texts.append(text)
        counts = sorted(sizes[row] - {0})
        shown = "-" if not counts else f"{counts[0]:,}"
        if len(counts) > 1:
            shown += f" to {counts[-1]:,}"
        lines.append("| " + " | ".join([row, *texts, shown]) + " |")
    return "\n".join(lines)


def draw_bars(
    records: Records, cells: Sequence[Cell], path: Path, figure: str = "test_top1"
) -> None:
    """A group of bars for each column, one bar a row, with the spread over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(dict.fromkeys(cell.column for cell in cells))
    found = by_place(records, figure)
    width = 0.8 / len(rows)
    wide = max(6.0, 0.35 * len(rows) * len(columns) + 3.0)
    drawing, axes = plt.subplots(figsize=(wide, 3.6), dpi=110, layout="constrained")
    for k, row in enumerate(rows):
        places = [
            (c, found[(row, column)]) for c, column in enumerate(columns) if (row, column) in found
        ]
        axes.bar(
            [c + (k - (len(rows) - 1) / 2) * width for c, _ in places],
            [100 * one.mean for _, one in places],
            width * 0.92,
            yerr=[100 * one.deviation for _, one in places],
            capsize=2,
            label=row,
            color=plt.get_cmap("viridis")(0.08 + 0.84 * k / max(1, len(rows) - 1)),
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_ylabel("test top-1, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    save_picture(drawing, path)


def save_picture(drawing: Any, path: Path) -> None:
    """Write a PNG that lies there whole or not at all."""
    import io

    import matplotlib.pyplot as plt

    from patchdeploy.storage import write_atomic

    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png")
    plt.close(drawing)
    write_atomic(path, buffer.getvalue())
