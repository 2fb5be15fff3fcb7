"""A run's TOML file to begin with: every key, what it means, what it is if nothing is said.

In: a method. Out: text in which the lines that a run needs stand, and all others are comments. The
words come from the dataclasses, where each key is described once.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import Any

from patchdeploy.training.run_checks import not_read
from patchdeploy.training.run_config import (
    DEFAULTS,
    RULES,
    TABLES,
    TASK_KEYS,
    Method,
    RunConfig,
    TaskConfig,
)
from patchdeploy.training.run_table import NOTHING
from patchdeploy.training.run_toml import write_value

WIDTH = 98
SENTENCES: Mapping[Method, str] = MappingProxyType(
    {
        "transfer": "A patch for each task over a frozen base, each task on its own.",
        "baseline": "What a patch is compared with: a network of its own for each task.",
        "tasks": "Several tasks train shared weights, and a patch and a last layer each.",
        "resolutions": "One network at several resolutions, with a patch variant for each.",
        "many": "Patches of several tasks over one frozen base, in the same batches.",
        "int8_retune": "Train existing patches a little further, through the int8 base.",
    }
)
_DIGITS = {
    "name": "digits",
    "images": "packaged:digits:train",
    "test": "packaged:digits:test",
}
_FASHION = {
    "name": "fashion",
    "images": "packaged:fashion:train",
    "test": "packaged:fashion:test",
}
_RETUNED = {**_DIGITS, "patch": "runs/transfer/patches/digits"}
STARTS: Mapping[Method, tuple[dict[str, Any], dict[str, Any], list[dict[str, str]]]] = (
    MappingProxyType(
        {
            "transfer": ({"resolutions": [64, 48, 32]}, {"epochs": 6}, [_DIGITS]),
            "baseline": ({"resolutions": [64], "trained": "all"}, {"epochs": 6}, [_DIGITS]),
            "tasks": ({"resolutions": [64]}, {"epochs": 6}, [_DIGITS, _FASHION]),
            "resolutions": ({"resolutions": [64, 48, 32]}, {"epochs": 6}, [_DIGITS]),
            "many": ({"resolutions": [64]}, {"epochs": 6}, [_DIGITS, _FASHION]),
            "int8_retune": ({}, {}, [_RETUNED]),
        }
    )
)
"""What stands in the template of a method: keys of the top, of [training], and tasks."""


def write_template(method: Method) -> str:
    """The text for ``method``; it runs as it is, from the images that ship with packages."""
    top, training, tasks = STARTS[method]
    head = [f"# {SENTENCES[method]}", "# Run it with: patchdeploy train THIS_FILE.toml", ""]
    top = {"method": method, "base": "embedded", **top}
    parts = [
        "\n".join(head) + _describe(RunConfig, top, (*RULES[method].refused, *TABLES, "tasks"))
    ]
    for name, kind in TABLES.items():
        if name not in RULES[method].refused:
            given = training if name == "training" else {}
            shown = DEFAULTS.get(method, {}).get(name, {})
            hidden = not_read(method) if name == "training" else ()
            parts.append(f"[{name}]\n" + _describe(kind, given, hidden, shown))
    hidden = tuple(key for key, users in TASK_KEYS.items() if method not in users)
    parts.append("[[task]]\n" + _describe(TaskConfig, tasks[0], hidden))
    parts += [
        "[[task]]\n" + "".join(f"{key} = {write_value(value)}\n" for key, value in row.items())
        for row in tasks[1:]
    ]
    return "\n".join(parts)


def _describe(
    kind: type,
    given: Mapping[str, Any],
    hidden: tuple[str, ...] = (),
    defaults: Mapping[str, Any] = NOTHING,
) -> str:
    words = field_words(kind)
    parts = []
    for one in fields(kind):
        if one.name in hidden:
            continue
        text = textwrap.wrap(f"{one.name}: {words.get(one.name, '')}".replace("``", ""), WIDTH - 2)
        line = (
            f"{one.name} = {write_value(given[one.name])}"
            if one.name in given
            else f"# {one.name} = {_default(one, defaults)}"
        )
        parts.append("".join(f"# {row}\n" for row in text) + line + "\n")
    return "\n".join(parts)


def _default(one: Field[Any], defaults: Mapping[str, Any]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    value = defaults.get(one.name, value)
    return "..." if value is None or value == "" else write_value(value)


def field_words(kind: type) -> dict[str, str]:
    """What the docstring's "Attributes:" says of each field (nothing under python -OO)."""
    _, _, text = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in text.splitlines():
        entry = re.match(r"    (\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.startswith("     "):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        else:
            break
    return found
