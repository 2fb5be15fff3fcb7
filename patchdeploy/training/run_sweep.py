"""A run at several learning rates: which is best, and what it left.

In: a `Job` with a ``[sweep]``. Out: a folder for each rate with all that a run leaves,
``sweep.json``, ``sweep.png``, and the best rate's summary. Rates are compared on validation images;
test images are looked at once, with the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from patchdeploy.training.config import TrainConfig
from patchdeploy.training.curves import write_sweep
from patchdeploy.training.run_methods import METHODS, Job, Summary
from patchdeploy.training.sweep import RateResult, sweep_rates

PLACES = ("patch", "network")
"""Keys of a summary that name a folder within the run's."""


def sweep_job(job: Job) -> Summary:
    """Do ``job`` at each rate of its ``[sweep]``, keep all, and report the best.

    Raises:
        TrainingError: no rate gave a finite loss, or a run cannot go on for another reason.
        PatchdeployError: see `METHODS`.
    """
    method = METHODS[job.config.method]
    untested = tuple(replace(task, test=None) for task in job.tasks)
    reached: list[RateResult] = []

    def train(config: TrainConfig) -> float:
        return mean_top1(method(replace(_at_rate(job, config), tasks=untested)))

    def tell(result: RateResult) -> None:
        reached.append(result)
        if job.first:
            if not job.quiet:
                _print(result)
            job.folder.mkdir(parents=True, exist_ok=True)
            write_sweep(job.folder, [(one.rate, _top1(one)) for one in reached])

    found = sweep_rates(
        train,
        job.config.training,
        job.config.sweep.rates,
        run_dir=job.folder,
        resume=job.resume,
        workers=job.workers,
        on_rate=tell,
    )
    best = replace(job.config.training, learning_rate=found.best.rate)
    # Its checkpoints are whole, so nothing is trained again.
    summary = method(replace(_at_rate(job, best), resume=True))
    results = [asdict(one) for one in found.results]
    swept = {"best_rate": found.best.rate, "at_edge": found.at_edge, "results": results}
    return {"sweep": swept, **_within(summary, rate_folder(found.best.rate))}


def rate_folder(rate: float) -> str:
    """Within the run's: rate-0.01."""
    return f"rate-{rate!r}"


def mean_top1(summary: Summary) -> float:
    """Validation top-1 in [0, 1], the mean over tasks and resolutions."""
    values = [top1 for one in summary["tasks"].values() for top1 in one["validation_top1"].values()]
    return float(sum(values) / len(values))


def _at_rate(job: Job, config: TrainConfig) -> Job:
    assert config.learning_rate is not None
    folder = job.folder / rate_folder(config.learning_rate)
    return replace(job, config=replace(job.config, training=config), folder=folder)


def _within(summary: Summary, folder: str) -> dict[str, Any]:
    """``summary`` with its places as seen from the folder above."""

    def move(table: Mapping[str, Any]) -> dict[str, Any]:
        return {k: str(Path(folder) / v) if k in PLACES else v for k, v in table.items()}

    tasks = {name: move(one) for name, one in summary["tasks"].items()}
    return {**move(summary), "tasks": tasks}


def _top1(result: RateResult) -> float | None:
    return None if result.failed else result.validation_top1


def _print(result: RateResult) -> None:
    text = result.failed or f"validation {100 * result.validation_top1:.1f} %"
    console = Console(stderr=True)
    console.print(
        f"learning rate {result.rate:g}: {text}", highlight=False, markup=False, soft_wrap=True
    )
