"""The report: one self-contained HTML page about a bundle.

In: `ReportData`, plain numbers and pictures that measuring has collected. Out: an HTML page
with every picture inside it, so that it can be mailed, and the same numbers as JSON.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import MissingExtraError
from patchdeploy.evaluate_cascade import CascadeEvaluation
from patchdeploy.storage import write_atomic

_NO_METADATA = {"Date": None, "Creator": None}
METHOD_COLOURS = {"head": "#b8b8b8", "patch": "#2a6fdb", "all": "#e0a030"}
METHOD_LABELS = {"head": "last layer only", "patch": "patch", "all": "all weights"}


@dataclass(frozen=True)
class Accuracy:
    """Top-1 on test images: ``runtime`` is "float" (torch) or the name of an int8 runtime."""

    task: str
    method: str
    runtime: str
    resolution: int
    top1: float
    images: int


@dataclass(frozen=True)
class TrainedBytes:
    """What a training method makes an app ship for one task, as float32 or as exported."""

    task: str
    method: str
    parameters: int
    stored_bytes: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image, median over ``rounds``; batch 1."""

    runtime: str
    resolution: int
    threads: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    rounds: int


@dataclass(frozen=True)
class Swap:
    """Milliseconds to make a task ready: ``kind`` is "cold" or "resident"."""

    runtime: str
    kind: str
    median_ms: float
    rounds: int


@dataclass(frozen=True)
class Sample:
    """One test image with what the exported bundle says about it."""

    task: str
    image: NDArray[np.uint8]
    truth: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class CascadeResult:
    """A task's cascade on test images, or the reason why there is none."""

    task: str
    evaluation: CascadeEvaluation | None
    reason: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows.

    Attributes:
        title: heading.
        device: machine and versions, as `patchdeploy.measure.describe_device` gives them.
        sizes: rows of the size report (task, resolution, format, bytes).
        agreement: rows of the verification (check, passed, detail).
        cascades: of the tasks; none: the page has no such part.
    """

    title: str
    device: Mapping[str, Any]
    accuracies: Sequence[Accuracy]
    trained: Sequence[TrainedBytes]
    sizes: Mapping[str, Any]
    latencies: Sequence[Latency]
    swaps: Sequence[Swap]
    agreement: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    seconds: Mapping[str, float]
    cascades: Sequence[CascadeResult] = ()

    def to_json(self) -> dict[str, Any]:
        """The numbers without the pictures."""
        document = asdict(self)
        for sample in document["samples"]:
            del sample["image"]
        return document


def write_report(data: ReportData, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into ``folder``; returns the page's path.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
        StorageError: the folder cannot be written; what was there is unchanged.
    """
    page = render_report(data)
    write_atomic(folder / "report.json", json.dumps(data.to_json(), indent=1).encode())
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def render_report(data: ReportData) -> str:
    """The page as a string; every picture is a data URI."""
    check_packages()
    import jinja2
    import matplotlib as mpl

    mpl.use("Agg")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = format_percent
    environment.filters["points"] = format_points
    environment.filters["kilobytes"] = lambda value: f"{value / 1000:,.1f} kB"
    environment.filters["image"] = image_uri
    text = (files("patchdeploy") / "templates" / "report.html.j2").read_text()
    return environment.from_string(text).render(
        data=data,
        tasks=list(dict.fromkeys(a.task for a in data.accuracies)),
        resolutions=sorted({a.resolution for a in data.accuracies}),
        runtimes=list(dict.fromkeys(a.runtime for a in data.accuracies if a.method == "patch")),
        top1=accuracy_lookup(data.accuracies),
        drops=int8_drops(data.accuracies),
        images={a.task: a.images for a in data.accuracies},
        methods=[m for m in METHOD_LABELS if any(row.method == m for row in data.trained)],
        device=device_rows(data.device),
        file_groups=group_files(data.sizes["files"]),
        method_labels=METHOD_LABELS,
        plots={
            "methods": plot_methods(data),
            "resolutions": plot_resolutions(data),
            "sizes": plot_sizes(data),
            "latency": plot_latency(data),
            **({"cascades": plot_cascades(data)} if data.cascades else {}),
        },
    )


