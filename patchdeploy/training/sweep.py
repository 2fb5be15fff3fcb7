"""Which learning rate: short runs at several, compared on validation images (paper, Fig. 9).

In: a function that trains with a `TrainConfig` and gives its validation top-1. Out: every rate with
what it reached, and the best one. Patches like a large rate, all weights a small one; the defaults
(`LEARNING_RATES`) suit the embedded base, another base deserves a sweep of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from patchdeploy.errors import (
    ConfigError,
    FileFormatError,
    NonFiniteLossError,
    TrainingError,
)
from patchdeploy.storage import read_regular, write_atomic
from patchdeploy.training.config import TrainConfig
from patchdeploy.training.workers import SINGLE, Workers

SWEEP_FILE = "sweep.json"
MOST_BYTES = 16 * 2**20
DEFAULT_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class SweepConfig:
    """The table ``[sweep]``: the run is done at several learning rates and the best is kept.

    Attributes:
        rates: to try as ``learning_rate``, for instance [0.003, 0.01, 0.03], each in a run of its
            own; the best on validation images is kept. Empty for no sweep.
    """

    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.rates:
            check_rates(self.rates)


def check_rates(rates: Sequence[float]) -> list[float]:
    """``rates``, ascending and each once.

    Raises:
        ConfigError: fewer than two rates, or one that is not positive.
    """
    wanted = sorted(set(rates))
    if len(wanted) < 2 or not all(0 < rate < math.inf for rate in wanted):
        raise ConfigError(
            f"sweep rates {list(rates)}; a sweep compares at least 2 positive rates; give for "
            "instance 0.001, 0.01, 0.1"
        )
    return wanted


@dataclass(frozen=True)
class RateResult:
    """One run of a sweep.

    Attributes:
        rate: its learning rate.
        validation_top1: in [0, 1]; 0 where the run failed.
        failed: why the run could not go on (a loss that is not finite), or nothing.
    """

    rate: float
    validation_top1: float
    failed: str = ""


@dataclass(frozen=True)
class SweepResult:
    """A sweep.

    Attributes:
        results: by ascending rate.
    """

    results: tuple[RateResult, ...]

    @property
    def best(self) -> RateResult:
        """The best validation accuracy. Between equals the smaller rate, which moves the base
        less.

        Raises:
            TrainingError: every run failed.
        """
        sound = [one for one in self.results if not one.failed]
        if not sound:
            rates = ", ".join(f"{one.rate:g}" for one in self.results)
            raise TrainingError(
                f"no rate of the sweep ({rates}) gave a finite loss; at least 1 must; sweep "
                "smaller rates"
            )
        return max(sound, key=lambda one: (one.validation_top1, -one.rate))

    @property
    def at_edge(self) -> bool:
        """The best rate is the smallest or the largest tried: a wider sweep may find a better."""
        return self.best.rate in (self.results[0].rate, self.results[-1].rate)


def sweep_rates(
    train: Callable[[TrainConfig], float],
    config: TrainConfig,
    rates: Sequence[float] = DEFAULT_RATES,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    workers: Workers = SINGLE,
    on_rate: Callable[[RateResult], None] = lambda result: None,
) -> SweepResult:
    """Run ``train`` at each of ``rates``.

    Args:
        train: trains with the settings it is given and returns validation top-1 in [0, 1], for
            instance ``lambda c: train_patch(base, images, c).metrics["validation_top1"]["64"]``.
        config: its ``learning_rate`` is replaced.
        run_dir: keeps what was reached so far; ``resume`` runs the missing rates alone.
        workers: the ranks that run it together; each calls this, the first one writes.

    Raises:
        ConfigError: fewer than two rates, one that is not positive, or a folder of another sweep.
        FileFormatError: the folder's file does not parse.
        TrainingError: a run cannot go on for another reason than a loss that is not finite.
    """
    wanted = check_rates(rates)
    settings = replace(config, learning_rate=None).to_json()
    path = run_dir / SWEEP_FILE if run_dir is not None else None
    done = _read(path, settings) if path is not None and resume and path.exists() else {}
    for rate in wanted:
        if rate not in done:
            done[rate] = _run(train, replace(config, learning_rate=rate), rate)
        on_rate(done[rate])
        if path is not None and workers.rank == 0:
            document = {"config": settings, "results": [asdict(one) for one in done.values()]}
            write_atomic(path, json.dumps(document, indent=1).encode())
    return SweepResult(tuple(done[rate] for rate in wanted))


def _run(train: Callable[[TrainConfig], float], config: TrainConfig, rate: float) -> RateResult:
    try:
        return RateResult(rate, float(train(config)))
    except NonFiniteLossError as error:
        return RateResult(rate, 0.0, str(error))


def _read(path: Path, settings: dict[str, object]) -> dict[float, RateResult]:
    try:
        document = json.loads(read_regular(path, MOST_BYTES))
        same = document["config"] == settings
        results = [RateResult(**one) for one in document["results"]]
        if not all(map(_is_sound, results)):
            raise ValueError("a rate or an accuracy out of range")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise FileFormatError(
            f"{path} cannot be read ({type(error).__name__}); it must be the whole file that a "
            "sweep wrote; remove it to start again"
        ) from error
    if not same:
        raise ConfigError(
            f"{path} is of a sweep with other settings; resume needs the same; use them, or "
            "another folder"
        )
    return {one.rate: one for one in results}


def _is_sound(result: RateResult) -> bool:
    numbers = type(result.rate) is float and type(result.validation_top1) in (int, float)
    return (
        numbers
        and 0 < result.rate < math.inf
        and 0 <= result.validation_top1 <= 1
        and isinstance(result.failed, str)
    )
