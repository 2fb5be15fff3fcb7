"""Where the numbers of a run go: JSON lines, TensorBoard, a progress bar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from patchdeploy.errors import StorageError
from patchdeploy.training.loop import EpochRecord


class Recorder:
    """Takes one record an epoch; see `open_recorder`."""

    def __init__(self, progress: Progress, total: int, run_dir: Path | None) -> None:
        self._progress = progress
        self._bar = progress.add_task("training", total=total)
        self._run_dir = run_dir
        self._board: Any = _tensorboard(run_dir) if run_dir is not None else None

    def __call__(self, record: EpochRecord) -> None:
        text = (
            f"{record.run} loss {record.loss:.3f} validation {100 * record.validation_top1:.1f} % "
            f"{record.images_per_second:.0f} img/s"
        )
        self._progress.update(self._bar, advance=1, description=text)
        if self._run_dir is not None:
            path = self._run_dir / "metrics.jsonl"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.write(json.dumps(asdict(record)) + "\n")
            except OSError as error:
                raise StorageError(
                    f"cannot append to {path}: {error.strerror or error}; free space; the last "
                    "checkpoint is whole, so resume goes on from there"
                ) from error
        if self._board is not None:
            self._board.add_scalar(f"{record.run}/loss", record.loss, record.epoch)
            self._board.add_scalar(f"{record.run}/top1", record.validation_top1, record.epoch)

    def close(self) -> None:
        """Flush what is open."""
        if self._board is not None:
            self._board.close()


@contextmanager
def open_recorder(total: int, run_dir: Path | None, quiet: bool = False) -> Iterator[Recorder]:
    """A recorder for ``total`` epochs; the bar goes to standard error."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=quiet
    ) as progress:
        recorder = Recorder(progress, total, run_dir)
        try:
            yield recorder
        finally:
            recorder.close()


def _tensorboard(run_dir: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:  # an extra of its own; metrics.jsonl has the same numbers
        return None
    return SummaryWriter(str(run_dir / "tensorboard"))
