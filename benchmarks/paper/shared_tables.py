"""Networks that tasks or resolutions share, in small: Table 4 and Table 5."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import OWN_STATISTICS, Cell, Record, by_column
from experiment import Claim, Experiment, Records, draw_bars
from gaps import COMPARABLE, paired_gap
from networks import open_network
from notes import note_table4, note_table5
from own_statistics import with_own_statistics
from transfer_cell import draw

from patchdeploy.data import load_packaged
from patchdeploy.patch import PatchConfig
from patchdeploy.patched_model import PatchedModel
from patchdeploy.training import (
    ResolutionsConfig,
    TaskImages,
    TrainConfig,
    evaluate,
    train_baseline,
    train_resolutions,
    train_tasks,
)

TASKS = ("fashion", "digits")
SEPARATE = "independently trained"
TABLE4_ROWS = {"S/B patch + last layer": ("scale_bias", "head"), "last layer": ("head",)}
SIDES = (96, 80, 64, 48, 32)


RATE = 3e-3
"""Of all weights from a random start, alone or shared: the same for every row. Not swept."""
OWN_RATE = 1e-2
"""Of what each task or resolution has of its own."""


def make_config(settings: Mapping[str, Any], seed: int) -> TrainConfig:
    """The same for every row; a network of its own has the shared weights' rate."""
    alone = SEPARATE in (settings.get("row"), settings.get("kinds"))
    return TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch"],
        learning_rate=settings["rate"] if alone else OWN_RATE,
        shared_learning_rate=None if alone else settings["rate"],
        seed=seed,
        augment="shift",
    )


def measure_tasks(settings: Mapping[str, Any], seed: int) -> Record:
    """Settings: kinds (or SEPARATE), images, tests, px, epochs, batch; own_statistics: measure
    each task's again when all is trained. Random start.
    """
    base = open_network("random", seed, settings["px"])
    px = settings["px"]
    parts = {name: load_packaged(name) for name in settings["tasks"]}
    trains = {name: draw(one[0], settings["images"], seed) for name, one in parts.items()}
    tests = {name: draw(one[1], settings["tests"], 0) for name, one in parts.items()}
    config = make_config(settings, seed)
    top1, again, total = {}, {}, 0
    if settings["kinds"] == SEPARATE:
        for name, train in trains.items():
            result = train_baseline(
                base, train, "all", config, resolution=px, statistics="batch", quiet=True
            )
            top1[name] = evaluate(result.module, tests[name], px, base)[0]
            total += result.parameters
    else:
        own = PatchConfig(tuple(settings["kinds"]), statistics="batch", head_seed=seed)
        tasks = [TaskImages(train, name=name, resolution=px) for name, train in trains.items()]
        joint = train_tasks(base, tasks, config, own, quiet=True)
        for name, patch in joint.patches.items():
            model = PatchedModel(joint.base)
            model.load_patch(patch)
            top1[name] = evaluate(model, tests[name], px, joint.base)[0]
            if settings.get("own_statistics"):
                model = with_own_statistics(joint.base, patch, trains[name], px, seed)
                again[name] = evaluate(model, tests[name], px, joint.base)[0]
        total = count_together(base, own, [len(one.classes) for one in trains.values()])
    return shared_record(top1, again, total)


def shared_record(top1: Mapping[str, float], again: Mapping[str, float], total: int) -> Record:
    """``again``: the same weights with measured statistics in place of the shared ones."""
    record: Record = {"top1": {k: round(v, 5) for k, v in top1.items()}, "parameters": total}
    if again:
        record["top1_own_statistics"] = {k: round(v, 5) for k, v in again.items()}
    return record


def count_together(base: Any, own: PatchConfig, classes: list[int]) -> int:
    """Parameters of a network that tasks share and of all their patches."""
    from patchdeploy.patch.counts import count_family

    return count_family(base, own, classes).together()


def table4_cells(quick: bool, seeds: int) -> list[Cell]:
    """Each run trains both tasks, so a cell holds both columns."""
    common: dict[str, Any] = {"tasks": list(TASKS), "px": 32, "batch": 32, "rate": RATE}
    common |= {"images": 64, "tests": 100, "epochs": 1} if quick else {}
    common |= {} if quick else {"images": 3000, "tests": 1500, "epochs": 12}
    rows: dict[str, Any] = {row: {"kinds": list(kinds)} for row, kinds in TABLE4_ROWS.items()}
    rows["last layer"]["own_statistics"] = True
    rows[SEPARATE] = {"kinds": SEPARATE}
    return [
        Cell(row, "both", seed, {**common, **own})
        for row, own in rows.items()
        for seed in range(seeds)
    ]


def table4_claims(records: Records) -> list[Claim]:
    """Section 5.3."""
    shown = by_column(records)
    patch, head = TABLE4_ROWS
    return [
        Claim("A patch for each task beats sharing all but the last layer",
              paired_gap(shown, patch, head)),
        Claim("... also where statistics are each task's own",
              paired_gap(shown, patch, head + OWN_STATISTICS)),
        Claim("... and is as good as separate networks (gap to them)",
              paired_gap(shown, patch, SEPARATE), COMPARABLE),
    ]  # fmt: skip


def _bars(records: Records, path: Path) -> None:
    shown = by_column(records)
    draw_bars(shown, [Cell(one["row"], one["column"], one["seed"]) for one in shown.values()], path)


