"""A store folder that Kotlin and Python write in turn, beside one that Python writes alone.

In: a number of steps and a seed. Out: each difference in what was said or in what lies there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from comparison import Comparison
from jvm import Patchkit, policy_fields
from store_steps import TABLE, Ask, Settings, random_steps


def compare_stores(
    comparison: Comparison, kotlin: Patchkit, folder: Path, count: int, seed: int
) -> None:
    """Random steps, each by one of the two languages."""
    make = kotlin_asker(folder)
    for case, expected, found in random_steps(count, seed, folder, make(kotlin)):
        comparison.check("stores", case, expected, found)


def kotlin_asker(folder: Path) -> Callable[[Patchkit], Callable[[Settings], Ask]]:
    """By JVM and settings, the function that asks it; ``folder`` gets the coding table."""
    table = folder / TABLE.sha256
    table.write_bytes(TABLE.encoded)

    def asker(kotlin: Patchkit) -> Callable[[Settings], Ask]:
        return lambda settings: _ask(kotlin, table, settings)

    return asker


def _ask(kotlin: Patchkit, table: Path, settings: Settings) -> Ask:
    shipped = {task: str(path) for task, path in settings.shipped.items()}
    fields = {"table": str(table), "shipped": shipped, "now": settings.now}

    def ask(place: Path, operation: dict[str, Any], data: bytes) -> Any:
        policy = policy_fields(settings.policy)
        rest = {**fields, **operation, "folder": str(place), "policy": policy}
        answer = kotlin.ask("store", data, **rest)
        found = answer.get("found", answer.get("code"))
        return sorted(found) if operation["do"] == "list" and type(found) is list else found

    return ask
