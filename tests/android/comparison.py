"""What two languages say about the same case: counted where it is equal, printed where not."""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any


class Comparison:
    """Counts what was equal, and prints what was not."""

    def __init__(self) -> None:
        self.passed: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()

    def check(self, kind: str, case: str, expected: Any, found: Any) -> None:
        """One comparison of plain JSON values."""
        if expected == found:
            self.passed[kind] += 1
            return
        self.failed[kind] += 1
        if self.failed[kind] <= 5:
            say(f"{kind}, {case}: Python {str(expected)[:600]}, Kotlin {str(found)[:600]}")


def say(line: str) -> None:
    """A line of the report."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
