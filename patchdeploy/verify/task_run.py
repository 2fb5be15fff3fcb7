"""One task on one runtime, with the images that it is shown: what each check of images is given."""

from __future__ import annotations

from dataclasses import dataclass

from patchdeploy.bundle import Bundle
from patchdeploy.data import ImageDataset
from patchdeploy.quantize.runtimes import Arithmetic, arithmetic_of
from patchdeploy.runtime import RUNTIME_FORMATS, Engine


@dataclass(frozen=True)
class TaskRun:
    """See the module.

    Attributes:
        engine: over the bundle, of ``runtime``.
        runtime, task: names.
        dataset: images of any size; labels may be of other classes than the task's.
        machine: whose arithmetic the executor computes with; None: this machine's.
    """

    engine: Engine
    runtime: str
    task: str
    dataset: ImageDataset
    machine: str | None = None

    @property
    def bundle(self) -> Bundle:
        """What is verified."""
        return self.engine.bundle

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the scores."""
        return self.engine.classes(self.task)

    @property
    def arithmetic(self) -> Arithmetic:
        """How the executor computes what ``runtime`` does."""
        return arithmetic_of(RUNTIME_FORMATS[self.runtime], self.machine)
