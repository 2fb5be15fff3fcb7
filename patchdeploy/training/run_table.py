"""A table of a TOML file as a frozen dataclass: every key known, every value of its kind.

In: a dictionary, a dataclass. Out: an instance, or a ConfigError with the place, the key, what it
must be, and the nearest key that there is. The kinds come from the dataclass's annotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from patchdeploy.errors import ConfigError
from patchdeploy.errors_keys import refuse_unknown_keys

_Kind = TypeVar("_Kind")
MOST_SHOWN = 200
NOTHING: Mapping[str, Any] = MappingProxyType({})


def read_table(
    values: Any, kind: type[_Kind], where: str, defaults: Mapping[str, Any] = NOTHING
) -> _Kind:
    """A dataclass from a table of TOML values.

    Args:
        defaults: where they differ from the dataclass's.

    Raises:
        ConfigError: no table, an unknown or missing key, or a value that it may not have.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {_show(values)}; it must be a table of keys; correct it")
    known = [one.name for one in fields(kind)]  # type: ignore[arg-type]
    checked = {**defaults, **check_keys(values, kind, where, known, known)}
    for one in fields(kind):  # type: ignore[arg-type]
        if one.default is MISSING and one.default_factory is MISSING and one.name not in checked:
            raise ConfigError(
                f"{where}: no {one.name!r}; it has no default; add a line {one.name} = ..."
            )
    try:
        return kind(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def check_keys(
    values: Mapping[str, Any], kind: type, where: str, known: Sequence[str], shown: Sequence[str]
) -> dict[str, Any]:
    """The values as ``kind`` takes them: lists become tuples, whole numbers floats where asked.

    Args:
        known: keys that may stand here.
        shown: keys that a message names.

    Raises:
        ConfigError: another key, or a value of another kind.
    """
    hints = get_type_hints(kind)
    refuse_unknown_keys(values, known, f"{where}: unknown key", shown)
    checked = {}
    for key, value in values.items():
        good, fixed = _fits(value, hints[key])
        if not good:
            raise ConfigError(
                f"{where}: {key} = {_show(value)}; it must be {describe_kind(hints[key])}; "
                "correct it"
            )
        checked[key] = fixed
    return checked


def _show(value: Any) -> str:
    """A value as a message shows it, the middle of a long one left out."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]} ... {text[-20:]}"


def _fits(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether a TOML value has the annotated kind, and the value as the dataclass takes it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _fits(value, _not_none(hint))
    if origin is Literal:
        return isinstance(value, str) and value in inner, value
    if origin is tuple:
        if not isinstance(value, list):
            return False, value
        parts = [_fits(one, inner[0]) for one in value]
        return all(good for good, _ in parts), tuple(part for _, part in parts)
    if hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return good, float(value) if good else value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, hint), value


def _not_none(hint: Any) -> Any:
    """T of ``T | None``."""
    (one,) = (part for part in get_args(hint) if part is not NoneType)
    return one


def describe_kind(hint: Any, plural: bool = False) -> str:
    """An annotation in words, for a message."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return describe_kind(_not_none(hint), plural)
    if origin is Literal:
        return f"{', '.join(map(repr, inner[:-1]))} or {inner[-1]!r}"
    if origin is tuple:
        return f"a list of {describe_kind(inner[0], True)}"
    one, many = {
        int: ("a whole number", "whole numbers"),
        float: ("a number", "numbers"),
        bool: ("true or false", "true or false"),
        str: ("a text in quotes", "texts in quotes"),
    }[hint]
    return many if plural else one