def check_packages() -> None:
    """Check early that what the page needs is there.

    Raises:
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    for package in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"the report needs {package}, which is not installed; "
                "run: pip install 'patchdeploy[report]'"
            ) from error


def accuracy_lookup(accuracies: Sequence[Accuracy]) -> dict[tuple[str, str, str, int], float]:
    """(task, method, runtime, resolution) -> top-1."""
    return {(a.task, a.method, a.runtime, a.resolution): a.top1 for a in accuracies}


def int8_drops(accuracies: Sequence[Accuracy]) -> dict[tuple[str, int], float]:
    """(task, resolution) -> float minus int8 top-1 of the patch, the int8 runtimes averaged."""
    top1 = accuracy_lookup(accuracies)
    found: dict[tuple[str, int], list[float]] = {}
    for a in accuracies:
        whole = top1.get((a.task, a.method, "float", a.resolution))
        if a.method == "patch" and a.runtime != "float" and whole is not None:
            found.setdefault((a.task, a.resolution), []).append(whole - a.top1)
    return {key: sum(drops) / len(drops) for key, drops in found.items()}


def format_percent(value: float | None) -> str:
    """A share in [0, 1] as percent; a dash where it was not measured."""
    return "–" if value is None else f"{100 * value:.1f} %"


def format_points(value: float | None) -> str:
    """A difference of shares as percentage points, never "-0.00"."""
    return "–" if value is None else f"{round(100 * value, 2) + 0.0:.2f}"


def group_files(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Files by what they are, those that ship first; long groups that do not ship are folded."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["what"], []).append(row)
    found = [
        {
            "what": what,
            "rows": files_of,
            "bytes": sum(row["bytes"] for row in files_of),
            "folded": "does not ship" in what and len(files_of) > 3,
        }
        for what, files_of in groups.items()
    ]
    return sorted(found, key=lambda group: "does not ship" in str(group["what"]))


def device_rows(device: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The device description in words and units."""
    rows = []
    for key, value in device.items():
        if value is None or value == "":
            continue
        if key == "memory_bytes":
            rows.append(("memory", f"{value / 1e9:.1f} GB"))
        else:
            rows.append((key.replace("_", " "), str(value)))
    return rows


