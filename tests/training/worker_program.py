"""What one rank of a run does: a program that tests fork, and that torchrun starts by its path.

In: RANK and its like in the environment, and an `Order` (as JSON on the command line). Out: files
in the order's folder: ``result.<rank>.pt`` with every tensor the run made, or
``error.<rank>.json``; the exit code is 0, 3 after a typed error, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from joint_cases import (
    base_arrays,
    digits,
    odd_or_even,
    patch_arrays,
    small_base,
)
from torch import Tensor, nn

from patchdeploy.errors import PatchdeployError
from patchdeploy.patch import PatchConfig
from patchdeploy.training import (
    ResolutionsConfig,
    TaskImages,
    TrainConfig,
    Workers,
    open_workers,
    records,
    train_baseline,
    train_patch,
    train_resolutions,
    train_tasks,
)
from patchdeploy.training import loop as training_loop
from patchdeploy.training.mixed import train_many_patches

FAILED, INTERRUPTED = 3, 130


@dataclass(frozen=True)
class Order:
    """One run.

    Attributes:
        what: "tasks", "many", "resolutions", "patch" or "baseline" (all weights).
        folder: for what it leaves.
        config: of `TrainConfig`.
        statistics: of the normalisations.
        kinds: what each task owns.
        resume: go on from the checkpoint.
        ranks_per_task: for `open_workers`.
        event: what happens in which rank at which of its steps (from 1): ("kill" | "interrupt" |
            "nan" | "", rank, step).
        own_folders: each rank gets a run folder of its own.
        images: of each task.
        tasks: how many.
    """

    what: str
    folder: str
    config: dict[str, Any] = field(default_factory=dict)
    statistics: str = "frozen"
    kinds: tuple[str, ...] = ("scale_bias", "head")
    resume: bool = False
    ranks_per_task: tuple[int, ...] | None = None
    event: tuple[str, int, int] = ("", 0, 0)
    own_folders: bool = False
    images: int = 96
    tasks: int = 2

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        values = json.loads(text)
        for key in ("kinds", "event", "ranks_per_task"):
            values[key] = tuple(values[key]) if values[key] is not None else None
        return cls(**values)


def train(order: Order, workers: Workers) -> dict[str, Any]:
    """Every tensor that the run makes, by name, and the accuracies."""
    config = TrainConfig(**{"epochs": 2, "batch_size": 16, "device": "cpu", **order.config})
    folder = Path(order.folder)
    run_dir = folder / (f"run.{workers.rank}" if order.own_folders else "run")
    keywords: dict[str, Any] = {
        "workers": workers,
        "run_dir": run_dir,
        "resume": order.resume,
        "quiet": True,
    }
    patch_config = PatchConfig(order.kinds, statistics=order.statistics)  # type: ignore[arg-type]
    base = small_base()
    if order.what == "tasks":
        made = [digits, odd_or_even, digits][: order.tasks]
        tasks = [
            TaskImages(one(order.images)[0], f"task-{k}", one()[1]) for k, one in enumerate(made)
        ]
        result = train_tasks(base, tasks, config, patch_config, **keywords)
        arrays = {f"base/{key}": value for key, value in base_arrays(result.base).items()}
        for name, patch in result.patches.items():
            arrays |= {f"{name}/{key}": value for key, value in patch_arrays(patch).items()}
        return {"arrays": arrays, "top1": dict(result.validation_top1)}
    if order.what == "many":
        sets = {"digits": digits(order.images), "parity": odd_or_even(order.images)}
        keywords["validation"] = {name: held for name, (_, held) in sets.items()}
        trains = {name: train for name, (train, _) in sets.items()}
        patches = train_many_patches(base, trains, config, patch_config, **keywords)
        arrays = {
            f"{name}/{key}": value
            for name, patch in patches.items()
            for key, value in patch_arrays(patch).items()
        }
        top1 = {name: one.metrics["validation_top1"]["16"] for name, one in patches.items()}
        return {"arrays": arrays, "top1": top1}
    images, held = digits(order.images)
    keywords["validation"] = held
    if order.what == "patch":
        patch = train_patch(base, images, config, patch_config, resolutions=(12, 16), **keywords)
        return {"arrays": patch_arrays(patch), "top1": patch.metrics["validation_top1"]}
    if order.what == "baseline":
        one = train_baseline(
            base,
            images,
            "all",
            config,
            statistics=order.statistics,
            **keywords,  # type: ignore[arg-type]
        )
        arrays = {key: value.numpy() for key, value in one.module.state_dict().items()}
        return {"arrays": arrays, "top1": {"baseline": one.validation_top1}}
    settings = ResolutionsConfig(statistics=order.statistics)  # type: ignore[arg-type]
    made_of = train_resolutions(base, images, (12, 16), config, settings, **keywords)
    arrays = {f"base/{key}": value for key, value in base_arrays(made_of.base).items()}
    return {
        "arrays": arrays | patch_arrays(made_of.patch),
        "top1": dict(made_of.validation_top1),
    }


def arrange(event: tuple[str, int, int], rank: int) -> None:
    """Let ``event`` happen in this rank, if it is the one, before that step's gradients."""
    what, where, at = event
    if not what or where not in (rank, -1):
        return
    find, steps = training_loop._Run._find_gradients, [0]

    def eventful(self: Any, stop: bool) -> Tensor:
        steps[0] += 1
        if steps[0] != at:
            return find(self, stop)
        if what == "nan":
            forward, trainee = self.trainee.losses, self.trainee
            spoilt = replace(trainee, losses=lambda batches: _spoil(forward(batches)))
            self.trainee = spoilt
            return find(self, stop)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}[what])
        return find(self, stop)

    training_loop._Run._find_gradients = eventful  # type: ignore[method-assign]


def _spoil(losses: Any) -> Any:
    for one in losses:
        yield {key: value * nn.Parameter(torch.tensor(float("nan"))) for key, value in one.items()}


def run(order: Order) -> int:
    """This rank's part of ``order``; returns the exit code."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    records.write_curves = lambda folder: None  # pictures take longer than these runs
    folder, rank = Path(order.folder), os.environ.get("RANK", "0")
    arrange(order.event, int(rank))
    try:
        with open_workers(order.ranks_per_task, timeout_seconds=60) as workers:
            made = train(order, workers)
    except PatchdeployError as error:
        text = json.dumps({"kind": type(error).__name__, "message": str(error)})
        (folder / f"error.{rank}.json").write_text(text)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    torch.save(made, folder / f"result.{rank}.pt")
    return 0


def run_rank(order: Order, environment: dict[str, str]) -> None:
    """What a forked process does."""
    os.environ.update(environment)
    Path(order.folder).mkdir(parents=True, exist_ok=True)
    sys.exit(run(order))


if __name__ == "__main__":
    sys.exit(run(Order.from_json(sys.argv[1])))
