"""The Engine: images of any size in, labels and probabilities out, for any task of a bundle.

In: a bundle and the name of a runtime, and a store where patches arrive later. Out: predictions. A
(task, resolution) is loaded when it is first asked for and stays resident within a byte budget;
residents never change, so threads may classify while others swap, and while a new patch takes the
place of an old one. An engine belongs to the process that opened it: a forked child gets an error
that tells it to open its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.bundle.held import hold_bundle
from patchdeploy.cascade import Cascade
from patchdeploy.coding.table import CodingTable
from patchdeploy.data import Preprocessing, image_pixels
from patchdeploy.errors import ConfigError, DataError, UnknownResolutionError
from patchdeploy.runtime.backend import Backend
from patchdeploy.runtime.cascades import Cascades
from patchdeploy.runtime.choose import RUNTIME_FORMATS, make_backend
from patchdeploy.runtime.images import (
    OneImage,
    Pixels,
    check_batch,
    image_paths,
    prepare_image,
    split_batch,
)
from patchdeploy.runtime.loaded_tasks import LoadedTasks
from patchdeploy.runtime.prediction import Prediction, softmax
from patchdeploy.runtime.versions import TaskVersion, nearest_resolution
from patchdeploy.slots import PatchValues
from patchdeploy.store import Store

BATCH = 32
"""Images that are classified at once."""
CASCADE_BATCH = 8
"""The same by a cascade, which keeps each image at its full size until a stage is sure of it."""
REFRESH_SECONDS = 5.0
"""How often a store is looked at for a new patch."""
PATCH_BUDGET_BYTES = 8 << 20
"""Memory for decoded patches: 5 of MobileNetV2 1.0 with 1000 classes, 50 with 10."""


@dataclass(frozen=True)
class _Way:
    """How a call classifies: images at once, what is made of each, and what answers them."""

    batch: int
    prepare: Callable[[Any], Pixels]
    predict: Callable[[list[Pixels]], list[Prediction]]


class Engine:
    """Runs the tasks of one bundle on one runtime; make it with `Engine.open`."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        budget_bytes: int | None,
        patch_budget_bytes: int = PATCH_BUDGET_BYTES,
        store: Store | None = None,
        refresh_seconds: float | None = REFRESH_SECONDS,
        *,
        format_name: str,
    ) -> None:
        """As `Engine.open`; ``format_name``: of the bundle's base file that ``backend`` runs."""
        self._bundle = bundle
        self._loaded = LoadedTasks(
            bundle,
            backend,
            budget_bytes,
            patch_budget_bytes,
            store,
            refresh_seconds,
            format_name,
        )
        self._cascades = Cascades(bundle)
        self._current: tuple[str, int] | None = None

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        runtime: str = "litert",
        *,
        threads: int = 1,
        mode: str = "resident",
        budget_bytes: int | None = None,
        patch_budget_bytes: int = PATCH_BUDGET_BYTES,
        package: str | None = None,
        store: Store | None = None,
        refresh_seconds: float | None = REFRESH_SECONDS,
    ) -> Engine:
        """An engine over the bundle at a path (all its hashes are compared) or an opened one.

        It keeps the bundle as it is now, in memory: its patch files and the base file that it runs.
        What becomes of the folder does not touch it; open another engine for what is new there.

        Args:
            runtime: "litert" or "onnxruntime".
            mode: "resident", or with onnxruntime "per_run": the patch is fed with each run.
            budget_bytes: estimated memory that residents may hold; None: no limit.
            patch_budget_bytes: memory for patches that were read and checked, so that a task that
                was unloaded comes back at once; 0: each is checked and decoded again.
            package: LiteRT only: "ai_edge_litert", "tflite_runtime" or "tensorflow".
            store: patches that came later, see `runtime.bundle_store.open_store`; its active patch
                of a task runs in the place of the bundle's unless that has a higher sequence.
            refresh_seconds: how often the store is looked at, on a thread of its own, while the
                engine is in use; None: only by `refresh`.

        Raises:
            ConfigError: an unknown runtime, mode or package, a format that is not exported, or a
                store of another base or runtime.
            MissingExtraError: the runtime is not installed.
            IntegrityError, FileFormatError: the bundle is damaged. (A store that cannot be read
                is logged once, see `store_problem`, and the bundle's patches run.)
        """
        held = hold_bundle(bundle, RUNTIME_FORMATS.get(runtime, ""))
        backend = make_backend(held, runtime, threads, mode, package)
        return cls(
            held,
            backend,
            budget_bytes,
            patch_budget_bytes,
            store,
            refresh_seconds,
            format_name=RUNTIME_FORMATS[runtime],
        )

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when the engine was opened."""
        return self._bundle

    @property
    def runtime(self) -> str:
        """The runtime's package and its version."""
        backend = self._loaded.open_backend()
        return f"{backend.name} {backend.version}"

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input."""
        return self._bundle.manifest.preprocessing

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, sorted."""
        return self._loaded.names

    @property
    def versions(self) -> dict[str, str]:
        """SHA-256 of the patch file that each task runs."""
        return {task: one.sha256 for task, one in self._loaded.versions.items()}

    @property
    def store_problem(self) -> str | None:
        """Why the store could not be read at the last look; None where it could."""
        return self._loaded.store_problem

    @property
    def residents(self) -> tuple[tuple[str, int], ...]:
        """The (task, resolution) pairs that are loaded, the least recently used first."""
        return self._loaded.residents

    @property
    def resident_bytes(self) -> int:
        """Estimated private memory of the residents."""
        return self._loaded.resident_bytes

    def resolutions(self, task: str) -> tuple[int, ...]:
        """Sides in pixels that ``task`` was exported at.

        Raises:
            UnknownTaskError: no such task.
        """
        return self._loaded.version(task).resolutions

    def classes(self, task: str) -> tuple[str, ...]:
        """Labels of ``task``.

        Raises:
            UnknownTaskError: no such task.
        """
        return self._loaded.version(task).classes

    def swap_to(self, task: str, resolution: int | None = None) -> dict[str, float]:
        """Make ``task`` the one that `classify` uses by default; returns what `prewarm` does.

        Raises:
            UnknownTaskError, UnknownResolutionError: it was not exported.
        """
        version, px = self._choose(task, resolution)
        timings = self.prewarm(version.task, px)
        self._current = (version.task, px)
        return timings

    def prewarm(self, task: str, resolution: int | None = None) -> dict[str, float]:
        """Load ``task`` unless it is resident; what runs meanwhile is not touched.

        Returns:
            Milliseconds: ``patch_ms`` to read and check the patch (near 0 where it is still in
            memory), ``load_ms`` to overlay it and load the model (both 0 for a resident),
            ``total_ms``.

        Raises:
            UnknownTaskError, UnknownResolutionError: it was not exported.
        """
        version, px = self._choose(task, resolution)
        timings: dict[str, float] = {"patch_ms": 0.0, "load_ms": 0.0}
        start = perf_counter()
        self._loaded.load(version, px, timings)
        timings["total_ms"] = 1e3 * (perf_counter() - start)
        return timings

    def prewarm_in_background(
        self, task: str, resolution: int | None = None
    ) -> Future[dict[str, float]]:
        """`prewarm` on a thread of its own; wait for the result or do not.

        Raises:
            UnknownTaskError, UnknownResolutionError: it was not exported.
        """
        version, px = self._choose(task, resolution)
        return self._loaded.in_background(self.prewarm, version.task, px)

    def evict(self, task: str, resolution: int) -> None:
        """Unload a resident (nothing happens if it is none); running inferences end first."""
        self._loaded.evict(task, resolution)

    def refresh(self) -> tuple[str, ...]:
        """Look at the store now, and take over what it has active.

        What is resident of a task is loaded from the new patch before the old one is let go: no
        inference waits for it, and one that runs ends with the patch that it began with.

        Returns:
            The tasks that changed, sorted.

        Raises:
            StorageError: the store's folder cannot be read; the engine goes on as it is.
            PatchdeployError: its STATE is damaged and its patches cannot be proved here; likewise.
        """
        return self._loaded.refresh()

    def logits(
        self, images: Pixels, task: str | None = None, resolution: int | None = None
    ) -> NDArray[np.float32]:
        """uint8 [N, px, px, 3], resized already -> float32 [N, classes] scores.

        Raises:
            DataError: the images have another dtype or shape.
            RuntimeBackendError: the runtime failed.
        """
        return self._run(images, *self._choose(task, resolution))

    def patch_values(
        self, task: str | None = None, resolution: int | None = None
    ) -> tuple[PatchValues, CodingTable]:
        """The slot values that ``task`` runs with, read from its patch file, and their table.

        Raises:
            UnknownTaskError, UnknownResolutionError: it was not exported.
        """
        version, px = self._choose(task, resolution)
        return version.read(px), self.bundle.coding_table

    def _run(self, images: Pixels, version: TaskVersion, resolution: int) -> NDArray[np.float32]:
        check_batch(images, resolution)
        count = len(version.classes)
        if len(images) == 0:
            return np.empty((0, count), np.float32)
        return self._loaded.load(version, resolution).run(np.ascontiguousarray(images))[:, :count]

    @overload
    def classify(
        self,
        image: OneImage,
        task: str | None = None,
        resolution: int | None = None,
        *,
        cascade: bool = False,
    ) -> Prediction: ...
    @overload
    def classify(
        self,
        image: list[Any] | tuple[Any, ...],
        task: str | None = None,
        resolution: int | None = None,
        *,
        cascade: bool = False,
    ) -> list[Prediction]: ...
    @overload
    def classify(
        self,
        image: Pixels,
        task: str | None = None,
        resolution: int | None = None,
        *,
        cascade: bool = False,
    ) -> Any: ...
    def classify(
        self,
        image: Any,
        task: str | None = None,
        resolution: int | None = None,
        *,
        cascade: bool = False,
    ) -> Any:
        """Classify one image, or a batch of images of any sizes.

        Args:
            image: a path, the bytes of a file, an open file, a Pillow image, an array [H, W] or
                [H, W, C] RGB, a torch tensor [H, W] or [C, H, W] (`data.image_pixels`: the pixels
                are those that training sees). A list, another iterable, or an array of 4
                dimensions gives a list of predictions.
            task: by default that of the last `swap_to`, or the only one.
            resolution: by default that of the last `swap_to` (the nearest one, where a newer patch
                lacks it), or the base's own size where the task has it, or its largest. The
                prediction says which.
            cascade: by the cascade that the task's patch carries: each image at the first
                resolution that is sure of it; the prediction says which. In mode "per_run" as well.
                Over a store, where a newer patch may have lost it, the default resolution answers
                then, and it is logged.

        Raises:
            DataError: an image that cannot be read, or something else.
            UnknownTaskError, UnknownResolutionError: it was not exported.
            ConfigError: ``cascade`` with a resolution, or where the patch has none and there is no
                store.
        """
        way = self._way(task, resolution, cascade)
        images, is_single = split_batch(image)
        found: list[Prediction] = []
        for start in range(0, len(images), way.batch):
            found += way.predict([way.prepare(one) for one in images[start : start + way.batch]])
        return found[0] if is_single else found

    def classify_folder(
        self,
        folder: str | Path,
        task: str | None = None,
        resolution: int | None = None,
        *,
        cascade: bool = False,
    ) -> Iterator[tuple[Path, Prediction | DataError]]:
        """Classify every image file below ``folder``, in sorted order, a batch at a time.

        An image that cannot be read gives its error in the place of a prediction.

        Args:
            cascade: see `classify`.

        Raises:
            DataError: no such folder, or no image in it.
        """
        way = self._way(task, resolution, cascade)
        return self._classify_paths(image_paths(folder), way)

    def _classify_paths(
        self, paths: list[Path], way: _Way
    ) -> Iterator[tuple[Path, Prediction | DataError]]:
        for start in range(0, len(paths), way.batch):
            chunk = paths[start : start + way.batch]
            pixels: dict[Path, Pixels] = {}
            outcomes: dict[Path, Prediction | DataError] = {}
            for path in chunk:
                try:
                    pixels[path] = way.prepare(path)
                except DataError as error:
                    outcomes[path] = error
            predictions = way.predict(list(pixels.values()))
            outcomes |= dict(zip(pixels, predictions, strict=True))
            yield from ((path, outcomes[path]) for path in chunk)

    def cascade(self, task: str | None = None) -> Cascade | None:
        """The cascade that ``task``'s patch carries, and what was certified about it.

        Raises:
            UnknownTaskError: no such task.
        """
        loaded = self._cascades.of(self._choose(task, None)[0])
        return None if loaded is None else loaded.cascade

    def cascade_counts(self, task: str) -> dict[int, int]:
        """By resolution, how many images that stage of the patch that runs now has answered.

        They begin with the engine, and with each new patch of a store: its thresholds are others.
        Shares that move away from those of the report split say that the images have changed.
        """
        return self._cascades.counts(self._loaded.version(task))

    def prewarm_cascade(self, task: str | None = None) -> dict[str, float]:
        """Load every stage of ``task``'s cascade unless it is resident.

        Returns:
            ``total_ms``, and ``resident_bytes``: estimated memory of all stages together.

        Raises:
            ConfigError: its patch has no cascade.
            UnknownTaskError: no such task.
        """
        version = self._choose(task, None)[0]
        start = perf_counter()
        sides = self._cascades.require(version).rule.resolutions
        held = sum(self._loaded.load(version, px).resident_bytes for px in sides)
        return {"total_ms": 1e3 * (perf_counter() - start), "resident_bytes": float(held)}

    def _way(self, task: str | None, resolution: int | None, cascade: bool) -> _Way:
        """How a call prepares and classifies images; it keeps its version until it ends."""
        if cascade and resolution is not None:
            raise ConfigError(
                f"cascade=True at {resolution} px; a cascade chooses the resolution of each image; "
                "leave one of them out"
            )
        version, px = self._choose(task, resolution)
        if not cascade:
            return self._way_at(version, px)
        loaded = self._cascades.of(version)
        if loaded is None and self._loaded.has_store:
            self._cascades.say_missing(version, px)
            return self._way_at(version, px)
        loaded = self._cascades.require(version)
        if self._cascades.is_first_use(version):
            for px in loaded.rule.resolutions[1:]:
                self._loaded.in_background(self._loaded.load, version, px)
        return _Way(
            CASCADE_BATCH,
            lambda image: image_pixels(image, "the image"),
            lambda images: self._cascades.predict(
                loaded,
                images,
                self.preprocessing,
                lambda pixels, side: self._predict(pixels, version, side),
            ),
        )

    def _way_at(self, version: TaskVersion, px: int) -> _Way:
        return _Way(
            BATCH,
            lambda image: prepare_image(image, px, self.preprocessing),
            lambda pixels: self._predict(pixels, version, px),
        )

    def _predict(
        self, pixels: list[Pixels], version: TaskVersion, resolution: int
    ) -> list[Prediction]:
        if not pixels:
            return []
        scores = self._run(np.stack(pixels), version, resolution)
        return [
            Prediction(version.task, resolution, version.classes, row, chances)
            for row, chances in zip(scores, softmax(scores), strict=True)
        ]

    def _choose(self, task: str | None, resolution: int | None) -> tuple[TaskVersion, int]:
        """The version and the resolution that a call means; they stay its own until it ends."""
        self._loaded.look_for_patches()
        current, wanted = self._current, None
        if task is None and current is not None:
            task, wanted = current
        if task is None:
            if len(self.tasks) != 1:
                raise ConfigError(
                    f"no task named; the bundle has {', '.join(self.tasks) or 'none'}; name one, "
                    "or call swap_to first"
                )
            task = self.tasks[0]
        version = self._loaded.version(task)
        held = version.resolutions
        if resolution is None and wanted is not None:
            resolution = nearest_resolution(wanted, held)  # a newer patch may lack it
        elif resolution is None:
            own = self.preprocessing.input_size
            resolution = own if own in held else held[-1]
        if resolution not in held:
            raise UnknownResolutionError(
                f"task {task!r} was not exported at {resolution} px; it has "
                f"{', '.join(map(str, held))}; choose one of them or export it again"
            )
        return version, resolution

    def close(self) -> None:
        """Drop every resident; a running inference ends first where it holds one.

        In a forked child nothing is freed: the models are the parent's.
        """
        self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
