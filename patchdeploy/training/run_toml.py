"""TOML text in and out: a run's file, settings given on the command line, the file as it was run.

In: a path, or texts such as ``training.epochs=3``. Out: plain dictionaries, or text that reads
back to the same ones. What the keys mean is `patchdeploy.training.run_config`'s matter.
"""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchdeploy.errors import ConfigError, IrregularFileError
from patchdeploy.storage import read_regular

Document = dict[str, Any]
MOST_BYTES = 2**20
MOST_DEPTH = 8


def read_toml(path: Path) -> Document:
    """The file as a dictionary.

    Raises:
        ConfigError: no such file, or not TOML (with line and column).
    """
    try:
        document = tomllib.loads(read_regular(path, MOST_BYTES, follow=True).decode())
    except IrregularFileError as error:
        raise ConfigError(f"cannot read {error}") from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}; it must be a TOML file; correct the "
            "path, or write one with: patchdeploy new-config transfer"
        ) from error
    except RecursionError as error:
        raise _too_deep(str(path)) from error
    except ValueError as error:  # no UTF-8, no TOML, a number of thousands of digits
        raise ConfigError(
            f"{path} is not TOML: {error}; texts stand in quotes, lists in [ ]; correct that place"
        ) from error
    check_values(document, str(path))
    return document


def check_values(document: Document, where: str) -> None:
    """Refuse what parses and no setting can be: nested deeply, a whole number beyond 64 bits, a
    text with a zero in it (no path has one).

    Raises:
        ConfigError: see above.
    """
    level: list[tuple[str, Any]] = list(document.items())
    for _ in range(MOST_DEPTH):
        inner: list[tuple[str, Any]] = []
        for key, value in level:
            if isinstance(value, dict):
                inner += value.items()
            elif isinstance(value, list):
                inner += [(key, one) for one in value]
            elif isinstance(value, str) and "\0" in value:
                raise ConfigError(
                    f"{where}: {key!r:.80} holds a text with a zero character; no name or path has "
                    "one; correct it"
                )
            elif isinstance(value, int) and abs(value) >= 2**63:
                raise ConfigError(
                    f"{where}: {key!r:.80} is a whole number of {value.bit_length()} bits; it must "
                    "lie in 64; correct it"
                )
        level = inner
        if not level:
            return
    raise _too_deep(where)


def _too_deep(where: str) -> ConfigError:
    return ConfigError(
        f"{where} nests tables and lists more than {MOST_DEPTH} deep; a run's settings take 3; "
        "correct it"
    )


def apply_overrides(document: Mapping[str, Any], overrides: Sequence[str]) -> Document:
    """A copy of ``document`` with each ``KEY=VALUE`` put in.

    KEY is a key, ``table.key``, or ``task.NAME.key``, which reaches the [[task]] of that name.
    VALUE is TOML; what is no TOML is taken as a text, so that a path needs no quotes.

    Raises:
        ConfigError: no ``=``, or a place that the document cannot have.
    """
    changed = copy.deepcopy(dict(document))
    for one in overrides:
        key, sign, text = one.partition("=")
        if not sign or not key.strip():
            raise ConfigError(
                f"--set {one!r}; it must be KEY=VALUE; write for instance training.epochs=3"
            )
        *tables, last = key.strip().split(".")
        value = _read_value(text.strip())
        check_values({last: value}, f"--set {one[:200]!r}")
        _find_table(changed, tables, one)[last] = value
    return changed


def _find_table(document: Document, tables: Sequence[str], override: str) -> Document:
    if not tables:
        return document
    if tables[0] == "task":
        return _find_task(document, tables[1:], override)
    table = document.setdefault(tables[0], {})
    if len(tables) > 1 or not isinstance(table, dict):
        raise ConfigError(
            f"--set {override!r}; {'.'.join(tables)} is no table; write table.key=VALUE, for "
            "instance training.epochs=3"
        )
    return table


def _find_task(document: Document, path: Sequence[str], override: str) -> Document:
    tasks = document.get("task", [])
    rows = [one for one in tasks if isinstance(one, dict)] if isinstance(tasks, list) else []
    found = [one for one in rows if len(path) == 1 and one.get("name") == path[0]]
    if not found:
        names = ", ".join(str(one.get("name")) for one in rows) or "none"
        raise ConfigError(
            f"--set {override!r} reaches no task; the tasks are {names}; write task.NAME.key=VALUE"
        )
    return found[0]


def _read_value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if list(read) == ["value"] else text


def write_toml(document: Mapping[str, Any]) -> str:
    """``document`` as TOML: its plain keys, then its tables, then its lists of tables.

    Keys with the value None are left out: TOML has no such value.

    Args:
        document: texts, numbers, booleans, lists of them, tables of those, and lists of such
            tables; keys are letters, digits, ``_`` and ``-``.
    """
    tables = {k: v for k, v in document.items() if isinstance(v, Mapping)}
    rows = {k: v for k, v in document.items() if _is_rows(v)}
    plain = {k: v for k, v in document.items() if k not in tables and k not in rows}
    parts = [_lines(plain)]
    parts += [f"[{key}]\n{_lines(table)}" for key, table in tables.items()]
    parts += [f"[[{key}]]\n{_lines(row)}" for key, some in rows.items() for row in some]
    return "\n".join(part for part in parts if part)


def _is_rows(value: Any) -> bool:
    rows = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return rows and all(isinstance(one, Mapping) for one in value)


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(
        f"{key} = {write_value(value)}\n" for key, value in table.items() if value is not None
    )


def write_value(value: Any) -> str:
    """One value as TOML; numbers read back to the same bits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)  # inf, -inf and nan are TOML
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, but JSON leaves DEL as it is and TOML forbids it.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return f"[{', '.join(write_value(one) for one in value)}]"
