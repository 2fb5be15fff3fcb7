"""Residents within a byte budget: the least recently used one goes first.

In: keys and a way to build what is missing. Out: residents. Each is built once however many
threads ask; building one blocks nobody who wants another; one that is evicted lives on until
the inferences that hold it have ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

from patchdeploy.runtime.backend import Resident

Key = tuple[str, int, str]
"""Task, resolution, SHA-256 of the patch file."""


@dataclass
class _Entry:
    lock: Lock = field(default_factory=Lock)
    resident: Resident | None = None


class Residents:
    """A thread-safe cache; ``budget_bytes`` None means no limit.

    The newest resident always stays, even where it alone is larger than the budget.
    """

    def __init__(self, budget_bytes: int | None) -> None:
        self._budget_bytes = budget_bytes
        self._lock = Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()

    def get(self, key: Key, build: Callable[[], Resident]) -> tuple[Resident, bool]:
        """The resident for ``key``, and whether this call built it.

        Raises:
            Exception: whatever ``build`` raises; nothing is kept then.
        """
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.resident is not None:
                return entry.resident, False
            try:
                entry.resident = resident = build()
            except BaseException:
                with self._lock:
                    if self._entries.get(key) is entry:
                        del self._entries[key]
                raise
        with self._lock:
            self._evict(key)
        return resident, True

    def keys(self) -> tuple[Key, ...]:
        """What is loaded, the least recently used first."""
        with self._lock:
            return tuple(key for key, entry in self._entries.items() if entry.resident)

    def resident_bytes(self) -> int:
        """Sum of the estimates of what is loaded."""
        with self._lock:
            return self._total_bytes()

    def evict(self, key: Key) -> None:
        """Forget ``key``; nothing happens if it is not loaded."""
        with self._lock:
            self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def _total_bytes(self) -> int:
        return sum(e.resident.resident_bytes for e in self._entries.values() if e.resident)

    def _evict(self, newest: Key) -> None:
        if self._budget_bytes is None:
            return
        for key in [k for k, entry in self._entries.items() if entry.resident and k != newest]:
            if self._total_bytes() <= self._budget_bytes:
                return
            del self._entries[key]
