"""Decoded patches kept in memory: a patch is small, and reading and checking it is half a swap.

In: keys and a way to read what is missing. Out: slot values, within a byte budget of their own;
the least recently used go first. Values are as they were when the file was read and checked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import fields
from threading import Lock

from patchdeploy.runtime.residents import Key
from patchdeploy.slots import PatchValues


class Patches:
    """A thread-safe cache; ``budget_bytes`` 0 keeps nothing."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._lock = Lock()
        self._values: OrderedDict[Key, PatchValues] = OrderedDict()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Sum over what is kept."""
        return self._held_bytes

    def get(self, key: Key, read: Callable[[], PatchValues]) -> PatchValues:
        """The values of ``key``, read now unless they are kept; two threads may both read.

        Raises:
            Exception: whatever ``read`` raises; nothing is kept then.
        """
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        values = read()
        with self._lock:
            self._keep(key, values)
        return values

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self._held_bytes = 0

    def _keep(self, key: Key, values: PatchValues) -> None:
        if key in self._values or value_bytes(values) > self._budget_bytes:
            return
        self._values[key] = values
        self._held_bytes += value_bytes(values)
        while self._held_bytes > self._budget_bytes:
            _, oldest = self._values.popitem(last=False)
            self._held_bytes -= value_bytes(oldest)


def value_bytes(values: PatchValues) -> int:
    """Memory of the arrays."""
    return sum(int(getattr(values, field.name).nbytes) for field in fields(values))
