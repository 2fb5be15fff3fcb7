"""What cascades over resolutions save, and what accuracy they cost.

Each task is trained at several resolutions, exported and scored on images that chose nothing
(`cascade_subjects`); those are split three times in images that choose thresholds, certify them and
report. Rows: every resolution alone; Streeter's greedy algorithm (the paper's); two stages, the
smallest and the largest; ours, certified, and as the choosing split leaves it; random routing with
our shares; an oracle that takes the cheapest resolution that is right. Milliseconds are measured
from a decoded image, in both runtimes, with the same image for every candidate in a round.

What is trained and scored is kept under out/cascade, so a stopped run is resumed.

    .venv/bin/python benchmarks/cascade.py [--task NAME ...] [--quick]
    .venv/bin/python benchmarks/cascade.py --training     # ways to train, on Fashion-MNIST
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cascade_subjects import (
    FASHION,
    METHODS,
    CascadePlan,
    CascadeSubject,
    list_sides,
    open_subject,
)
from results import Goal, new_figure, print_table, save_figure, save_results, warn_if_busy
from rich.console import Console

from patchdeploy.bundle import open_bundle
from patchdeploy.cascade import Answers, greedy_cascade, search_path
from patchdeploy.cascade.describe import CascadeRow, describe, describe_stages
from patchdeploy.cascade.search import Thresholds
from patchdeploy.errors import CertificationError
from patchdeploy.evaluate_cascade import bench_cascade
from patchdeploy.fit_cascade import (
    ALPHAS,
    CascadeConfig,
    CascadeFit,
    attach_cascade,
    fit_scores,
    models_sha256,
    split_images,
)
from patchdeploy.measure import measure_interleaved
from patchdeploy.patchfile.cascade_part import cascade_bytes
from patchdeploy.runtime import Engine
from patchdeploy.runtime.task_scores import TaskScores

NAME = "cascade"
SEEDS = (0, 1, 2)
PLANS = (
    CascadePlan("embedded", FASHION, (32, 48, 64), 8000, 25_000, 5, "ensemble"),
    CascadePlan("embedded", "digits", (32, 48, 64), 1500, 3500, 6),
    CascadePlan("embedded", "fashion", (32, 48, 64), 1500, 2500, 6),
    CascadePlan("embedded", "surfaces", (32, 48, 64), 1000, 1000, 6),
    CascadePlan("embedded", "optical_digits", (32, 48, 64), 800, 997, 6),
    CascadePlan("embedded", "faces", (32, 48, 64), 100, 100, 6),
    CascadePlan("imagenet", "surfaces", (64, 96, 128, 160), 1000, 1000, 3),
    CascadePlan("imagenet", "digits", (64, 96, 128, 160), 1500, 3500, 3),
)
QUICK = (CascadePlan("embedded", "digits", (32, 48), 200, 400, 1),)
FASHION_SHARES = (0.2, 0.4, 0.4)
TOLERANCES = {FASHION: 0.005}
TOLERANCE = 0.01
MOST_MACS, MOST_MS, MOST_MACS_MEAN = 0.65, 0.70, 0.50
MOST_DECISION, MOST_PART_BYTES = 0.01, 1200
CURVE_TOLERANCE = 0.04
"""Greatest loss of a curve."""
SAVINGS = (0.3, 0.4, 0.5, 0.6, 0.7)
_console = Console(stderr=True)


def main() -> None:
    """Measure the tasks that are asked for, print, draw, save."""
    options = read_options()
    logging.getLogger("patchdeploy").setLevel(logging.ERROR)  # its bundles are unsigned, and ours
    warn_if_busy()
    plans = QUICK if options.quick else PLANS
    if options.training:
        plans = tuple(replace(plans[0], method=method) for method in METHODS)
    elif options.task:
        plans = tuple(one for one in plans if one.name in options.task)
    found = []
    for plan in plans:
        subject = open_subject(plan, options.cache, _console.print)
        found.append(measure(subject, options.cache / plan.key, options.timed, options.training))
        print_subject(found[-1])
    name = f"{NAME}_training" if options.training else NAME
    if options.training:
        print_training(found)
    draw(found, options.out, name)
    goals = [] if options.training else list_goals(found)
    save_results(options.out, name, {"subjects": found}, goals, options.quick)


def read_options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--cache", type=Path, default=Path("out/cascade"))
    parser.add_argument("--quick", action="store_true", help="that it runs: no results")
    parser.add_argument("--training", action="store_true", help="compare ways to train")
    parser.add_argument("--timed", type=int, default=300, help="images to time")
    names = [plan.name for plan in PLANS]
    parser.add_argument("--task", action="append", choices=names, help="repeat for several")
    options = parser.parse_args()
    options.timed = min(options.timed, 40) if options.quick else options.timed
    return options


# -- figures ---------------------------------------------------------------------------------------


def measure(subject: CascadeSubject, place: Path, timed: int, training: bool) -> dict[str, Any]:
    """Everything about one task, as plain JSON values; timing is kept in ``place``."""
    plan = subject.plan
    tolerance = TOLERANCES.get(plan.dataset, TOLERANCE)
    splits = [measure_split(subject, tolerance, seed) for seed in SEEDS]
    found = {
        "plan": asdict(plan),
        "name": plan.name,
        "tolerance": tolerance,
        "images": len(subject.unseen),
        "accuracy": {str(px): float(one.mean()) for px, one in subject.scores.correct.items()},
        "macs": {str(px): one for px, one in subject.macs.items()},
        "splits": [{key: one for key, one in split.items() if key != "fit"} for split in splits],
    }
    if not training:
        found["timing"] = measure_time(subject, splits[0]["fit"], place, timed)
    return found


def measure_split(subject: CascadeSubject, tolerance: float, seed: int) -> dict[str, Any]:
    """All rows on the report split of one seed, and the curves."""
    shares = FASHION_SHARES if subject.plan.dataset == FASHION else CascadeConfig().shares
    config = CascadeConfig(tolerance=tolerance, seed=seed, shares=shares)
    fit, reason = fit_or_not(subject.scores, subject.macs, config)
    rule, certificate = fit.cascade.rule, fit.cascade.certificate
    sides = (min(subject.macs), max(subject.macs))
    ends = TaskScores(
        {px: subject.scores.codes[px] for px in sides},
        subject.scores.labels,
        {px: subject.scores.output_scales[px] for px in sides},
    )
    two, _ = fit_or_not(ends, {px: subject.macs[px] for px in sides}, config)
    positions = split_images(len(subject.scores.labels), seed, shares)
    choose, _, report = map(subject.scores.subset, positions)
    chosen = choose.answers(rule.score, subject.macs, certificate.reference)
    answers = report.answers(rule.score, subject.macs, certificate.reference)
    path = search_path(chosen, tolerance)
    rows = [
        replace(fit.rows[0], name="ours"),
        describe("ours, uncertified", answers, path[-1]),
        replace(two.rows[0], name="two stages"),
        *fit.rows[1:],
        random_row(answers, fit.rows[0]),
        oracle_row(answers),
    ]
    return {
        "seed": seed,
        "images": fit.images,
        "score": rule.score,
        "certified": certificate.certified,
        "two_stages_certified": two.cascade.certificate.certified,
        "why_not": reason,
        "smallest_tolerance": fit.smallest_tolerance,
        "part_bytes": 10 + len(cascade_bytes(fit.cascade, sorted(subject.macs, reverse=True))),
        "rows": [asdict(row) for row in rows],
        "curves": curves(chosen, answers),
        "fit": fit,
    }


def fit_or_not(
    scores: TaskScores, costs: Mapping[int, float], config: CascadeConfig
) -> tuple[CascadeFit, str]:
    """The certified fit, or an uncertified one and why."""
    try:
        return fit_scores(scores, costs, config, "task"), ""
    except CertificationError as error:
        return fit_scores(scores, costs, replace(config, uncertified=True), "task"), str(error)


def random_row(answers: Answers, ours: CascadeRow) -> CascadeRow:
    """Images answered by chance at our shares; a stage that passes one on was paid as well."""
    counts = np.rint(np.cumsum((0.0, *ours.answered)) * answers.count).astype(int)
    stage = np.repeat(np.arange(len(ours.resolutions)), np.diff(counts))
    shuffled = np.random.default_rng(0).permutation(stage)
    return describe_stages("random", answers, ours.resolutions, shuffled)


def oracle_row(answers: Answers) -> CascadeRow:
    """The cheapest resolution that is right alone, the cheapest where none is: no rule gets there.

    It knows before it looks, so it pays that resolution alone: a bound on what routing could save.
    """
    sides = answers.by_cost
    right = np.stack([answers.correct[px] for px in sides])
    place = np.where(right.any(axis=0), right.argmax(axis=0), 0)
    row = describe_stages("oracle", answers, sides, place)
    spent = float(np.array([answers.costs[px] for px in sides])[place].mean())
    return replace(row, saving=1 - spent / answers.costs[answers.reference])


def curves(chosen: Answers, answers: Answers) -> dict[str, list[tuple[float, float]]]:
    """(saving, points below the reference) on the report split, chosen on the choosing one."""
    ours = search_path(chosen, CURVE_TOLERANCE)
    greedy = [greedy_cascade(chosen, alpha) for alpha in ALPHAS]
    singles = [Thresholds((px,), ()) for px in answers.by_cost]

    def points(cascades: Sequence[Thresholds]) -> list[tuple[float, float]]:
        rows = [describe("", answers, one) for one in cascades]
        return sorted((row.saving, 100 * row.gap[0]) for row in rows)

    oracle = oracle_row(answers)
    return {
        "ours": points(ours),
        "greedy": points(greedy),
        "one resolution": points(singles),
        "oracle": [(oracle.saving, 100 * oracle.gap[0])],
    }


def measure_time(
    subject: CascadeSubject, fit: CascadeFit, place: Path, images: int
) -> dict[str, Any]:
    """Milliseconds of the first seed's cascade; kept, by the cascade and the number of images."""
    kept = place / "timing.json"
    known = json.loads(json.dumps({"cascade": asdict(fit.cascade), "images": images}))
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["known"] == known:
            return found
    timed = place / "timed"
    shutil.rmtree(timed, ignore_errors=True)
    shutil.copytree(subject.bundle.path, timed)
    (task,) = subject.bundle.tasks
    models = models_sha256(open_bundle(timed).header(task))
    bundle = attach_cascade(timed, replace(fit, task=task, models_sha256=models))
    report = split_images(len(subject.scores.labels), 0)[2]
    found = bench_cascade(bundle, subject.unseen.subset(report), task, images=images)
    found |= {"known": known, "decision": measure_decision(bundle.path, subject)}
    kept.write_text(json.dumps(found))
    return found


