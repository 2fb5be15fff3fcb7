"""Training throughput: images per second, peak memory, and how far from the device's limits.

Last layer, patch, all weights, 16 tasks in one batch, 5 resolutions of one image: the very steps
that the training functions take (batch, augmentation settings, losses, optimiser, bounds on
scales), candidates interleaved round by round. On a CPU in float32; on a GPU in bfloat16 autocast,
channels last, uint8 images resident, eager and compiled. Images are noise: times do not depend on
them. ``--peak`` is for the benchmark itself: one candidate in a process of its own.
``--judge`` measures nothing: it decides the goals of the kept files again, by their own intervals.

Each subject's figures are a file, ``train_throughput_<subject>_<images>.json`` (on a GPU with
``_cuda`` behind), in benchmarks/results, where a copy is committed; of ``--quick`` under ``--out``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch as replaced

import numpy as np
import torch
from results import (
    OTHER,
    OURS,
    STANDALONE,
    Goal,
    new_figure,
    parse_arguments,
    print_goals,
    print_table,
    save_figure,
    save_results,
)
from roofline import COPY, MATMUL, Peaks, Work, measure_work, peak_calls, synchronize

from patchdeploy.base import Base
from patchdeploy.data import ImageDataset, Preprocessing
from patchdeploy.measure import Measurement, measure_interleaved, read_load_average
from patchdeploy.storage import write_atomic
from patchdeploy.training import TrainConfig, baseline, mixed, resolutions, session, transfer
from patchdeploy.training.loop import make_step
from patchdeploy.training.trainee import Trainee

TASKS = 16
CLASSES = 10
SHARES = (1.0, 6 / 7, 5 / 7, 4 / 7, 3 / 7)
"""Of the largest side: at 224 px the paper's 224, 192, 160, 128 and 96."""
STRIDE = 32
ALL, PATCH, LAST = "all weights", "patch", "last layer"
MIXED, SIZES = f"{TASKS} tasks", f"{len(SHARES)} resolutions"
GOALS_PER_SECOND = {ALL: 15_000, PATCH: 20_000}
GOAL_PX = 224
COMPILED = ", compiled"
RESULTS = Path("benchmarks/results")
PEAK_RESET, PROCESS_STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        subject: "embedded" or "mobilenet_v2" (width 1.0, random weights).
        px: side of the images.
        images: in one step; each resolution takes as many.
        device: "cpu" or "cuda".
    """

    subject: str
    px: int
    images: int
    device: str

    @property
    def sizes(self) -> list[int]:
        """Sides of the resolutions, none below the network's stride, the largest first."""
        return sorted({max(STRIDE, round(self.px * share)) for share in SHARES}, reverse=True)

    @property
    def file_name(self) -> str:
        """Of its results, without the ending."""
        device = "" if self.device == "cpu" else f"_{self.device}"
        return f"train_throughput_{self.subject}_{self.images}{device}"


@dataclass(frozen=True)
class IntervalGoal(Goal):
    """A goal that the whole interval decides: undecided where the limit lies inside.

    Attributes:
        low, high: 95 % interval of ``value``.
    """

    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low <= self.limit < self.high:
            return "undecided"
        return super().verdict


class CapturedError(Exception):
    """Carries what a training function has built, instead of training it."""

    def __init__(self, trainee: Trainee) -> None:
        super().__init__()
        self.trainee = trainee


