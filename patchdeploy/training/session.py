"""A run as it goes on: the loop, with the ranks, the folder and the records that it has.

In: a number of epochs, a folder. Out: a `Session` whose `fit` trains one `Trainee` after another:
one for each resolution where a method trains them in turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from patchdeploy.training.config import TrainConfig
from patchdeploy.training.loop import FitResult, fit
from patchdeploy.training.records import Recorder, open_recorder
from patchdeploy.training.trainee import Trainee, describe_few_steps
from patchdeploy.training.workers import SINGLE, Workers


@dataclass(frozen=True)
class Session:
    """See `open_session`.

    Attributes:
        recorder: takes each step and epoch.
        workers: the ranks that share the batches.
        run_dir: for metrics and checkpoints; None for neither.
        resume: go on from the checkpoints there.
    """

    recorder: Recorder
    workers: Workers = SINGLE
    run_dir: Path | None = None
    resume: bool = False

    def fit(self, trainee: Trainee, config: TrainConfig, checkpoint: str) -> FitResult:
        """`loop.fit`, recorded; ``checkpoint`` is the name of a file in the run's folder."""
        few = describe_few_steps(trainee, config)
        if few is not None:
            self.recorder.hint(few)
        return fit(
            trainee,
            config,
            workers=self.workers,
            checkpoint=None if self.run_dir is None else self.run_dir / checkpoint,
            resume=self.resume,
            on_epoch=self.recorder,
            on_step=self.recorder.step,
        )


@contextmanager
def open_session(
    epochs: int,
    workers: Workers = SINGLE,
    run_dir: Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Iterator[Session]:
    """A session of ``epochs`` in all: each source's and each resolution's count.

    Raises:
        StorageError: see `open_recorder`.
    """
    with open_recorder(epochs, run_dir, quiet, resume) as recorder:
        yield Session(recorder, workers, run_dir, resume)
