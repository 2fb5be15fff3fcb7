"""Ctrl-C, or a kind request to end, during training: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def watch_interrupt(enabled: bool = True, ranks: int = 1) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C (SIGINT) or SIGTERM has come.

    SIGTERM is what a scheduler sends before it takes the machine, and torchrun to the other ranks
    when one has died: these then say so themselves. The first signal is only noted, so that a step
    is never left half done; Ctrl-C after it interrupts at once, SIGTERM never does (torchrun passes
    on one that each rank may have had before). Outside the main thread, or without ``enabled``,
    signals are left as they are.

    With several ``ranks``, an error that ends the block leaves SIGTERM noted only: torchrun sends
    it as soon as it sees that a rank has died, and what this one has to say would be cut off.
    """
    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    seen: list[int] = []
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if seen and number == signal.SIGINT:
            raise KeyboardInterrupt
        seen.append(number)

    for one in before:
        signal.signal(one, note)
    try:
        yield lambda: bool(seen)
    except BaseException:
        if ranks > 1:
            del before[signal.SIGTERM]
        raise
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