def measure_decision(path: Path, subject: CascadeSubject) -> dict[str, float]:
    """What it takes to decide about one image, against running the smallest stage on it."""
    (task,) = subject.bundle.tasks
    with Engine.open(path, "litert") as engine:
        loaded = engine._cascades.require(engine._loaded.version(task))
        stage = loaded.rule.stages[0]
        px = stage.resolution
        pixels = subject.unseen.subset(np.arange(1)).at(px, engine.preprocessing)
        scores = engine.logits(pixels, task, px)
        measured = measure_interleaved(
            {
                "decision": lambda: loaded.is_sure(stage, scores),
                "stage": lambda: engine.logits(pixels, task, px),
            },
            rounds=200,
        )
    ratio = measured.ratio("decision", "stage")
    return {
        "decision_ms": measured.median_ms("decision"),
        "stage_ms": measured.median_ms("stage"),
        "ratio": ratio.median,
        "low": ratio.low,
        "high": ratio.high,
    }


# -- what is shown ---------------------------------------------------------------------------------


def mean_of(found: Mapping[str, Any], row: int, key: str) -> float:
    """Mean over the seeds."""
    return float(np.mean([split["rows"][row][key] for split in found["splits"]]))


def print_subject(found: Mapping[str, Any]) -> None:
    """Rows of the first seed, with the mean saving over seeds, and the times."""
    rows = []
    for place, row in enumerate(found["splits"][0]["rows"]):
        gap, low, high = (100 * one for one in row["gap"])
        savings = [100 * split["rows"][place]["saving"] for split in found["splits"]]
        early = "-"
        if row["early_accuracy"] is not None:
            early = f"{100 * row['early_accuracy']:.1f}, {100 * row['early_reference']:.1f}"
        rows.append(
            [
                row["name"],
                list_sides(row["resolutions"]),
                list_sides([round(100 * one) for one in row["answered"]]),
                f"{np.mean(savings):.1f} ({min(savings):.1f} to {max(savings):.1f})",
                f"{100 * row['accuracy']:.2f}",
                f"{gap:.2f} ({low:.2f} to {high:.2f})",
                early,
            ]
        )
    certified = sum(split["certified"] for split in found["splits"])
    columns = ["", "px", "answered, %", "MACs saved, % (seeds)", "top-1, %"]
    columns += ["points below the reference", "early: ours, reference"]
    print_table(
        f"{found['name']}: {found['images']:,} images, at most {100 * found['tolerance']:g} "
        f"points, certified in {certified} of {len(found['splits'])} splits, "
        f"score {found['splits'][0]['score']}",
        columns,
        rows,
    )
    for split in found["splits"]:
        if split["why_not"]:
            _console.print(f"  seed {split['seed']}: {split['why_not']}")
    if "timing" in found:
        print_timing(found["timing"])


