"""The command ``patchdeploy``, also as ``python -m patchdeploy``: torchrun starts it that way.

Libraries take a second to import; Ctrl-C in it ends with a message, as it does later.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

EXIT_INTERRUPTED = 130


def main() -> None:
    """Entry point."""
    _fill_closed_handles()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _leave)
    from patchdeploy.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _fill_closed_handles() -> None:
    """Open what stands for standard input, output and error on nothing where it is closed.

    A file that a command opens would get the number, and be written over by whatever a library
    says there. That standard output is missing is still seen: ``sys.stdout`` is None.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun yet. An exception could be lost inside an import."""
    os.write(2, b"error: interrupted before it began; nothing was written\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
