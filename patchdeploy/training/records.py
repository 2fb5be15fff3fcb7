"""Where the numbers of a run go: JSON lines, TensorBoard, curves, a bar or lines on the terminal.

In: a record a step and a record an epoch. Out: files in the run's folder, written by the first
rank alone, and progress on standard error.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from patchdeploy.errors import StorageError
from patchdeploy.storage import write_atomic
from patchdeploy.training.curves import METRICS_FILE, read_metrics, write_curves
from patchdeploy.training.loop import EpochRecord

CURVES_EVERY_SECONDS = 60.0
"""How often a run that goes on draws its curves; it draws them at its end too."""
RATE_SHARE = 0.1
"""Weight of the newest step in the rate that the bar shows."""


class Recorder:
    """Takes one record a source and epoch; see `open_recorder`."""

    def __init__(
        self,
        progress: Progress,
        total: int,
        run_dir: Path | None,
        resume: bool = False,
        lines: bool = False,
    ) -> None:
        self._progress = progress
        self._bar = progress.add_task("training", total=total, rate="")
        self._run_dir = run_dir
        self._lines = lines
        self._board = _open_board(run_dir) if run_dir is not None else None
        self._written = _keep_lines(run_dir, resume) if run_dir is not None else set()
        self._drawn = time.monotonic()
        self._done = 0
        self._rate = _Rate()

    def hint(self, text: str) -> None:
        """A line about the run before it begins, unless it is to be quiet."""
        if self._lines or not self._progress.disable:
            words = escape(f"hint: {text}")
            self._progress.console.print(words, highlight=False, soft_wrap=True)

    def step(self, share: float, images: int) -> None:
        """A step is done.

        Args:
            share: of the epoch that is done, times the sources that run in it.
            images: that the step took.
        """
        rate = self._rate.add(images)
        words = f"{rate:,.0f} img/s" if rate else ""
        self._progress.update(self._bar, completed=self._done + share, rate=words)

    def __call__(self, record: EpochRecord) -> None:
        self._done += 1
        self._rate.pause()
        text = (
            f"{record.run} epoch {record.epoch}: loss {record.loss:.3f}, validation "
            f"{100 * record.validation_top1:.1f} %"
        )
        rate = f"{record.images_per_second:,.0f} img/s"
        self._progress.update(self._bar, completed=self._done, description=text, rate=rate)
        if self._lines:
            self._progress.console.print(f"{text}, {rate}", highlight=False, soft_wrap=True)
        if (record.run, record.epoch) in self._written:
            return  # killed after this line and before its checkpoint: the same numbers again
        if self._run_dir is not None:
            _append(self._run_dir / METRICS_FILE, json.dumps(asdict(record)) + "\n")
        if self._board is not None:
            self._board.add(f"{record.run}/loss", record.loss, record.epoch)
            self._board.add(f"{record.run}/top1", record.validation_top1, record.epoch)
            self._board.add(f"{record.run}/learning_rate", record.learning_rate, record.epoch)
        if time.monotonic() - self._drawn > CURVES_EVERY_SECONDS:
            self._draw()

    def _draw(self) -> None:
        if self._run_dir is not None:
            write_curves(self._run_dir)
        self._drawn = time.monotonic()

    def close(self) -> None:
        """Flush what is open, and draw the curves."""
        if self._board is not None:
            self._board.close()
        self._draw()


class _Rate:
    """Images a second over the last steps."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._seconds_per_image = 0.0

    def pause(self) -> None:
        """What comes next is no step (validation, another resolution)."""
        self._last = None

    def add(self, images: int) -> float:
        """Images per second, or 0 while it is not known."""
        now, last = time.perf_counter(), self._last
        self._last = now
        if last is not None and images > 0:
            newest = (now - last) / images
            before = self._seconds_per_image or newest
            self._seconds_per_image = (1 - RATE_SHARE) * before + RATE_SHARE * newest
        return 1.0 / self._seconds_per_image if self._seconds_per_image > 0 else 0.0


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


def _keep_lines(run_dir: Path, resume: bool) -> set[tuple[str, int]]:
    """(run, epoch) of the lines that are there. A run that begins anew begins a new file, and
    half a line, left by a kill or a full disk, goes."""
    if not (run_dir / METRICS_FILE).exists():
        return set()
    kept = read_metrics(run_dir) if resume else []
    text = "".join(json.dumps(line) + "\n" for line in kept)
    write_atomic(run_dir / METRICS_FILE, text.encode())
    return {(line["run"], line["epoch"]) for line in kept}


@contextmanager
def open_recorder(
    total: int, run_dir: Path | None, quiet: bool = False, resume: bool = False
) -> Iterator[Recorder]:
    """A recorder for ``total`` epochs (of all sources together).

    Progress goes to standard error: a bar where that is a terminal, a line an epoch where it is
    not, nothing where ``quiet``. Ranks after the first write nothing at all.

    Raises:
        StorageError: ``metrics.jsonl`` in ``run_dir`` cannot be written.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_rank() != 0:
        run_dir, quiet = None, True
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    terminal = console.is_terminal  # a bar in a log file would be blank lines
    hidden = quiet or not terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        recorder = Recorder(progress, total, run_dir, resume, lines=not quiet and not terminal)
        try:
            yield recorder
        except BaseException:
            with suppress(StorageError):  # what stopped the run is what matters
                recorder.close()
            raise
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
        self._folder, self._event = folder, Event
        self._writer = RecordWriter((folder / name).open("wb"))
        self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())

    def add(self, tag: str, value: float, step: int) -> None:
        """Append one scalar.

        Raises:
            StorageError: the disk is full.
        """
        event = self._event(wall_time=time.time(), step=step)
        event.summary.value.add(tag=tag, simple_value=value)
        try:
            self._writer.write(event.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def close(self) -> None:
        """Close the file; what a full disk did not take is lost."""
        with suppress(OSError):
            self._writer.close()


def _open_board(run_dir: Path) -> _Board | None:
    try:
        return _Board(run_dir / "tensorboard")
    except ImportError:  # not installed; metrics.jsonl has the same numbers
        return None
    except OSError as error:
        raise _unwritable(run_dir / "tensorboard", error) from error


def _unwritable(folder: Path, error: OSError) -> StorageError:
    return StorageError(
        f"cannot write into {folder}: {error.strerror or error}; free space or choose another run "
        "folder; the last checkpoint is whole"
    )
