"""The one small file that says what a patch store runs: STATE.

In: which patch of each task is active, which was before it, and the highest sequence number that
was ever active. Out: canonical JSON that carries its own SHA-256, and back, or a typed error. The
steps from one state to the next are functions here, apart from the disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from patchdeploy.errors import CanonicalTextError, ConfigError, FileFormatError
from patchdeploy.patchfile.json import LARGEST, encode_canonical, parse_canonical
from patchdeploy.patchfile.values import TASK_NAME
from patchdeploy.storage import sha256_hex

FORMAT = 1
MAX_TASKS = 4096
MAX_STATE_BYTES = 2 * 2**20
"""A full store's STATE is shorter: a task takes at most 64 + 64 + 6 bytes as active and again as
previous, and 64 + 16 + 4 as floor, 352 in all; 4096 of them are 1.4 MiB."""
HEX64 = re.compile(r"[0-9a-f]{64}")

_OWN_HASH = "state_sha256"
_KEYS = {"format", "active", "previous", "floors", _OWN_HASH}


@dataclass(frozen=True)
class StoreState:
    """What a store runs. An instance keeps the rules below.

    Attributes:
        active: SHA-256 of the patch file that each task runs.
        previous: of the one that it ran before, where there is one; never the active one.
        floors: for each active task the highest sequence number that was ever active,
            1..2^53 - 1.

    Raises:
        FileFormatError: a name, hash or number outside the rules, or parts that do not agree.
    """

    active: Mapping[str, str] = field(default_factory=dict)
    previous: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hashes = [*self.active.items(), *self.previous.items()]
        if (
            any(not _is(TASK_NAME, task) or not _is(HEX64, sha256) for task, sha256 in hashes)
            or any(type(one) is not int or not 1 <= one <= LARGEST for one in self.floors.values())
            or self.floors.keys() != self.active.keys()
            or any(self.active.get(task, one) == one for task, one in self.previous.items())
        ):
            raise _damaged("names, hashes and numbers that agree", "others")

    @property
    def named(self) -> frozenset[str]:
        """SHA-256 of every patch file that the store needs."""
        return frozenset((*self.active.values(), *self.previous.values()))

    def activated(self, task: str, sha256: str, sequence: int) -> StoreState:
        """The state in which ``task`` runs the patch ``sha256``; the floor never falls.

        Raises:
            ConfigError: one task more than a store holds.
        """
        before = self.active.get(task)
        if before == sha256:
            return self
        if before is None and len(self.active) >= MAX_TASKS:
            raise ConfigError(
                f"the store holds {len(self.active)} tasks and {task!r} is one more; a store "
                f"holds at most {MAX_TASKS}; install it into another folder"
            )
        previous = self.previous if before is None else {**self.previous, task: before}
        floor = max(sequence, self.floors.get(task, 0))
        return StoreState({**self.active, task: sha256}, previous, {**self.floors, task: floor})

    def reverted(self, task: str) -> StoreState:
        """The state in which ``task`` runs its previous patch; the floor stays."""
        active = {**self.active, task: self.previous[task]}
        return StoreState(active, {**self.previous, task: self.active[task]}, self.floors)

    def to_bytes(self) -> bytes:
        """The canonical JSON."""
        document = {
            "active": dict(self.active),
            "floors": dict(self.floors),
            "format": FORMAT,
            "previous": dict(self.previous),
        }
        own = sha256_hex(encode_canonical(document))
        return encode_canonical({**document, _OWN_HASH: own})

    @classmethod
    def from_bytes(cls, data: bytes) -> StoreState:
        """Parse `to_bytes`.

        Raises:
            FileFormatError: not those bytes.
        """
        try:
            document = parse_canonical(data)
        except CanonicalTextError as error:
            raise _damaged(error.expected, error.got) from error
        if not isinstance(document, dict) or document.keys() != _KEYS:
            raise _damaged(f"the keys {', '.join(sorted(_KEYS))}", "others")
        recorded = document.pop(_OWN_HASH)
        found = sha256_hex(encode_canonical(document))
        if recorded != found:
            raise _damaged(f"the SHA-256 that it records, {str(recorded)[:64]}", found)
        parts = [document[name] for name in ("active", "previous", "floors")]
        if document["format"] != FORMAT:
            raise _damaged(f"format {FORMAT}", f"format {str(document['format'])[:40]}")
        if not all(isinstance(part, dict) for part in parts):
            raise _damaged("three objects", "others")
        active, previous, floors = cast("list[dict[str, object]]", parts)
        return cls(
            cast("dict[str, str]", active),
            cast("dict[str, str]", previous),
            cast("dict[str, int]", floors),
        )


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _damaged(expected: str, got: str) -> FileFormatError:
    return FileFormatError(
        f"STATE of the store has {got}; it must have {expected}; the store rebuilds it from the "
        "signed patches in its folder"
    )
