"""A training run as a person writes it: a TOML file, every key checked.

In: a file, settings from the command line. Out: a frozen `RunConfig`, or a ConfigError that names
the file, the table, the key, and the nearest key that there is. Training itself is told by
`TrainConfig` and `PatchConfig`; this adds what is trained: method, base, tasks, folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from patchdeploy.data import LoadConfig
from patchdeploy.errors import ConfigError
from patchdeploy.patch import PatchConfig
from patchdeploy.task_names import TASK_NAME
from patchdeploy.training.config import Augment, TrainConfig
from patchdeploy.training.int8_retune import RETUNE
from patchdeploy.training.preparation import OWN_TRAINING
from patchdeploy.training.resolutions import ResolutionsConfig
from patchdeploy.training.run_checks import (
    check_numbers,
    check_read,
    check_statistics,
    not_read,
)
from patchdeploy.training.run_table import check_keys, describe_kind, read_table
from patchdeploy.training.run_toml import Document, apply_overrides, read_toml
from patchdeploy.training.sweep import SweepConfig

Method = Literal["transfer", "baseline", "tasks", "resolutions", "many", "int8_retune"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class TaskConfig:
    """One ``[[task]]``.

    Attributes:
        name: a-z, 0-9, ``_`` and ``-``.
        images: to train on: a folder with a folder per class, or packaged:NAME:train.
        validation: to choose the best epoch by; by default a share of the training images.
        test: looked at once, after training.
        weight: of the task among those that train together (method tasks): twice the weight
            takes twice the images of each step.
        resolution: in pixels, where tasks differ in it (method tasks); by default the run's.
        augment, label_smoothing, mixup, cutmix: of this task alone (method tasks); by default
            those of [training].
        patch: the folder of the patch to train further (method int8_retune).
        teacher: a network to distil from (methods transfer, baseline and int8_retune): one of the
            forms of ``base`` whose last layer has the task's classes, such as trained:FOLDER.
    """

    name: str
    images: str
    validation: str | None = None
    test: str | None = None
    weight: float = 1.0
    resolution: int | None = None
    augment: Augment | None = None
    label_smoothing: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    patch: str | None = None
    teacher: str | None = None

    def training(self, of_run: TrainConfig) -> TrainConfig | None:
        """The run's settings with this task's own over them; None where it has none."""
        given = {key: getattr(self, key) for key in OWN_TRAINING}
        own = {key: value for key, value in given.items() if value is not None}
        return replace(of_run, **own) if own else None


@dataclass(frozen=True)
class LoaderConfig:
    """The table ``[loader]``: how image files are read.

    Attributes:
        workers: threads that decode and resize; 0 for none beside the first.
        cache: a folder that keeps resized images for the next run; by default none is kept.
        on_broken: "error" stops at a file that is no image; "skip" leaves it out and counts it.
    """

    workers: int = 0
    cache: str | None = None
    on_broken: Literal["error", "skip"] = "error"

    def to_load(self) -> LoadConfig:
        """As data sets take it."""
        return LoadConfig(self.workers, Path(self.cache) if self.cache else None, self.on_broken)


@dataclass(frozen=True)
class WorkersConfig:
    """The table ``[workers]``: several processes, started by torchrun.

    Attributes:
        ranks_per_task: one number for all tasks or one a task (methods tasks and many); by default
            divided evenly.
        backend: gloo or nccl; by default nccl where each rank has a GPU.
        timeout_seconds: how long a rank waits for the others in one exchange.
    """

    ranks_per_task: tuple[int, ...] | None = None
    backend: Literal["gloo", "nccl"] | None = None
    timeout_seconds: float = 600.0


@dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        method: transfer (a patch for each task, each on its own), baseline (what a patch is
            compared with), tasks (several tasks train shared weights and a patch each),
            resolutions (one network, a patch variant for each resolution), many (patches of
            several tasks at once over a frozen base) or int8_retune (train a patch further,
            through the int8 base).
        base: embedded, torchvision:NAME, torchvision:NAME@WEIGHTS, keras:FILE.h5,
            checkpoint:NAME:FILE, detector:NAME, detector:NAME@WEIGHTS, detector:NAME:FILE (the
            features of an SSD) or trained:FOLDER (a network that a run has left).
        out: the run's folder; by default runs/ and the name of the file.
        resolutions: square sides in pixels; by default the base's own (int8_retune: the patch's).
        trained: of method baseline: "all" weights of a copy, or the "head" alone.
        statistics: of method baseline's normalisations: "frozen" or "batch" (what training from
            random weights needs).
        training, patch, sharing, sweep, loader, workers: the tables; [sharing] is
            `ResolutionsConfig`.
        tasks: the ``[[task]]`` tables, in order.
    """

    method: Method
    base: str = "embedded"
    out: str = ""
    resolutions: tuple[int, ...] = ()
    trained: Literal["all", "head"] = "all"
    statistics: Literal["frozen", "batch"] = "frozen"
    training: TrainConfig = field(default_factory=TrainConfig)
    patch: PatchConfig = field(default_factory=PatchConfig)
    sharing: ResolutionsConfig = field(default_factory=ResolutionsConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    tasks: tuple[TaskConfig, ...] = ()

    def to_document(self) -> Document:
        """What ``config.toml`` of the run's folder holds: every setting, the defaults too."""
        values = asdict(self)
        document = {key: value for key, value in values.items() if key != "tasks"}
        document["task"] = values["tasks"]
        for key in not_used(self.method):
            document.pop(key, None)
        unread = not_read(self.method)
        training = {key: value for key, value in values["training"].items() if key not in unread}
        if self.method == "int8_retune":
            training["through_int8"] = True  # whatever the dataclass says
        return {**document, "training": training}


TABLES: Mapping[str, type] = MappingProxyType(
    {
        "training": TrainConfig,
        "patch": PatchConfig,
        "sharing": ResolutionsConfig,
        "sweep": SweepConfig,
        "loader": LoaderConfig,
        "workers": WorkersConfig,
    }
)


@dataclass(frozen=True)
class MethodRule:
    """What a method takes.

    Attributes:
        tasks: fewest and most ``[[task]]``; None for no limit.
        resolutions: fewest and most; None for no limit.
        refused: keys that mean nothing to it.
    """

    tasks: tuple[int, int | None]
    resolutions: tuple[int, int | None]
    refused: tuple[str, ...] = ()


_BASELINE = ("trained", "statistics")
RULES: Mapping[Method, MethodRule] = MappingProxyType(
    {
        "transfer": MethodRule((1, None), (0, None), (*_BASELINE, "sharing")),
        "baseline": MethodRule((1, None), (0, 1), ("patch", "sharing")),
        "tasks": MethodRule((2, None), (0, 1), (*_BASELINE, "sharing")),
        "resolutions": MethodRule((1, 1), (2, None), (*_BASELINE, "patch")),
        "many": MethodRule((2, None), (0, 1), (*_BASELINE, "sharing")),
        "int8_retune": MethodRule((1, None), (0, None), (*_BASELINE, "sharing", "patch", "sweep")),
    }
)
DEFAULTS: Mapping[Method, Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "tasks": {"patch": {"statistics": "batch"}},
        "int8_retune": {
            "training": {
                "epochs": RETUNE.epochs,
                "learning_rate": RETUNE.learning_rate,
                "through_int8": True,
            }
        },
    }
)
"""By method and table: defaults that differ from the dataclass's."""
TASK_KEYS: Mapping[str, tuple[Method, ...]] = MappingProxyType(
    {
        "weight": ("tasks",),
        "resolution": ("tasks",),
        **dict.fromkeys(OWN_TRAINING, ("tasks",)),
        "patch": ("int8_retune",),
        "teacher": ("transfer", "baseline", "int8_retune"),
    }
)
"""Keys of a [[task]] that only these methods read."""


