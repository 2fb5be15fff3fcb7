"""The report: one self-contained HTML page about a bundle.

In: `ReportData`, plain numbers and pictures that measuring has collected. Out: an HTML page
with every picture inside it, so that it can be mailed, and the same numbers as JSON.
"""

from __future__ import annotations

import base64
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
from patchdeploy.storage import write_atomic

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
class ReportData:
    """Everything that the page shows.

    Attributes:
        title: heading.
        device: machine and versions, as `patchdeploy.measure.describe_device` gives them.
        sizes: rows of the size report (task, resolution, format, bytes).
        agreement: rows of the verification (check, passed, detail).
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
    try:
        import jinja2
        import matplotlib as mpl
    except ImportError as error:
        raise MissingExtraError(
            f"the report needs {error.name}, which is not installed; "
            "run: pip install 'patchdeploy[report]'"
        ) from error
    mpl.use("Agg")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["kilobytes"] = lambda value: f"{value / 1000:,.1f} kB"
    environment.filters["image"] = image_uri
    text = (files("patchdeploy") / "templates" / "report.html.j2").read_text()
    return environment.from_string(text).render(
        data=data,
        tasks=list(dict.fromkeys(a.task for a in data.accuracies)),
        resolutions=sorted({a.resolution for a in data.accuracies}),
        runtimes=list(dict.fromkeys(a.runtime for a in data.accuracies if a.method == "patch")),
        top1=accuracy_lookup(data.accuracies),
        method_labels=METHOD_LABELS,
        plots={
            "methods": plot_methods(data),
            "resolutions": plot_resolutions(data),
            "sizes": plot_sizes(data),
            "latency": plot_latency(data),
        },
    )


def accuracy_lookup(accuracies: Sequence[Accuracy]) -> dict[tuple[str, str, str, int], float]:
    """(task, method, runtime, resolution) -> top-1."""
    return {(a.task, a.method, a.runtime, a.resolution): a.top1 for a in accuracies}


def image_uri(image: NDArray[np.uint8]) -> str:
    """A PNG data URI of uint8 [H, W, 3], enlarged to at least 96 pixels without smoothing."""
    from PIL import Image

    factor = max(1, -(-96 // max(image.shape[:2])))
    enlarged = image.repeat(factor, axis=0).repeat(factor, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(enlarged).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _svg_uri(figure: Any) -> str:
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
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
    figure, axes = _axes(1.4 * len(tasks) + 2, 3.2)
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
    lowest = min((100 * a.top1 for a in rows), default=0.0)
    axes.set_ylim(max(0.0, lowest - 12), 103)
    axes.set_ylabel(f"test top-1 at {largest} px, %")
    axes.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16), fontsize=8)
    return _svg_uri(figure)


def plot_resolutions(data: ReportData) -> str:
    """int8 accuracy of each task against the resolution, float dashed."""
    figure, axes = _axes(6.4, 3.2)
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
            axes.plot(*zip(*points, strict=True), style, color=f"C{k}", marker="o", label=label)
    axes.set_xticks(sorted({a.resolution for a in patched}))
    axes.set_xlabel("resolution, px (solid: int8, dashed: float32)")
    axes.set_ylabel("test top-1, %")
    axes.legend(frameon=False, fontsize=8, bbox_to_anchor=(1.01, 1), loc="upper left")
    return _svg_uri(figure)


def plot_sizes(data: ReportData) -> str:
    """Bytes that an app ships for K tasks: base plus patches against whole models."""
    figure, axes = _axes(6.4, 3.2)
    for k, row in enumerate(data.sizes["growth"]):
        counts = row["tasks"]
        axes.plot(
            counts, [b / 1e6 for b in row["bytes"]], marker="o", color=f"C{k}", label=row["label"]
        )
    axes.set_xlabel("tasks")
    axes.set_ylabel("shipped, MB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _svg_uri(figure)


def plot_latency(data: ReportData) -> str:
    """Median latency per resolution and runtime, with the 10th to 90th percentile."""
    figure, axes = _axes(6.4, 3.2)
    for k, (runtime, threads) in enumerate(
        dict.fromkeys((row.runtime, row.threads) for row in data.latencies)
    ):
        rows = sorted(
            (r for r in data.latencies if (r.runtime, r.threads) == (runtime, threads)),
            key=lambda r: r.resolution,
        )
        low = [r.median_ms - r.p10_ms for r in rows]
        high = [r.p90_ms - r.median_ms for r in rows]
        axes.errorbar(
            [r.resolution for r in rows],
            [r.median_ms for r in rows],
            yerr=[low, high],
            marker="o",
            capsize=3,
            color=f"C{k}",
            label=f"{runtime}, {threads} thread{'s' if threads > 1 else ''}",
        )
    axes.set_xticks(sorted({r.resolution for r in data.latencies}))
    axes.set_xlabel("resolution, px")
    axes.set_ylabel("ms per image")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)
    return _svg_uri(figure)
