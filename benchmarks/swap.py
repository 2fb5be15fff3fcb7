"""Swapping to another task: time and memory, against loading a separate model.

Cold: the task's patch is laid over the base and loaded, through the Engine; "from disk" reads,
hashes and checks the patch file as well, otherwise it is still decoded in memory. Against opening
another model file (a peer's int8 export, and our own stand-alone file) in the same runtime, from
disk to ready, and to the first scores. Resident: the task is loaded already. Per run (ONNX
Runtime): one session, the patch fed with every run. Memory: private bytes of a fresh process that
holds K = 1, 10, 100 tasks.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from held_memory import measure_memory
from peer_files import export_peer, peers_of
from results import (
    OTHER,
    OURS,
    PEER,
    STANDALONE,
    Goal,
    log_megabytes,
    new_figure,
    parse_arguments,
    print_table,
    save_figure,
    save_results,
)
from runners import open_session
from subjects import Subject, load_subject, normalise, random_patch, task_patch_file

from patchdeploy.bundle import add_task, create_bundle, open_bundle, standalone
from patchdeploy.measure import measure_interleaved
from patchdeploy.runtime import Engine

FORMATS = {"litert": "tflite", "onnxruntime": "onnx"}
COLD_LIMITS = {"litert": 1.1, "onnxruntime": 0.5}
DISTINCT = 3
PATCH_BUDGET_BYTES = 8 << 20


def write_tasks(subject: Subject, path: Path, tasks: int) -> None:
    """A bundle at the subject's resolution; DISTINCT patches, then the same under other names."""
    create_bundle(path, subject.quantized, resolutions=[subject.px])
    patches = [task_patch_file(subject, seed, [subject.px]) for seed in range(DISTINCT)]
    for k in range(tasks):
        add_task(path, replace(patches[k % DISTINCT], task=f"task_{k:03d}"))


def swap_calls(
    subject: Subject, bundle: Path, runtime: str, files: dict[str, list[Path]], run: bool
) -> dict[str, Callable[[], object]]:
    """Callables that each bring another task to readiness (``run``: to its first scores)."""
    opened = open_bundle(bundle)
    image = subject.images[:1]

    def cold_call(patch_budget_bytes: int) -> Callable[[], None]:
        engine = Engine.open(opened, runtime, budget_bytes=1, patch_budget_bytes=patch_budget_bytes)
        tasks = cycle(opened.tasks[:DISTINCT])

        def swap_cold() -> None:
            task = next(tasks)
            engine.swap_to(task)
            if run:
                engine.logits(image, task)

        return swap_cold

    calls: dict[str, Callable[[], object]] = {
        "patchdeploy, cold": cold_call(PATCH_BUDGET_BYTES),
        "patchdeploy, cold from disk": cold_call(0),
    }
    for name, paths in files.items():
        calls[name] = file_call(subject, runtime, name, paths, run)
    return calls


def file_call(
    subject: Subject, runtime: str, name: str, paths: Sequence[Path], run: bool
) -> Callable[[], object]:
    """Opens the next of ``paths`` in place of the one before."""
    ours = name.startswith("patchdeploy")
    places = cycle(paths)
    held: list[Any] = []
    pixels = subject.images[:1]
    normalised = normalise(subject.network, pixels).transpose(0, 3, 1, 2).copy()
    feed = pixels if ours else normalised

    def load() -> None:
        held.clear()
        if runtime == "litert":
            model = Interpreter(model_path=str(next(places)), num_threads=1)
            model.allocate_tensors()
            if run:
                model.invoke()
        else:
            model = open_session(str(next(places)), 1, ours)
            if run:
                model.run(None, {model.get_inputs()[0].name: feed})
        held.append(model)

    return load


def resident_calls(bundle: Path, runtime: str) -> dict[str, Callable[[], object]]:
    """Swaps to tasks that are loaded already."""
    opened = open_bundle(bundle)
    calls: dict[str, Callable[[], object]] = {}
    modes = ("resident", "per_run") if runtime == "onnxruntime" else ("resident",)
    for mode in modes:
        engine = Engine.open(opened, runtime, mode=mode)
        names = opened.tasks[:DISTINCT]
        for task in names:
            engine.swap_to(task)
        tasks = cycle(names)
        calls[f"patchdeploy, {mode.replace('_', ' ')}"] = lambda e=engine, t=tasks: e.swap_to(
            next(t)
        )
    return calls


