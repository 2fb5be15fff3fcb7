"""Ctrl-C during training: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def watch_interrupt(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C (SIGINT) has come.

    The first one is only noted, so that a step is never left half done; a second one interrupts at
    once. Outside the main thread, or without ``enabled``, signals are left as they are.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
