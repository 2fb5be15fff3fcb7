"""Keys of a table of settings, and names of things: each must be known.

In: keys as a person or a file gives them. Out: nothing, or a ConfigError with the nearest key that
there is. One rule for TOML tables and for the JSON of every settings dataclass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from patchdeploy.errors import ConfigError


def refuse_unknown_keys(
    keys: Iterable[str], known: Sequence[str], what: str, shown: Sequence[str] | None = None
) -> None:
    """Raise at the first of ``keys`` that is not among ``known``.

    Args:
        what: how the message begins, such as "unknown training key".
        shown: keys that the message names, where they are more than ``known``.

    Raises:
        ConfigError: another key.
    """
    offered = known if shown is None else shown
    for key in keys:
        if key not in known:
            raise ConfigError(
                f"{what} {key!r}; the keys are {', '.join(offered)}; "
                + suggest_nearest(key, offered, "remove it")
            )


def suggest_nearest(given: str, known: Iterable[str], otherwise: str) -> str:
    """The remedy for a name that is not ``known``: the nearest one; ``otherwise`` where none is
    near."""
    near = get_close_matches(given, known, 1)
    return f"did you mean {near[0]!r}?" if near else otherwise