def parts_of_cold(bundle: Path, runtime: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of a cold swap's parts, as the Engine reports them."""
    opened = open_bundle(bundle)
    engine = Engine.open(opened, runtime, budget_bytes=1, patch_budget_bytes=0)
    tasks = cycle(opened.tasks[:DISTINCT])
    found = [engine.swap_to(next(tasks)) for _ in range(rounds)]
    return {key: float(np.median([one[key] for one in found])) for key in found[0]}


def model_files(
    subject: Subject, bundle: Path, runtime: str, cache: Path, scratch: Path
) -> dict[str, list[Path]]:
    """Files to load instead: ours of each task exported alone, and every peer's."""
    opened = open_bundle(bundle)
    files: dict[str, list[Path]] = {"patchdeploy, stand-alone": []}
    for task in opened.tasks[:DISTINCT]:
        path = scratch / f"{task}.{FORMATS[runtime]}"
        path.write_bytes(standalone(opened, task, FORMATS[runtime], subject.px))
        files["patchdeploy, stand-alone"].append(path)
    for peer in peers_of(runtime):
        path = export_peer(peer, subject, random_patch(subject, 1), cache)
        files[peer.name] = copy_named(path, scratch, peer.name.replace(" ", "_"))
    return files


def copy_named(path: Path, scratch: Path, stem: str) -> list[Path]:
    """Two copies of a file: loading them in turn is loading another model."""
    places = [scratch / f"{stem}_{k}{path.suffix}" for k in range(2)]
    for place in places:
        place.write_bytes(path.read_bytes())
    return places


def measure_runtime(
    subject: Subject, runtime: str, tasks: Sequence[int], rounds: int, cache: Path
) -> dict[str, Any]:
    """Times and memory of one subject in one runtime."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        bundle = scratch / "bundle"
        write_tasks(subject, bundle, max(*tasks, DISTINCT))
        files = model_files(subject, bundle, runtime, cache, scratch)
        ready = measure_interleaved(
            swap_calls(subject, bundle, runtime, files, run=False), 3, rounds
        )
        first = measure_interleaved(
            swap_calls(subject, bundle, runtime, files, run=True), 3, rounds
        )
        resident = measure_interleaved(resident_calls(bundle, runtime), 10, rounds, inner=20)
        best = min((n for n in files if not n.startswith("patchdeploy")), key=ready.median_ms)
        return {
            "fastest_peer_to_load": best,
            "ready": ready.to_json(best),
            "first_scores": first.to_json(best),
            "resident": resident.to_json(next(iter(resident.samples_ms))),
            "cold_parts_ms": parts_of_cold(bundle, runtime, rounds),
            "private_bytes": measure_memory(subject, bundle, runtime, files, tasks, scratch),
        }


def print_runtime(subject: str, runtime: str, found: dict[str, Any]) -> None:
    """Times, then memory."""
    rows = []
    best = found["fastest_peer_to_load"]
    for name, one in found["ready"]["candidates"].items():
        row = [name]
        for kind in ("ready", "first_scores"):
            one = found[kind]["candidates"][name]
            ratio = one["ratio"]
            row += [
                f"{one['median_ms']:.2f}",
                f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            ]
        rows.append(row)
    for name, one in found["resident"]["candidates"].items():
        rows.append([f"{name}, loaded already", f"{one['median_ms']:.4f}", "", "", ""])
    columns = ["swap by", "ms to ready", f"/ {best} [95%]", "ms to scores", f"/ {best} [95%]"]
    print_table(f"{subject} in {runtime}", columns, rows)
    parts = {key: round(value, 2) for key, value in found["cold_parts_ms"].items()}
    print(f"cold swap by part: {parts}")
    memory = found["private_bytes"]
    counts = list(next(iter(memory.values())))
    print_table(
        f"{subject} in {runtime}: private MB of a process that holds K tasks",
        ["held by", *(f"K={k}" for k in counts)],
        [[name, *(f"{one[k] / 1e6:.1f}" for k in counts)] for name, one in memory.items()],
    )


def plot(document: dict[str, Any], out: Path) -> None:
    """A row per subject and runtime: time to ready, and memory over K."""
    panels = [(s, r) for s, one in document.items() for r in one]
    figure, axes = new_figure(2, len(panels), 11, 2.6 * len(panels))
    for (left, right), (subject, runtime) in zip(axes, panels, strict=True):
        found = document[subject][runtime]
        rows = found["ready"]["candidates"]
        names = list(rows)[::-1]
        medians = [rows[name]["median_ms"] for name in names]
        left.barh(names, medians, 0.6, color=[_colour(name) for name in names])
        for k, name in enumerate(names):
            text = f" {medians[k]:.3g}  ({rows[name]['ratio']['median']:.2f}x)"
            left.text(medians[k], k, text, va="center", fontsize=7)
        left.set_xlim(0, 1.3 * max(medians))
        left.set_title(f"{subject}, {runtime}: another task ready")
        left.set_xlabel("ms")
        for number, (name, one) in enumerate(found["private_bytes"].items()):
            right.plot(
                [int(k) for k in one],
                [value / 1e6 for value in one.values()],
                "--" if "per run" in name else ("-", ":", "-.")[number % 3],
                marker="o",
                ms=3,
                color=_colour(name),
                label=name,
            )
        right.set_xscale("log")
        counts = [int(k) for k in next(iter(found["private_bytes"].values()))]
        right.set_xticks(counts, [str(k) for k in counts])
        right.minorticks_off()
        log_megabytes(right)
        right.grid(color=OTHER, alpha=0.25, lw=0.5)
        right.set_title("private memory of K tasks held")
        right.set_xlabel("tasks K")
        right.set_ylabel("MB")
        right.legend(fontsize=6.5, frameon=False)
    save_figure(figure, out, "swap")


def _colour(name: str) -> str:
    if "stand-alone" in name:
        return STANDALONE
    return OURS if name.startswith("patchdeploy") else PEER


def goals_of(name: str, runtime: str, found: dict[str, Any]) -> list[Goal]:
    """The limits of the issue and of design.md."""
    rows = found["ready"]["candidates"]
    limit = COLD_LIMITS[runtime]
    resident = found["resident"]["candidates"]["patchdeploy, resident"]["median_ms"]
    goals = [
        Goal(f"{how} / loading a separate model, {name}, {runtime}", ratio, limit)
        for how in ("patchdeploy, cold", "patchdeploy, cold from disk")
        if (ratio := rows[how]["ratio"]["median"])
    ]
    goals += [
        Goal(f"swap to a resident task, {name}, {runtime}, ms", resident, 1.0),
    ]
    per_run = found["private_bytes"].get("patchdeploy, per run")
    if per_run and "100" in per_run:
        grown_mb = (per_run["100"] - per_run["1"]) / 1e6
        goals.append(Goal(f"100 tasks over 1, per run, {name}, private MB", grown_mb, 10))
    return goals


def main() -> None:
    """Measure, print, plot."""
    arguments = parse_arguments(__doc__ or "")
    logging.getLogger("patchdeploy.patchfile").setLevel(logging.ERROR)  # its patches are unsigned
    tasks = (1, 5) if arguments.quick else (1, 10, 100)
    document: dict[str, Any] = {}
    goals: list[Goal] = []
    for name in arguments.subject:
        subject = load_subject(name, arguments.wheel)
        print(f"{name}: {subject.weights}, {subject.px} px")
        document[name] = {}
        for runtime in FORMATS:
            found = measure_runtime(
                subject, runtime, tasks, arguments.rounds, arguments.out / "cache"
            )
            document[name][runtime] = found
            print_runtime(name, runtime, found)
            goals += goals_of(name, runtime, found)
    plot(document, arguments.out)
    save_results(arguments.out, "swap", {"subjects": document}, goals, arguments.quick)


if __name__ == "__main__":
    main()