def print_timing(timing: Mapping[str, Any]) -> None:
    """Means from a decoded image."""
    rows = [
        [
            f"{row['runtime']}, {row['threads']}",
            row["name"],
            f"{row['mean_ms']:.3f}",
            f"{100 * row['saving']:.1f} ({100 * row['saving_interval'][0]:.1f} to "
            f"{100 * row['saving_interval'][1]:.1f})",
        ]
        for row in timing["rows"]
    ]
    print_table(
        f"ms from a decoded image, {timing['images']} images",
        ["runtime, threads", "", "mean", "saved, %"],
        rows,
    )


def print_training(found: Sequence[Mapping[str, Any]]) -> None:
    """One row a way to train."""
    sides = list(found[0]["accuracy"])
    rows = [
        [
            METHODS[one["plan"]["method"]],
            *(f"{100 * one['accuracy'][px]:.2f}" for px in sides),
            f"{100 * mean_of(one, 0, 'saving'):.1f}",
            f"{100 * mean_of(one, 0, 'accuracy'):.2f}",
            str(sum(split["certified"] for split in one["splits"])),
        ]
        for one in found
    ]
    columns = ["trained", *(f"{px} px, %" for px in sides), "saved, %", "cascade, %", "certified"]
    print_table("Ways to train, mean of three splits", columns, rows)
    rows = [
        [METHODS[one["plan"]["method"]], *(f"{accuracy_at(one, share):.2f}" for share in SAVINGS)]
        for one in found
    ]
    columns = ["trained", *(f"{100 * share:.0f} %" for share in SAVINGS)]
    print_table("Top-1 in percent where so many MACs are saved", columns, rows)


