"""The command ``patchdeploy``, also as ``python -m patchdeploy``: torchrun starts it that way.

Libraries take a second to import; Ctrl-C in it ends with a message, as it does later.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

EXIT_INTERRUPTED = 130


def main() -> None:
    """Entry point."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else whoever started this wants it ignored
        signal.signal(signal.SIGINT, _leave)
    from patchdeploy.cli import main as run

    signal.signal(signal.SIGINT, before)
    run()


def _leave(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun yet. An exception could be lost inside an import."""
    os.write(2, b"error: interrupted before it began; nothing was written\n")
    os._exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
