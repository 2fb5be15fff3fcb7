"""A run's curves as one picture: loss, validation accuracy and learning rate by epoch.

In: the lines of ``metrics.jsonl``. Out: ``curves.png``, a line for each run name. matplotlib is an
option (extra ``report``): without it there is no picture, and training goes on.
"""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patchdeploy.errors import IrregularFileError, StorageError
from patchdeploy.storage import read_regular, write_atomic

METRICS_FILE, CURVES_FILE, SWEEP_CURVE_FILE = "metrics.jsonl", "curves.png", "sweep.png"
PANELS = (
    ("loss", "training loss", 1.0),
    ("validation_top1", "validation top-1, %", 100.0),
    ("learning_rate", "learning rate", 1.0),
)
"""Key of a line, title, factor."""
LEGEND_ROWS = 20
"""Runs in one column of the legend."""

MOST_BYTES = 256 * 2**20
"""Of ``metrics.jsonl``: a line of 200 bytes a source and epoch."""
LARGEST = 1e30
"""Beyond it an axis cannot be drawn."""
MOST_EPOCHS, MOST_CHARACTERS = 10**7, 300

Line = Mapping[str, Any]


def read_metrics(run_dir: Path) -> list[Line]:
    """The lines of ``metrics.jsonl``, without one that a kill left half written.

    Raises:
        StorageError: the file is there and cannot be read: no file, or longer than a run writes.
    """
    path = run_dir / METRICS_FILE
    try:
        text = read_regular(path, MOST_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return []
    except (OSError, IrregularFileError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("; ")[0]
        if path.is_dir():
            reason = os.strerror(errno.EISDIR)
        raise StorageError(
            f"cannot read {path}: {reason}; it must be a file that may be read; correct its rights"
        ) from error
    lines: list[Line] = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            run, epoch = str(values["run"]), int(values["epoch"])
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            continue
        if 0 <= epoch < MOST_EPOCHS and len(run) <= MOST_CHARACTERS:
            lines.append({**values, "run": run, "epoch": epoch})
    return lines


def write_curves(run_dir: Path) -> bool:
    """Draw ``curves.png`` beside ``metrics.jsonl``; whether there is a picture now.

    Raises:
        StorageError: the place cannot be read or written.
    """
    lines = read_metrics(run_dir)
    if not lines or find_spec("matplotlib") is None:
        return False
    write_atomic(run_dir / CURVES_FILE, draw_curves(lines))
    return True


def draw_curves(lines: Sequence[Line]) -> bytes:
    """A PNG: three panels side by side, a line for each run name, epochs to the right.

    A value that is not finite or not there leaves a gap.
    """
    # Figure alone: pyplot would look for a display and keep every figure.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(line["run"] for line in lines))
    columns = -(-len(names) // LEGEND_ROWS)
    figure = Figure(figsize=(12 + 2.2 * columns, 3.8), layout="constrained")
    axes = figure.subplots(1, len(PANELS))
    for axis, (key, title, factor) in zip(axes, PANELS, strict=True):
        for name in names:
            points = [line for line in lines if line["run"] == name]
            epochs = [line["epoch"] for line in points]
            values = [factor * _number(line.get(key)) for line in points]
            axis.plot(epochs, values, marker=".", label=name.replace("$", r"\$"))  # no formula
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    rates = [_number(line.get("learning_rate")) for line in lines]
    if all(rate > 0 for rate in rates):
        if max(rates) < 2 * min(rates):  # matplotlib warns of an axis whose ends it finds equal
            axes[-1].set_ylim(min(rates) / 2, max(rates) * 2)
        axes[-1].set_yscale("log")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", ncols=columns, fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _number(value: Any) -> float:
    good = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if good and abs(value) < LARGEST else float("nan")


def write_sweep(run_dir: Path, points: Sequence[tuple[float, float | None]]) -> bool:
    """Draw ``sweep.png``; whether there is a picture now.

    Args:
        points: learning rate, validation top-1 in [0, 1] or None where the run failed.

    Raises:
        StorageError: the place cannot be written.
    """
    if not points or find_spec("matplotlib") is None:
        return False
    write_atomic(run_dir / SWEEP_CURVE_FILE, draw_sweep(points))
    return True


def draw_sweep(points: Sequence[tuple[float, float | None]]) -> bytes:
    """A PNG: validation accuracy by learning rate, as the paper's Fig. 9. A run that failed is a
    cross at the bottom; the best is ringed.
    """
    from matplotlib.figure import Figure

    sound = sorted((rate, 100 * top1) for rate, top1 in points if top1 is not None)
    failed = [rate for rate, top1 in points if top1 is None]
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([rate for rate, _ in sound], [top1 for _, top1 in sound], marker=".")
    if sound:
        best = max(sound, key=lambda one: (one[1], -one[0]))
        axis.plot(*best, marker="o", markersize=12, fillstyle="none", color="black", linestyle="")
    axis.plot(failed, [0.0] * len(failed), marker="x", color="red", linestyle="")
    axis.set(xlabel="learning rate", ylabel="validation top-1, %", xscale="log")
    axis.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
