"""Where the numbers of a run go: JSON lines, TensorBoard, a progress bar."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from patchdeploy.errors import StorageError
from patchdeploy.storage import write_atomic
from patchdeploy.training.loop import EpochRecord

METRICS_FILE = "metrics.jsonl"


class Recorder:
    """Takes one record an epoch; see `open_recorder`."""

    def __init__(
        self, progress: Progress, total: int, run_dir: Path | None, resume: bool = False
    ) -> None:
        self._progress = progress
        self._bar = progress.add_task("training", total=total)
        self._run_dir = run_dir
        self._board = _open_board(run_dir) if run_dir is not None else None
        self._written = _read_lines(run_dir, resume) if run_dir is not None else set()

    def __call__(self, record: EpochRecord) -> None:
        text = (
            f"{record.run} loss {record.loss:.3f} validation {100 * record.validation_top1:.1f} % "
            f"{record.images_per_second:.0f} img/s"
        )
        self._progress.update(self._bar, advance=1, description=text)
        if (record.run, record.epoch) in self._written:
            return  # killed after this line and before its checkpoint: the same numbers again
        if self._run_dir is not None:
            _append(self._run_dir / METRICS_FILE, json.dumps(asdict(record)) + "\n")
        if self._board is not None:
            self._board.add(f"{record.run}/loss", record.loss, record.epoch)
            self._board.add(f"{record.run}/top1", record.validation_top1, record.epoch)

    def close(self) -> None:
        """Flush what is open."""
        if self._board is not None:
            self._board.close()


def _append(path: Path, line: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(line)
    except OSError as error:
        raise StorageError(
            f"cannot append to {path}: {error.strerror or error}; free space; the last "
            "checkpoint is whole, so resume goes on from there"
        ) from error


def _read_lines(run_dir: Path, resume: bool) -> set[tuple[str, int]]:
    """(run, epoch) of the lines that are there. A run that begins anew begins a new file, and
    half a line, left by a kill or a full disk, goes."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return set()
    kept, written = [], set()
    for line in path.read_text().splitlines() if resume else []:
        try:
            record = json.loads(line)
            written.add((str(record["run"]), int(record["epoch"])))
        except (ValueError, KeyError, TypeError):
            continue
        kept.append(line + "\n")
    write_atomic(path, "".join(kept).encode())
    return written


@contextmanager
def open_recorder(
    total: int, run_dir: Path | None, quiet: bool = False, resume: bool = False
) -> Iterator[Recorder]:
    """A recorder for ``total`` epochs; the bar goes to standard error.

    Raises:
        StorageError: ``metrics.jsonl`` in ``run_dir`` cannot be written.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal  # a bar in a log file would be blank lines
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        recorder = Recorder(progress, total, run_dir, resume)
        try:
            yield recorder
        finally:
            recorder.close()


class _Board:
    """Scalars for TensorBoard, through tensorboard's own record writer and messages.

    Not torch's SummaryWriter: that imports TensorFlow where it is installed (10 s), and a process
    aborts when it holds TensorFlow's LLVM and then Triton's, which torch's optimisers load.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._event = Event
        self._writer = RecordWriter((folder / name).open("wb"))
        self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def add(self, tag: str, value: float, step: int) -> None:
        """Append one scalar."""
        event = self._event(wall_time=time.time(), step=step)
        event.summary.value.add(tag=tag, simple_value=value)
        self._writer.write(event.SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def _open_board(run_dir: Path) -> _Board | None:
    try:
        return _Board(run_dir / "tensorboard")
    except ImportError:  # not installed; metrics.jsonl has the same numbers
        return None
    except OSError as error:
        raise StorageError(
            f"cannot write into {run_dir / 'tensorboard'}: {error.strerror or error}; free space "
            "or choose another run folder"
        ) from error