def accuracy_at(one: Mapping[str, Any], saving: float) -> float:
    """Percent, mean over splits, along the path of cascades; between two of them in a line."""
    found = []
    for split in one["splits"]:
        rows = {row["name"]: row for row in split["rows"]}
        reference = rows[f"{max(map(int, one['accuracy']))} px"]["accuracy"]
        saved, below = np.array(sorted(map(tuple, split["curves"]["ours"]))).T
        found.append(100 * reference - np.interp(saving, saved, below))
    return float(np.mean(found))


def list_goals(found: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """The issue's numbers, as what is spent."""
    goals = []
    for one in found:
        certified = all(split["certified"] for split in one["splits"])
        note = "" if certified else ", NOT CERTIFIED"
        spent = 1 - mean_of(one, 0, "saving")
        goals.append(Goal(f"{one['name']}: share of MACs spent{note}", spent, MOST_MACS))
        cascades = [row for row in one["timing"]["rows"] if row["name"] == "cascade"]
        worst = max(1 - row["saving"] for row in cascades)
        goals.append(Goal(f"{one['name']}: share of ms spent, worst{note}", worst, MOST_MS))
    everywhere = float(np.mean([1 - mean_of(one, 0, "saving") for one in found]))
    goals.append(Goal("share of MACs spent, mean", everywhere, MOST_MACS_MEAN))
    goals.append(Goal("splits in which greedy beats ours in both", count_beaten(found), 0))
    decisions = [one["timing"]["decision"]["ratio"] for one in found]
    goals.append(Goal("decision, share of the smallest stage", max(decisions), MOST_DECISION))
    parts = [split["part_bytes"] for one in found for split in one["splits"]]
    goals.append(Goal("part in the file, bytes", max(parts), MOST_PART_BYTES))
    return goals


def count_beaten(found: Sequence[Mapping[str, Any]]) -> int:
    """Splits where greedy saves more than our uncertified cascade and is not below the interval of
    its accuracy: both take what the choosing split says."""
    beaten = 0
    for one in found:
        for split in one["splits"]:
            rows = {row["name"]: row for row in split["rows"]}
            ours, greedy = rows["ours, uncertified"], rows["greedy"]
            more = greedy["saving"] > ours["saving"] + 0.005
            beaten += more and greedy["gap"][0] <= ours["gap"][0]
    return beaten


COLOURS = {"ours": "#1b6ca8", "greedy": "#c8693a", "one resolution": "#8a8f98", "oracle": "#4a8f3c"}


def draw(found: Sequence[Mapping[str, Any]], out: Path, name: str) -> None:
    """Saving against points below the reference, a panel a task, a line a split."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure, panels = new_figure(columns, rows, 4.2 * columns, 3.2 * rows)
    for axis, one in zip(panels.ravel(), found, strict=False):
        draw_panel(axis, one)
    for axis in panels.ravel()[len(found) :]:
        axis.set_visible(False)
    panels[0, 0].scatter([], [], marker="x", s=70, color="black", label="not certified")
    panels[0, 0].legend(frameon=False, fontsize=8)
    save_figure(figure, out, name)


def draw_panel(axis: Any, one: Mapping[str, Any]) -> None:
    """One task."""
    for split in one["splits"]:
        first = split is one["splits"][0]
        for kind, points in split["curves"].items():
            saved = [100 * saving for saving, _ in points]
            below = [gap for _, gap in points]
            label = kind if first else None
            style = {"color": COLOURS[kind], "label": label, "alpha": 0.8}
            if kind in ("ours", "greedy"):
                axis.plot(saved, below, linewidth=1.2, **style)
            else:
                axis.scatter(saved, below, s=18, **style)
        row = split["rows"][0]
        marker = "*" if split["certified"] else "x"
        shown = "certified" if split["certified"] else "not certified"
        axis.scatter(
            100 * row["saving"],
            100 * row["gap"][0],
            marker=marker,
            s=70,
            color="black",
            zorder=3,
            label=shown if first and split["certified"] else None,
        )
    axis.axhline(0, color="#cccccc", linewidth=0.8)
    axis.axhline(100 * one["tolerance"], color="#cccccc", linewidth=0.8, linestyle="--")
    axis.set_title(f"{one['name']}, {one['plan']['method']}")
    lowest = min(gap for split in one["splits"] for _, gap in split["curves"]["ours"])
    highest = max(100 * split["rows"][0]["gap"][0] for split in one["splits"])
    axis.set_ylim(min(-1.0, lowest - 0.5), max(100 * CURVE_TOLERANCE + 1, highest + 0.5))
    axis.set_xlim(-5, 100)
    axis.set_xlabel("MACs saved, %")
    axis.set_ylabel("points below the reference")


if __name__ == "__main__":
    main()
