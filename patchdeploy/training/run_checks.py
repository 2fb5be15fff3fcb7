"""What a run's file says and its method would not do, and numbers out of range.

In: a `RunConfig`, and what was written. Out: nothing, or a ConfigError with file, table, key, value
and the way out. Which method reads which key of [training]: `FILE_READERS`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from patchdeploy.errors import ConfigError
from patchdeploy.training.preparation import READERS, TEACHER, find_unread
from patchdeploy.training.run_toml import write_value

if TYPE_CHECKING:
    from patchdeploy.training.run_config import RunConfig

FILE_READERS: Mapping[str, Collection[str]] = {
    **READERS,
    "check_export": ("transfer", "tasks", "resolutions", "many", "int8_retune"),
}
"""By key of [training], the methods that read it. A function may get settings that it shares with
others; a file is of one method, and a baseline makes no patch that could be exported."""
DIVIDED = ("tasks", "many")
"""Methods whose ranks are divided among tasks; in the others each takes a part of every batch."""


def not_read(method: str) -> tuple[str, ...]:
    """Keys of [training] that ``method`` never reads."""
    return tuple(key for key, methods in FILE_READERS.items() if method not in methods)


def check_read(config: RunConfig, written: Mapping[str, Any], where: str) -> None:
    """Refuse what is said of training and not done: a key that the method never reads, whatever
    its value, and a value without what it takes.

    Args:
        written: the table as it stands in the file, without defaults.
        where: file and table.
    """
    for key in not_read(config.method):
        if key in written:
            raise ConfigError(
                f"{where}: {key} = {write_value(written[key])}; method {config.method!r} does not "
                f"read it, only {', '.join(FILE_READERS[key])}; remove it"
            )
    if config.method == "int8_retune" and not config.training.through_int8:
        raise ConfigError(
            f"{where}: through_int8 = false; method 'int8_retune' trains through the int8 base; "
            "remove it"
        )
    has = {TEACHER} if any(task.teacher for task in config.tasks) else set()
    if config.method == "resolutions":
        has |= config.sharing.needs_met(len(config.resolutions))
    for key, need in find_unread(config.training, config.method, has):
        raise ConfigError(
            f"{where}: {key} = {write_value(getattr(config.training, key))}; method "
            f"{config.method!r} reads it with {need} alone; give that or remove it"
        )


def check_statistics(config: RunConfig, file: str) -> None:
    """Refuse statistics that a baseline's last layer alone does not read."""
    if config.trained == "head" and config.statistics != "frozen":
        raise ConfigError(
            f"{file}: statistics = {config.statistics!r} with trained = 'head'; the last layer "
            "alone learns over normalisations as they are; remove one of them"
        )


def check_numbers(config: RunConfig, file: str) -> None:
    """Refuse what [loader] and [workers] cannot be, and ranks for a method that divides none."""
    checks = (
        ("loader", "workers", config.loader.workers, config.loader.workers >= 0, "0 or more"),
        (
            "workers",
            "timeout_seconds",
            config.workers.timeout_seconds,
            0 < config.workers.timeout_seconds < float("inf"),
            "positive",
        ),
        (
            "workers",
            "ranks_per_task",
            list(config.workers.ranks_per_task or ()),
            min(config.workers.ranks_per_task or (1,)) >= 1 and config.workers.ranks_per_task != (),
            "one or more whole numbers of at least 1",
        ),
    )
    for table, key, value, good, rule in checks:
        if not good:
            raise ConfigError(
                f"{file}, [{table}]: {key} = {value!r}; it must be {rule}; correct it"
            )
    if config.workers.ranks_per_task is not None and config.method not in DIVIDED:
        raise ConfigError(
            f"{file}, [workers]: ranks_per_task = {list(config.workers.ranks_per_task)}; in method "
            f"{config.method!r} every rank takes a part of every batch; it belongs to "
            f"{', '.join(DIVIDED)}; remove it"
        )
