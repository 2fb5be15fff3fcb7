"""What a row tried, counted while it is tried, and work spread over processes."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
Progress = Callable[[float], None]
"""Told how far a row is, 0 to 1."""


@dataclass(frozen=True)
class Told:
    """What a row says of itself when it held.

    Attributes:
        tried: in a sentence, with the counts.
        held: what came of it.
        count: how many faults were tried.
    """

    tried: str
    held: str
    count: int


@dataclass
class Verdicts:
    """Verdicts on many files, each compared with what it must be.

    Attributes:
        codes: how often each was given.
    """

    codes: Counter[str] = field(default_factory=Counter)

    def expect(self, found: str, expected: str | set[str], what: object) -> None:
        """Count a verdict.

        Raises:
            AssertionError: it is another one.
        """
        allowed = {expected} if isinstance(expected, str) else expected
        if found not in allowed:
            raise AssertionError(f"{what}: verdict {found}, not {' or '.join(sorted(allowed))}")
        self.codes[found] += 1

    @property
    def count(self) -> int:
        """How many were given."""
        return self.codes.total()

    def listed(self) -> str:
        """Codes by how often they were given."""
        return ", ".join(f"{code} {count:,}" for code, count in self.codes.most_common())


def in_processes(
    work: Callable[[int, int], Any], count: int, seed: int, progress: Progress, batch: int = 2000
) -> Iterator[Any]:
    """Results of ``work(n, seed)`` over batches that make ``count``, one process a core.

    ``work`` must be a function of a module; each batch has a seed of its own, so the same
    arguments try the same things whatever the machine.
    """
    sizes = [min(batch, count - start) for start in range(0, count, batch)]
    if HERE not in sys.path:
        sys.path.insert(0, HERE)  # handed on to the processes
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(work, size, seed + k) for k, size in enumerate(sizes)]
        try:
            for done, one in enumerate(as_completed(waiting), 1):
                yield one.result()
                progress(done / len(waiting))
        finally:
            pool.shutdown(cancel_futures=True)


def scaled(count: int, scale: float) -> int:
    """``count`` at ``scale``, at least 1."""
    return max(1, round(count * scale))