def choose_setting(subject: str, device: str, quick: bool, images: int | None = None) -> Setting:
    """Sizes that a CPU finishes in minutes, and the goal's on a GPU; ``images`` in a step."""
    if device == "cuda":
        return Setting(subject, GOAL_PX, images or 256, device)
    if quick:
        return Setting(subject, 64, images or 2 * TASKS, device)
    return (
        Setting(subject, 64, images or 128, device)
        if subject == "embedded"
        else Setting(subject, 96, images or 64, device)
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """--images, which 16 tasks can share evenly; --results; --judge."""

    def shared(text: str) -> int:
        count = int(text) if text.isdecimal() else 0
        if count < TASKS or count % TASKS:
            raise argparse.ArgumentTypeError(
                f"{text} images; {TASKS} tasks share a step evenly; give a multiple of {TASKS}"
            )
        return count

    parser.add_argument(
        "--images", type=shared, help=f"in a step, a multiple of {TASKS} (each resolution: as many)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON (--quick: as --out)")
    parser.add_argument(
        "--judge", action="store_true", help="measure nothing; decide the kept files' goals again"
    )


def load_base(setting: Setting) -> Base:
    """The subject."""
    if setting.subject == "embedded":
        return Base.embedded()
    settings = Preprocessing(input_size=setting.px)
    return Base.from_torchvision("mobilenet_v2", preprocessing=settings)


def make_images(setting: Setting, count: int) -> ImageDataset:
    """Noise of every class; each twice at least, so that a split keeps all."""
    generator = np.random.default_rng(0)
    shape = (count, setting.px, setting.px, 3)
    pixels = generator.integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % CLASSES
    classes = tuple(map(str, range(CLASSES)))
    return ImageDataset("noise", pixels, labels, classes)


def capture(train: Callable[[], object]) -> Trainee:
    """The `Trainee` that ``train`` hands to the loop."""

    def stop(trainee: Trainee, *_: object, **__: object) -> None:
        raise CapturedError(trainee)

    with replaced.object(session, "fit", stop):
        try:
            train()
        except CapturedError as caught:
            return caught.trainee
    raise AssertionError("no training began")


def make_candidate(name: str, base: Base, setting: Setting) -> tuple[Callable[[], None], int]:
    """(one training step a call, images in it)."""
    kind = name.removesuffix(COMPILED)
    config = TrainConfig(
        batch_size=setting.images,
        device="cuda" if setting.device == "cuda" else "cpu",
        compile=name.endswith(COMPILED),
    )
    images = make_images(setting, max(2 * CLASSES, 2 * setting.images))
    shared = {"validation": images, "quiet": True}
    count = setting.images
    if kind == MIXED:
        config = replace(config, batch_size=setting.images // TASKS)
        tasks = {f"task_{k}": images for k in range(TASKS)}
        found = capture(
            lambda: mixed.train_many_patches(
                base, tasks, config, resolution=setting.px, validation=tasks, quiet=True
            ),
        )
    elif kind == SIZES:
        count *= len(setting.sizes)
        found = capture(
            lambda: resolutions.train_resolutions(base, images, setting.sizes, config, **shared),
        )
    elif kind == ALL:
        found = capture(
            lambda: baseline.train_baseline(
                base, images, "all", config, resolution=setting.px, **shared
            ),
        )
    elif kind == PATCH:
        found = capture(
            lambda: transfer.train_patch(base, images, config, resolutions=[setting.px], **shared),
        )
    else:  # with augmentation set, or its features would be computed once and kept
        whole = replace(config, augment="shift")
        found = capture(
            lambda: baseline.train_baseline(
                base, images, "head", whole, resolution=setting.px, **shared
            ),
        )
    return wait_for(make_step(found, config), setting), count


def wait_for(step: Callable[[], None], setting: Setting) -> Callable[[], None]:
    """``step``, until the device has done it."""
    device = torch.device(setting.device)

    def call() -> None:
        step()
        synchronize(device)

    return call


def names_of(setting: Setting) -> list[str]:
    """Candidates; compiled ones on a GPU."""
    eager = [LAST, PATCH, ALL, MIXED, SIZES]
    if setting.device != "cuda":
        return eager
    return eager + [f"{name}{COMPILED}" for name in (PATCH, ALL, MIXED)]


def measure_setting(setting: Setting, rounds: int, quick: bool) -> dict[str, Any]:
    """Times, work and memory of every candidate."""
    base = load_base(setting)
    device = torch.device(setting.device)
    precision = torch.bfloat16 if setting.device == "cuda" else torch.float32
    limits, find_peaks = peak_calls(device, precision, quick)
    calls: dict[str, Callable[[], None]] = {}
    images, work = {}, {}
    for name in names_of(setting):
        calls[name], images[name] = make_candidate(name, base, setting)
        if not name.endswith(COMPILED):
            work[name] = measure_work(calls[name])
    warmup = 3 if setting.device == "cuda" else 1
    times = measure_interleaved({**calls, **limits}, warmup, rounds)
    peaks = find_peaks(times.median_ms(MATMUL) / 1e3, times.median_ms(COPY) / 1e3)
    rows = {name: describe_candidate(name, times, images[name], peaks, work) for name in calls}
    for name, row in rows.items():
        row["peak_bytes"] = measure_peak(name, setting, calls[name])
    return {
        "setting": asdict(setting) | {"sizes": setting.sizes, "classes": CLASSES},
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if setting.device == "cuda" else None,
        "peaks": asdict(peaks),
        "candidates": rows,
        "times": times.to_json(PATCH),
    }


def describe_candidate(
    name: str, times: Measurement, images: int, peaks: Peaks, work: dict[str, Work]
) -> dict[str, Any]:
    """Rates, and shares of the two limits. A compiled step has its eager twin's operations."""
    seconds = times.median_ms(name) / 1e3
    ratio = times.ratio(name, PATCH)
    twin = work[name.removesuffix(COMPILED)]
    bounds = twin.bound_seconds(peaks)
    return {
        "images": images,
        "ms": 1e3 * seconds,
        "images_per_second": images / seconds,
        "time_over_patch": asdict(ratio),
        **asdict(twin),
        "bound_ms": {key: 1e3 * value for key, value in bounds.items()},
        "share_of_peak_flops": bounds["flops"] / seconds,
        "share_of_roofline": max(bounds.values()) / seconds,
    }


def measure_peak(name: str, setting: Setting, call: Callable[[], None]) -> int:
    """Bytes that a step takes beyond images, base and the candidate's own tensors: on a GPU of its
    memory; on a CPU of the resident memory of a process of its own (Linux).
    """
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    arguments = [sys.executable, __file__, "--peak", name, json.dumps(asdict(setting))]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def print_peak(name: str, setting: Setting) -> None:
    """In the process that holds one candidate: what its steps add to the resident memory."""
    torch.set_num_threads(1)
    call, _ = make_candidate(name, load_base(setting), setting)
    PEAK_RESET.write_text("5")  # VmHWM starts again from what is resident now (proc(5))
    before = read_status_bytes("VmRSS")
    for _ in range(2):
        call()
    print(read_status_bytes("VmHWM") - before)


def read_status_bytes(key: str) -> int:
    """A line of /proc/self/status, which is in kB."""
    for line in PROCESS_STATUS.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def print_setting(found: dict[str, Any]) -> None:
    """A row for each candidate."""
    setting, peaks = found["setting"], found["peaks"]
    rows = []
    for name, one in found["candidates"].items():
        ratio = one["time_over_patch"]
        rows.append(
            (
                name,
                f"{one['images']}",
                f"{one['ms']:.1f}",
                f"{one['images_per_second']:,.0f}",
                f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
                f"{one['peak_bytes'] / 1e6:,.0f}",
                f"{one['bound_ms']['flops']:.1f}",
                f"{one['bound_ms']['bytes']:.1f}",
                f"{one['share_of_peak_flops']:.1%}",
                f"{one['share_of_roofline']:.1%}",
            )
        )
    columns = (
        "trained",
        "images",
        "ms a step",
        "images/s",
        "time / patch [95%]",
        "peak MB",
        "flops bound ms",
        "bytes bound ms",
        "of peak flops",
        "of roofline",
    )
    print_table(
        f"{setting['subject']}, {setting['px']} px, {setting['device']}, {peaks['precision']}: "
        f"peak {peaks['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"{peaks['bytes_per_second'] / 1e9:,.1f} GB/s",
        columns,
        rows,
    )


def goals_of(found: dict[str, Any]) -> list[Goal]:
    """16 tasks against one, by the interval, anywhere; rates at the goal's size on a GPU, by the
    median.
    """
    setting, rows = found["setting"], found["candidates"]
    where = f"{setting['subject']}, {setting['device']}"
    ratio = rows[MIXED]["time_over_patch"]
    what = f"{MIXED} / one task, time of as many images, {where}"
    goals: list[Goal] = [
        IntervalGoal(what, ratio["median"], 1 / 0.9, ratio["low"], ratio["high"]),
    ]
    if setting["subject"] == "mobilenet_v2":
        for name, rate in GOALS_PER_SECOND.items():
            value = None
            if setting["device"] == "cuda" and setting["px"] == GOAL_PX:
                best = max(
                    one["images_per_second"]
                    for key, one in rows.items()
                    if key.removesuffix(COMPILED) == name
                )
                value = 1e6 / best
            what = f"{name}, {GOAL_PX} px on one H200, microseconds an image"
            goals.append(Goal(what, value, 1e6 / rate))
    return goals


def judge_kept(results: Path) -> None:
    """Write the goals of the files in ``results`` as `goals_of` decides them; the rest stays."""
    for path in sorted(results.glob("train_throughput_*.json")):
        kept = json.loads(path.read_text())
        goals = goals_of(kept)
        kept["goals"] = [{**vars(goal), "verdict": goal.verdict} for goal in goals]
        write_atomic(path, json.dumps(kept, indent=1).encode())
        print_goals(goals)


def plot(document: dict[str, Any], out: Path) -> None:
    """Images per second, and the share of the roofline written beside each bar."""
    figure, axes = new_figure(len(document), 1, 5.5 * len(document), 3.2)
    for axis, (title, found) in zip(axes[0], document.items(), strict=True):
        rows = found["candidates"]
        names = list(rows)[::-1]
        rates = [rows[name]["images_per_second"] for name in names]
        colours = [OURS if name.startswith((PATCH, MIXED)) else STANDALONE for name in names]
        axis.barh(names, rates, 0.6, color=colours)
        for k, name in enumerate(names):
            share = rows[name]["share_of_roofline"]
            axis.text(rates[k], k, f" {rates[k]:,.0f}  ({share:.0%} of roofline)", va="center")
        axis.set_xlim(0, 1.45 * max(rates))
        axis.set_title(title)
        axis.set_xlabel("images per second")
        axis.grid(axis="x", color=OTHER, alpha=0.25, lw=0.5)
    save_figure(figure, out, "train_throughput")


def main() -> None:
    """Measure, print, plot."""
    if sys.argv[1:2] == ["--peak"]:
        print_peak(sys.argv[2], Setting(**json.loads(sys.argv[3])))
        return
    arguments = parse_arguments(__doc__ or "", default_rounds=15, own=add_options)
    if arguments.judge:
        judge_kept(arguments.results)
        return
    load = read_load_average()
    torch.set_num_threads(1)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    rounds = min(arguments.rounds, 3) if arguments.quick else arguments.rounds
    results = arguments.out if arguments.quick else arguments.results
    document: dict[str, Any] = {}
    for device in devices:
        for subject in arguments.subject:
            setting = choose_setting(subject, device, arguments.quick, arguments.images)
            found = measure_setting(setting, rounds, arguments.quick)
            document[f"{subject}, {setting.px} px, {device}"] = found
            print_setting(found)
            found = {"load_average_before": load, **found}
            save_results(results, setting.file_name, found, goals_of(found), arguments.quick)
    plot(document, arguments.out)


if __name__ == "__main__":
    main()