def not_used(method: Method) -> tuple[str, ...]:
    """Keys and tables of the top level that mean nothing to ``method``."""
    return RULES[method].refused


def load_run_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a TOML file describes, with ``KEY=VALUE`` settings over it.

    Raises:
        ConfigError: not readable, an unknown key, a value of the wrong kind or out of range, or
            keys that do not fit the method.
    """
    path = Path(path)
    document = apply_overrides(read_toml(path), overrides)
    return parse_run_config(document, str(path), default_out=f"runs/{path.stem}")


def parse_run_config(document: Mapping[str, Any], file: str, default_out: str = "") -> RunConfig:
    """The run that ``document`` describes; ``file`` is for messages.

    Raises:
        ConfigError: see `load_run_config`.
    """
    method = _method(document, file)
    top = {key: value for key, value in document.items() if key not in (*TABLES, "task")}
    known = [one.name for one in fields(RunConfig) if one.name not in ("tasks", *TABLES)]
    checked = check_keys(top, RunConfig, file, known, [*known, *TABLES, "task"])
    defaults = DEFAULTS.get(method, {})
    tables: dict[str, Any] = {
        name: read_table(document.get(name, {}), kind, f"{file}, [{name}]", defaults.get(name, {}))
        for name, kind in TABLES.items()
    }
    tasks = _tasks(document, file)
    given = {"out": default_out, **checked, **tables, "tasks": tasks}
    config = RunConfig(**given)
    _check_method(config, document, method, file)
    _check_values(config, file)
    check_read(config, document.get("training", {}), f"{file}, [training]")
    return config


def _method(document: Mapping[str, Any], file: str) -> Method:
    given = document.get("method")
    for method in METHODS:
        if given == method:
            return method
    near = get_close_matches(str(given), METHODS, 1)
    raise ConfigError(
        f"{file}: "
        + (f"method = {given!r}" if "method" in document else "no method")
        + f"; it must be {describe_kind(Method)}; "
        + (f"did you mean {near[0]!r}?" if near else 'add for instance method = "transfer"')
    )


def _tasks(document: Mapping[str, Any], file: str) -> tuple[TaskConfig, ...]:
    rows = document.get("task", [])
    if not isinstance(rows, list):
        raise ConfigError(
            f"{file}, [task]: one table; tasks are a list of tables; write [[task]], with two "
            "brackets"
        )
    tasks = []
    for place, row in enumerate(rows, 1):
        named = isinstance(row, Mapping) and isinstance(row.get("name"), str)
        label = repr(row["name"]) if named else f"number {place}"
        tasks.append(read_table(row, TaskConfig, f"{file}, [[task]] {label}"))
    return tuple(tasks)


def _check_method(
    config: RunConfig, document: Mapping[str, Any], method: Method, file: str
) -> None:
    rule = RULES[method]
    for key in rule.refused:
        if key in document:
            users = [name for name in METHODS if key not in RULES[name].refused]
            raise ConfigError(
                f"{file}: method {method!r} has no use for {key!r}; it belongs to "
                f"{', '.join(users)}; remove it"
            )
    counts = (
        ("[[task]] tables", len(config.tasks), rule.tasks),
        ("resolutions", len(config.resolutions), rule.resolutions),
    )
    for what, count, (least, most) in counts:
        if count < least or (most is not None and count > most):
            raise ConfigError(
                f"{file}: {count} {what}; method {method!r} takes {_range(least, most)}; "
                f"{'add some' if count < least else 'leave some out'}"
            )


def _range(least: int, most: int | None) -> str:
    if most is None:
        return f"at least {least}"
    return str(least) if least == most else f"{least} to {most}"


def _check_values(config: RunConfig, file: str) -> None:
    twice = [name for name, count in Counter(t.name for t in config.tasks).items() if count > 1]
    if twice:
        raise ConfigError(f"{file}: two tasks are called {twice[0]!r}; names differ; rename one")
    if (
        len(set(config.resolutions)) != len(config.resolutions)
        or min(config.resolutions, default=1) < 1
    ):
        raise ConfigError(
            f"{file}: resolutions = {list(config.resolutions)}; they must be positive and each "
            "stand once; correct the list"
        )
    for task in config.tasks:
        where = f"{file}, [[task]] {task.name!r}"
        if TASK_NAME.fullmatch(task.name) is None:
            raise ConfigError(
                f"{where}: the name must be 1 to 64 of a-z, 0-9, underscore and hyphen; rename it"
            )
        if not 0 < task.weight < float("inf"):
            raise ConfigError(f"{where}: weight = {task.weight}; it must be positive; correct it")
        if task.resolution is not None and task.resolution < 1:
            raise ConfigError(
                f"{where}: resolution = {task.resolution}; it must be positive; correct it"
            )
        try:
            task.training(config.training)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        defaults = TaskConfig(task.name, task.images)
        for key, users in TASK_KEYS.items():
            if config.method not in users and getattr(task, key) != getattr(defaults, key):
                raise ConfigError(
                    f"{where}: method {config.method!r} has no use for {key!r}; it belongs to "
                    f"{', '.join(users)}; remove it"
                )
        if config.method == "int8_retune" and task.patch is None:
            raise ConfigError(
                f"{where}: no 'patch'; method 'int8_retune' trains a patch further; add patch = "
                "the folder of one"
            )
    check_statistics(config, file)
    check_numbers(config, file)
    if config.sweep.rates and config.training.learning_rate is not None:
        raise ConfigError(
            f"{file}, [sweep]: rates = {list(config.sweep.rates)} and [training] learning_rate = "
            f"{config.training.learning_rate}; a sweep sets the learning rate; remove one of them"
        )