def image_uri(image: NDArray[np.uint8]) -> str:
    """A PNG data URI of uint8 [H, W, 3], enlarged to at least 96 pixels without smoothing."""
    from PIL import Image

    factor = max(1, -(-96 // max(image.shape[:2])))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg_uri(figure: Any) -> str:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    # No date and no random ids: the same numbers give the same page.
    with mpl.rc_context({"svg.hashsalt": "patchdeploy"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata=_NO_METADATA)
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def plot_methods(data: ReportData) -> str:
    """Float test accuracy of the three training methods per task, at the largest resolution."""
    largest = max(a.resolution for a in data.accuracies)
    rows = [a for a in data.accuracies if a.runtime == "float" and a.resolution == largest]
    tasks = list(dict.fromkeys(a.task for a in rows))
    methods = [m for m in METHOD_LABELS if any(a.method == m for a in rows)]
    figure, axes = _axes(max(5.2, 1.5 * len(tasks) + 1.5), 3.2)
    width = 0.8 / max(len(methods), 1)
    for k, method in enumerate(methods):
        found = {a.task: 100 * a.top1 for a in rows if a.method == method}
        x = [t + (k - (len(methods) - 1) / 2) * width for t in range(len(tasks))]
        heights = [found.get(task, float("nan")) for task in tasks]
        bars = axes.bar(
            x, heights, width, label=METHOD_LABELS[method], color=METHOD_COLOURS[method]
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=1)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set_ylim(0, 108)  # bars are read by their length, so they start at zero
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel(f"test top-1 at {largest} px, %")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14), fontsize=8)
    return _svg_uri(figure)


def plot_resolutions(data: ReportData) -> str:
    """int8 accuracy of each task against the resolution, float dashed."""
    figure, axes = _axes(5.4, 3.4)
    patched = [a for a in data.accuracies if a.method == "patch"]
    int8_runtime = next((a.runtime for a in patched if a.runtime != "float"), "float")
    for k, task in enumerate(dict.fromkeys(a.task for a in patched)):
        for runtime, style in (("float", "--"), (int8_runtime, "-")):
            points = sorted(
                (a.resolution, 100 * a.top1)
                for a in patched
                if a.task == task and a.runtime == runtime
            )
            label = task if style == "-" else None
            marker = "o" if style == "-" else None
            sides, shares = [px for px, _ in points], [share for _, share in points]
            axes.plot(sides, shares, style, color=f"C{k}", marker=marker, label=label)
    axes.set_xticks(sorted({a.resolution for a in patched}))
    axes.set_xlabel("resolution, px (solid: int8, dashed: float32)")
    axes.set_ylabel("test top-1, %")
    axes.legend(frameon=False, fontsize=8, ncols=3, bbox_to_anchor=(0.5, 1), loc="lower center")
    return _svg_uri(figure)


def plot_cascades(data: ReportData) -> str:
    """Accuracy against cost: every resolution alone as a line, the cascade as a star."""
    figure, axes = _axes(5.4, 3.4)
    shown = [one for one in data.cascades if one.evaluation is not None]
    for k, result in enumerate(shown):
        assert result.evaluation is not None
        cascade, *singles = result.evaluation.rows
        cost = [100 * (1 - row.saving) for row in singles]
        share = [100 * row.accuracy for row in singles]
        axes.plot(cost, share, "o-", color=f"C{k}", label=f"{result.task}, one resolution")
        for row, x, y in zip(singles, cost, share, strict=True):
            axes.annotate(f"{row.resolutions[0]} px", (x, y), (3, -11), fontsize=7, color=f"C{k}",
                          textcoords="offset points")  # fmt: skip
        x, y = 100 * (1 - cascade.saving), 100 * cascade.accuracy
        axes.plot([x], [y], "*", color=f"C{k}", markersize=14, label=f"{result.task}, cascade")
    axes.margins(0.08, 0.15)  # room for the labels
    if not shown:
        axes.text(0.5, 0.5, "no cascade was certified", ha="center", transform=axes.transAxes)
    axes.set_xlabel("multiply-accumulates an image, % of the largest resolution's")
    axes.set_ylabel("test top-1, int8, %")
    if shown:
        axes.legend(frameon=False, fontsize=8, ncols=2, bbox_to_anchor=(0.5, 1), loc="lower center")
    return _svg_uri(figure)


def plot_sizes(data: ReportData) -> str:
    """Bytes that an app ships for K tasks: base plus patches against whole models."""
    figure, axes = _axes(5.4, 3.4)
    for k, row in enumerate(data.sizes["growth"]):
        counts = row["tasks"]
        axes.plot(
            counts, [b / 1e6 for b in row["bytes"]], marker="o", color=f"C{k}", label=row["label"]
        )
    axes.set_xticks(sorted({count for row in data.sizes["growth"] for count in row["tasks"]}))
    axes.set_xlabel("tasks")
    axes.set_ylabel("an app ships, MB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _svg_uri(figure)


def plot_latency(data: ReportData) -> str:
    """Median latency per resolution and runtime, with the 10th to 90th percentile."""
    figure, axes = _axes(5.4, 3.4)
    sides = sorted({row.resolution for row in data.latencies})
    series = list(dict.fromkeys((row.runtime, row.threads) for row in data.latencies))
    width = 0.8 / max(len(series), 1)
    for k, (runtime, threads) in enumerate(series):
        rows = [r for r in data.latencies if (r.runtime, r.threads) == (runtime, threads)]
        axes.bar(
            [sides.index(r.resolution) + (k - (len(series) - 1) / 2) * width for r in rows],
            [r.median_ms for r in rows],
            width,
            yerr=[
                [max(0.0, r.median_ms - r.p10_ms) for r in rows],
                [max(0.0, r.p90_ms - r.median_ms) for r in rows],
            ],
            color=f"C{k}",
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#5b6575"},
            label=f"{runtime}, {threads} thread{'s' if threads > 1 else ''}",
        )
    axes.set_xticks(range(len(sides)), [f"{px} px" for px in sides])
    axes.set_ylabel("ms per image")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=2, bbox_to_anchor=(0.5, 1), loc="lower center")
    return _svg_uri(figure)