TABLE4 = Experiment(
    name="table4",
    title="Table 4: two tasks over one network, all weights learned",
    setup=(
        "MobileNetV2 0.5 from random weights at 32 px, 3,000 training images of each of two tasks, "
        "twelve epochs; every run has the same images, epochs, batch and rate of its weights "
        "(3e-3, not swept). What a task owns beside shared weights (its patch, its head) learns at "
        "the default for that, 1e-2; a network of its own has the one rate for all. Own "
        "statistics: the same weights as the row above, with mean and variance measured again on "
        "each task's training images."
    ),
    paper="""| | S/B patch + last layer | last layer | independently trained |
|---|---|---|---|
| ImageNet | 70.2 | 64.4 | 71.8 |
| Places365 | 54.3 | 51.4 | 54.2 |
| parameters | 3.97M | 3.93M | 6.05M |""",
    cells=table4_cells,
    measure=measure_tasks,
    claims=table4_claims,
    draw=_bars,
    note=note_table4,
)

TABLE5_ROWS: Mapping[str, Mapping[str, Any]] = {
    "S/B patch, ensemble (ours)": {"teach": "ensemble"},
    "S/B patch, summed losses": {"teach": "none"},
    "all shared": {"teach": "none", "private": False},
    SEPARATE: {},
}


def measure_sides(settings: Mapping[str, Any], seed: int) -> Record:
    """Settings: row (of TABLE5_ROWS), sides, dataset, images, tests, epochs, batch. Where
    resolutions share all, statistics are also measured again at each when all is trained.
    """
    sides = settings["sides"]
    base = open_network("random", seed, max(sides))
    train, test = load_packaged(settings["dataset"])
    train, test = draw(train, settings["images"], seed), draw(test, settings["tests"], 0)
    config = make_config(settings, seed)
    top1, again, total = {}, {}, 0
    if settings["row"] == SEPARATE:
        for px in sides:
            result = train_baseline(
                base, train, "all", config, resolution=px, statistics="batch", quiet=True
            )
            top1[f"{px} px"] = evaluate(result.module, test, px, base)[0]
            total += result.parameters
    else:
        how = ResolutionsConfig(**TABLE5_ROWS[settings["row"]])
        joint = train_resolutions(base, train, sides, config, how, quiet=True)
        model = PatchedModel(joint.base)
        model.load_patch(joint.patch)
        for px in sides:
            model.set_active_task(joint.patch.task, px)
            top1[f"{px} px"] = evaluate(model, test, px, joint.base)[0]
            if not how.private:
                own = with_own_statistics(joint.base, joint.patch, train, px, seed)
                again[f"{px} px"] = evaluate(own, test, px, joint.base)[0]
        kinds: Any = ("scale_bias",) if how.private else ()
        total = count_together(base, PatchConfig(kinds), [len(train.classes)] * len(sides))
    return shared_record(top1, again, total)


def table5_cells(quick: bool, seeds: int) -> list[Cell]:
    """Each run has all resolutions, so a cell holds all columns."""
    common: dict[str, Any] = {
        "dataset": "surfaces",
        "batch": 32,
        "rate": RATE,
        "sides": list(SIDES),
    }
    if quick:
        common |= {"images": 96, "tests": 100, "epochs": 1, "sides": [48, 32]}
    else:
        common |= {"images": 1500, "tests": 500, "epochs": 10}
    return [
        Cell(row, "all", seed, {**common, "row": row})
        for row in TABLE5_ROWS
        for seed in range(seeds)
    ]


def table5_claims(records: Records) -> list[Claim]:
    """Section 5.4, and RS-Nets against its baseline."""
    shown = by_column(records)
    ensemble, summed, shared, separate = TABLE5_ROWS
    return [
        Claim("Scales and biases of its own at each resolution beat sharing all",
              paired_gap(shown, summed, shared)),
        Claim("... also where statistics are each resolution's own",
              paired_gap(shown, summed, shared + OWN_STATISTICS)),
        Claim("... and are as good as separate networks or better (gap to them)",
              paired_gap(shown, summed, separate), COMPARABLE),
        Claim("(RS-Nets) Ensemble distillation beats the plain sum of losses",
              paired_gap(shown, ensemble, summed)),
    ]  # fmt: skip


TABLE5 = Experiment(
    name="table5",
    title="Table 5: one network at five resolutions",
    setup=(
        "MobileNetV2 0.5 from random weights, crops of photographs (64 to 96 px) at five sides, "
        "1,500 training images, ten epochs; every run has the same images, epochs, batch and rate "
        "of its weights (3e-3, not swept). Private scales and biases, and the head beside shared "
        "weights, learn at the default for that, 1e-2; a network of its own has the one rate for "
        "all. Own statistics, a row that the paper does not have: the "
        "weights of the row above, with mean and variance measured again at each resolution on "
        "the training images."
    ),
    paper="""| px | S/B patch | all shared | independently trained |
|---|---|---|---|
| 96 | 60.3 | 52.6 | 60.3 |
| 128 | 66.3 | 62.4 | 65.3 |
| 160 | 69.5 | 67.2 | 68.8 |
| 192 | 71 | 69.4 | 70.7 |
| 224 | 71.8 | 70.6 | 71.8 |
| parameters | 3.7M | 3.5M | 17.7M |""",
    cells=table5_cells,
    measure=measure_sides,
    claims=table5_claims,
    draw=_bars,
    note=note_table5,
)
EXPERIMENTS = (TABLE4, TABLE5)
