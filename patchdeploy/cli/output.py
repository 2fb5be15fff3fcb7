"""What a command prints, on its way out: a standard output that fails, a warning that repeats.

In: whatever the commands write. Out: the same, or a StorageError where standard output takes no
more (a full disk, a pipe that nobody reads); and the same warning of a patch file once, however
often a command looks at the file.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from patchdeploy.errors import StorageError

_PATCH_FILES = logging.getLogger("patchdeploy.patchfile")


@contextmanager
def checked_output() -> Iterator[None]:
    """A block whose standard output is on its way to the reader when the block ends.

    Raises:
        StorageError: standard output is closed, and the block is not begun; or it did not take
            it all.
    """
    before = sys.stdout
    if before is None:
        raise StorageError(
            "cannot write standard output: it is closed; it must take all that the command prints; "
            "leave it open, or write it to a file or to /dev/null"
        )
    sys.stdout = cast(TextIO, _Output(before))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except StorageError:
        _drop_rest(before)
        raise
    finally:
        sys.stdout = before


class _Output:
    """A text stream whose failures have a type; the rest is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``; what the stream's encoding lacks is written as its escape."""
        with _typed():
            try:
                return self._stream.write(text)
            except UnicodeEncodeError as error:
                escaped = text.encode(error.encoding, "backslashreplace")
                return self._stream.write(escaped.decode(error.encoding))

    def flush(self) -> None:
        """Return when the stream has given on what it held."""
        with _typed():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write standard output: {error.strerror or error}; it must take all that the "
            "command prints; free space, or write it to another place"
        ) from error


def _drop_rest(stream: TextIO) -> None:
    """Let what ``stream`` still holds go nowhere: at its end Python would try, and fail, again."""
    try:
        descriptor = stream.fileno()
        stream.flush()
    except io.UnsupportedOperation:  # no file: it cannot fail again
        return
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextmanager
def warned_once() -> Iterator[None]:
    """A block in which a warning about patch files is logged once, each text for itself."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in seen
        seen.add(text)
        return new

    _PATCH_FILES.addFilter(is_new)
    try:
        yield
    finally:
        _PATCH_FILES.removeFilter(is_new)
