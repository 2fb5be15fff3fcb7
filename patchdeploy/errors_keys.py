"""Keys of a table of settings: each must be known.

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
            near = get_close_matches(key, offered, 1)
            raise ConfigError(
                f"{what} {key!r}; the keys are {', '.join(offered)}; "
                + (f"did you mean {near[0]!r}?" if near else "remove it")
            )
