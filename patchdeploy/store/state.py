"""The one small record that says what a patch store runs: STATE.

In: which patch of each task is active, which was before it, the highest sequence numbers that were
ever active and who had signed them, and the newest list of trusted keys that the store has seen.
Out: canonical JSON that carries its own SHA-256, and back, or a typed error. The steps from one
state to the next are functions here, apart from the disk.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from patchdeploy.errors import CanonicalTextError, ConfigError, FileFormatError, PatchKeyError
from patchdeploy.patchfile.json import LARGEST, encode_canonical, parse_canonical
from patchdeploy.patchfile.keys import MAX_KEYS, TrustedKeys
from patchdeploy.storage import sha256_hex
from patchdeploy.task_names import TASK_NAME

FORMAT = 2
MAX_TASKS = 4096
MAX_FLOORS = 4
"""Sets of signers of one task whose floors are kept; the lowest are forgotten first."""
MAX_SIGNERS = 4
MAX_STATE_BYTES = 4 * 2**20
"""A full store's STATE is shorter: a task takes at most 64 + 64 + 6 bytes as active and again as
previous, and 64 + 6 and 4 times 16 + 64 + 16 + 10 as floors, 762 in all; 4096 of them are 3.0 MiB,
and 256 keys 17 KiB."""
HEX64 = re.compile(r"[0-9a-f]{64}")

_OWN_HASH = "state_sha256"
_PARTS = ("active", "previous", "floors")
_KEYS = {"format", "trusted", _OWN_HASH, *_PARTS}


class Floor(NamedTuple):
    """The highest patch of a task that was ever active among those that the same keys signed.

    Attributes:
        sequence: its number, 1..2^53 - 1.
        sha256: of its file.
        signers: key indices, ascending; none: an unsigned one.
    """

    sequence: int
    sha256: str
    signers: tuple[int, ...] = ()


@dataclass(frozen=True)
class StoreState:
    """What a store runs. An instance keeps the rules below.

    Attributes:
        active: SHA-256 of the patch file that each task runs.
        previous: of the one that a revert goes back to, where there is one; never the active one.
        floors: of each task that ever was active, one for each set of signers.
        trusted: the newest list of trusted keys that a writer had; None: none had one.

    Raises:
        FileFormatError: a name, hash or number outside the rules, or parts that do not agree.
    """

    active: Mapping[str, str] = field(default_factory=dict)
    previous: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, tuple[Floor, ...]] = field(default_factory=dict)
    trusted: TrustedKeys | None = None

    def __post_init__(self) -> None:
        hashes = [*self.active.items(), *self.previous.items()]
        if (
            any(not _is(TASK_NAME, task) or not _is(HEX64, sha256) for task, sha256 in hashes)
            or any(not _is(TASK_NAME, task) for task in self.floors)
            or not all(map(_are_floors, self.floors.values()))
            or not self.active.keys() <= self.floors.keys()
            or any(self.active.get(task, one) == one for task, one in self.previous.items())
        ):
            raise _damaged("names, hashes and numbers that agree", "others")

    @property
    def named(self) -> frozenset[str]:
        """SHA-256 of every patch file that the store needs."""
        return frozenset((*self.active.values(), *self.previous.values()))

    @property
    def kept(self) -> frozenset[str]:
        """`named`, and the highest of a task that has lost what it had active."""
        lost = self.floors.keys() - self.active.keys()
        return self.named | {one.sha256 for task in lost for one in self.floors[task]}

    def highest(self, task: str, counts: Callable[[Sequence[int]], bool]) -> Floor | None:
        """The floor of ``task``: the highest of those whose signers still count."""
        return max((one for one in self.floors.get(task, ()) if counts(one.signers)), default=None)

    def activated(self, task: str, floor: Floor, back_to: str | None) -> StoreState:
        """The state in which ``task`` runs the patch of ``floor``; no floor falls by it.

        Args:
            back_to: SHA-256 of the patch that a revert goes back to, or None.

        Raises:
            ConfigError: one task more than a store holds.
        """
        if self.active.get(task) == floor.sha256:
            return self
        if task not in self.floors and len(self.floors) >= MAX_TASKS:
            raise ConfigError(
                f"the store holds {len(self.floors)} tasks and {task!r} is one more; a store "
                f"holds at most {MAX_TASKS}; install it into another folder"
            )
        previous = {name: one for name, one in self.previous.items() if name != task}
        if back_to is not None and back_to != floor.sha256:
            previous[task] = back_to
        return replace(
            self,
            active={**self.active, task: floor.sha256},
            previous=previous,
            floors={**self.floors, task: raise_floor(self.floors.get(task, ()), floor)},
        )

    def reverted(self, task: str) -> StoreState:
        """The state in which ``task`` runs its previous patch; the floors stay."""
        active = {**self.active, task: self.previous[task]}
        return replace(self, active=active, previous={**self.previous, task: self.active[task]})

    def without(self, task: str) -> StoreState:
        """The state of a store that never had ``task``."""

        def others(part: Mapping[str, Any]) -> dict[str, Any]:
            return {name: one for name, one in part.items() if name != task}

        active, previous, floors = map(others, (self.active, self.previous, self.floors))
        return replace(self, active=active, previous=previous, floors=floors)

    def to_bytes(self) -> bytes:
        """The canonical JSON."""
        document = {
            "active": dict(self.active),
            "floors": {
                task: [[one.sequence, one.sha256, list(one.signers)] for one in floors]
                for task, floors in self.floors.items()
            },
            "format": FORMAT,
            "previous": dict(self.previous),
            "trusted": None if self.trusted is None else self.trusted.to_document(),
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
            document = parse_canonical(data, allow_null=True)
        except CanonicalTextError as error:
            raise _damaged(error.expected, error.got) from error
        if not isinstance(document, dict) or document.keys() != _KEYS:
            raise _damaged(f"the keys {', '.join(sorted(_KEYS))}", "others")
        recorded = document.pop(_OWN_HASH)
        found = sha256_hex(encode_canonical(document))
        if recorded != found:
            raise _damaged(f"the SHA-256 that it records, {str(recorded)[:64]}", found)
        if document["format"] != FORMAT:
            raise _damaged(f"format {FORMAT}", f"format {str(document['format'])[:40]}")
        if not all(isinstance(document[name], dict) for name in _PARTS):
            raise _damaged("three objects", "others")
        active, previous, floors = cast("list[dict[str, Any]]", [document[one] for one in _PARTS])
        return cls(
            active,
            previous,
            {task: _parse_floors(one) for task, one in floors.items()},
            _parse_trusted(document["trusted"]),
        )


def raise_floor(floors: Sequence[Floor], new: Floor) -> tuple[Floor, ...]:
    """``floors`` with ``new`` for its set of signers, unless a higher one is there."""
    same = [one for one in floors if one.signers == new.signers]
    others = [one for one in floors if one.signers != new.signers]
    best = new if all(one.sequence <= new.sequence for one in same) else max(same)
    return tuple(sorted([*others, best])[-MAX_FLOORS:])


def _are_floors(floors: object) -> bool:
    """Whether they are 1 to `MAX_FLOORS`, ascending, no two of the same signers."""
    if not isinstance(floors, tuple) or not 1 <= len(floors) <= MAX_FLOORS:
        return False
    signers = [one.signers for one in floors]
    return (
        all(map(_is_floor, floors))
        and len(set(signers)) == len(signers)
        and list(floors) == sorted(floors)
    )


def _is_floor(floor: Floor) -> bool:
    sound = type(floor.sequence) is int and 1 <= floor.sequence <= LARGEST
    indices = floor.signers
    return (
        sound
        and _is(HEX64, floor.sha256)
        and len(indices) <= MAX_SIGNERS
        and all(type(one) is int and 0 <= one < MAX_KEYS for one in indices)
        and list(indices) == sorted(set(indices))
    )


def _parse_floors(value: object) -> tuple[Floor, ...]:
    """`Floor`s of a list of lists; what they hold is looked at by `StoreState`."""
    if not isinstance(value, list):
        raise _damaged("lists of floors", "others")
    floors = []
    for one in value:
        if not isinstance(one, list) or len(one) != 3 or not isinstance(one[2], list):
            raise _damaged("floors of a number, a hash and a list", "others")
        if not all(type(index) is int for index in one[2]) or type(one[0]) is not int:
            raise _damaged("names, hashes and numbers that agree", "others")
        floors.append(Floor(one[0], one[1], tuple(one[2])))
    return tuple(floors)


def _parse_trusted(value: object) -> TrustedKeys | None:
    try:
        return None if value is None else TrustedKeys.from_document(value)
    except PatchKeyError as error:
        raise _damaged("a list of trusted keys", f"another ({error})") from error


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _damaged(expected: str, got: str) -> FileFormatError:
    return FileFormatError(
        f"STATE of the store has {got}; it must have {expected}; the store takes its copy, or has "
        "the patches run that ship with the app"
    )
