"""The Engine: images of any size in, labels and probabilities out, for any task of a bundle.

In: a bundle and the name of a runtime, and a store where patches arrive later. Out: predictions. A
(task, resolution) is loaded when it is first asked for and stays resident within a byte budget;
residents never change, so threads may classify while others swap, and while a new patch takes the
place of an old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from time import monotonic, perf_counter
from types import TracebackType
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdeploy.bundle import Bundle, open_bundle
from patchdeploy.data import IMAGE_SUFFIXES, Preprocessing, load_image, resize_image
from patchdeploy.errors import (
    ConfigError,
    DataError,
    PatchdeployError,
    RuntimeBackendError,
    UnknownResolutionError,
    UnknownTaskError,
)
from patchdeploy.runtime.backend import Backend, Resident
from patchdeploy.runtime.choose import RUNTIME_FORMATS, make_backend
from patchdeploy.runtime.patches import Patches
from patchdeploy.runtime.prediction import Prediction, softmax
from patchdeploy.runtime.residents import Key, Residents
from patchdeploy.runtime.versions import (
    LOGGER,
    StoreWatch,
    TaskVersion,
    bundle_versions,
)
from patchdeploy.slots import PatchValues
from patchdeploy.store import Store

Pixels = NDArray[np.uint8]
OneImage = str | Path | Image.Image
BATCH = 32
"""Images that a folder is classified in at once."""
REFRESH_SECONDS = 5.0
"""How often a store is looked at for a new patch."""
PATCH_BUDGET_BYTES = 8 << 20
"""Memory for decoded patches: 5 of MobileNetV2 1.0 with 1000 classes, 50 with 10."""


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
        format_name: str = "",
    ) -> None:
        self._bundle = bundle
        self._refresh_seconds = refresh_seconds
        self._refreshed = monotonic()
        self._refresh_lock, self._background_lock = Lock(), Lock()
        self._versions = bundle_versions(bundle, with_sequence=store is not None)
        self._watch: StoreWatch | None = None
        if store is not None:
            self._watch = StoreWatch(store, bundle, format_name, self._versions)
            with suppress(PatchdeployError):  # logged
                self._versions = self._watch.look(self._versions)
        self._backend: Backend | None = backend
        self._residents = Residents(budget_bytes)
        self._patches = Patches(patch_budget_bytes)
        self._current: tuple[str, int] | None = None
        self._background: ThreadPoolExecutor | None = None

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

        Args:
            runtime: "litert" or "onnxruntime".
            mode: "resident", or with onnxruntime "per_run": the patch is fed with each run.
            budget_bytes: estimated memory that residents may hold; None: no limit.
            patch_budget_bytes: memory for patches that were read and checked, so that a task that
                was unloaded comes back without the disk; 0: each is read and checked again.
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
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        backend = make_backend(opened, runtime, threads, mode, package)
        return cls(
            opened,
            backend,
            budget_bytes,
            patch_budget_bytes,
            store,
            refresh_seconds,
            RUNTIME_FORMATS[runtime],
        )

    @property
    def bundle(self) -> Bundle:
        """The bundle as it was when the engine was opened."""
        return self._bundle

    @property
    def runtime(self) -> str:
        """The runtime's package and its version."""
        backend = self._open_backend()
        return f"{backend.name} {backend.version}"

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input."""
        return self._bundle.manifest.preprocessing

    @property
    def tasks(self) -> tuple[str, ...]:
        """Task names, sorted."""
        return tuple(sorted(self._versions))

    @property
    def versions(self) -> dict[str, str]:
        """SHA-256 of the patch file that each task runs."""
        return {task: one.sha256 for task, one in self._versions.items()}

    @property
    def store_problem(self) -> str | None:
        """Why the store could not be read at the last look; None where it could."""
        return None if self._watch is None else self._watch.problem

    @property
    def residents(self) -> tuple[tuple[str, int], ...]:
        """The (task, resolution) pairs that are loaded, the least recently used first."""
        loaded = self._residents.keys()
        return tuple((task, px) for task, px, _ in loaded)

    @property
    def resident_bytes(self) -> int:
        """Estimated private memory of the residents."""
        return self._residents.resident_bytes()

    def resolutions(self, task: str) -> tuple[int, ...]:
        """Sides in pixels that ``task`` was exported at.

        Raises:
            UnknownTaskError: no such task.
        """
        return self._version(task).resolutions

    def classes(self, task: str) -> tuple[str, ...]:
        """Labels of ``task``.

        Raises:
            UnknownTaskError: no such task.
        """
        return self._version(task).classes

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
        self._resident(version, px, timings)
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
        return self._in_background(self.prewarm, version.task, px)

    def evict(self, task: str, resolution: int) -> None:
        """Unload a resident (nothing happens if it is none); running inferences end first."""
        self._evict(lambda key: key[:2] == (task, resolution))

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
        if self._watch is None:
            return ()
        with self._refresh_lock:
            before = self._versions
            after = dict(self._watch.look(before))
            changed = {
                task
                for task in before.keys() | after.keys()
                if task not in before or task not in after or before[task] != after[task]
            }
            for task in sorted({task for task, _ in self.residents} & changed & after.keys()):
                try:
                    self._load_like_now(after[task])
                except PatchdeployError as error:
                    LOGGER.warning("task %s stays as it is: %s", task, error)
                    self._watch.forget()  # another look may find memory again
                    changed.remove(task)
                    after.pop(task)
                    after |= {task: before[task]} if task in before else {}
            self._versions = after
            current = {(task, one.sha256) for task, one in after.items()}
            self._evict(lambda key: (key[0], key[2]) not in current)
        return tuple(sorted(changed))

    def _load_like_now(self, version: TaskVersion) -> None:
        """Load ``version`` at each resolution at which its task is resident."""
        for task, px in self.residents:
            if task == version.task and px in version.resolutions:
                self._resident(version, px)

    def _evict(self, goes: Callable[[Key], bool]) -> None:
        loaded = self._residents.keys()
        for key in filter(goes, loaded):
            self._residents.evict(key)

    def _look_for_patches(self) -> None:
        """Start `refresh` on a thread, at most every ``refresh_seconds``."""
        seconds, now = self._refresh_seconds, monotonic()
        if self._watch is None or seconds is None or now - self._refreshed < seconds:
            return
        self._refreshed = now
        self._in_background(self._refresh_quietly)

    def _refresh_quietly(self) -> None:
        try:
            with suppress(PatchdeployError):  # logged where it is new
                self.refresh()
        except Exception:  # nobody waits for this thread's result
            LOGGER.exception("a defect of patchdeploy: the store was not read")

    def _in_background(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        self._open_backend()
        with self._background_lock:
            if self._background is None:
                self._background = ThreadPoolExecutor(1, thread_name_prefix="patchdeploy-prewarm")
        return self._background.submit(call, *arguments)

    def logits(
        self, images: Pixels, task: str | None = None, resolution: int | None = None
    ) -> NDArray[np.float32]:
        """uint8 [N, px, px, 3], resized already -> float32 [N, classes] scores.

        Raises:
            DataError: the images have another dtype or shape.
            RuntimeBackendError: the runtime failed.
        """
        return self._run(images, *self._choose(task, resolution))

    def _run(self, images: Pixels, version: TaskVersion, resolution: int) -> NDArray[np.float32]:
        px = resolution
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (px, px, 3):
            raise DataError(
                f"images are {images.dtype} {images.shape}; at {px} px they must be uint8 "
                f"[N, {px}, {px}, 3] RGB; resize them, or use classify, which does"
            )
        count = len(version.classes)
        if len(images) == 0:
            return np.empty((0, count), np.float32)
        return self._resident(version, px).run(np.ascontiguousarray(images))[:, :count]

    @overload
    def classify(
        self, image: OneImage, task: str | None = None, resolution: int | None = None
    ) -> Prediction: ...
    @overload
    def classify(
        self,
        image: list[Any] | tuple[Any, ...],
        task: str | None = None,
        resolution: int | None = None,
    ) -> list[Prediction]: ...
    @overload
    def classify(
        self, image: Pixels, task: str | None = None, resolution: int | None = None
    ) -> Any: ...
    def classify(self, image: Any, task: str | None = None, resolution: int | None = None) -> Any:
        """Classify one image (path, uint8 [H, W, 3] RGB, Pillow image) or a batch of any sizes.

        Args:
            image: a list, or an array uint8 [N, H, W, 3], gives a list of predictions.
            task: by default that of the last `swap_to`, or the only one.
            resolution: by default the base's own size where the task has it, or its largest.

        Raises:
            DataError: an image that cannot be read or is not uint8 RGB.
            UnknownTaskError, UnknownResolutionError: it was not exported.
        """
        version, px = self._choose(task, resolution)
        is_array = isinstance(image, np.ndarray)
        if isinstance(image, str | Path | Image.Image) or (is_array and image.ndim == 3):
            return self._predict([self._prepare(image, px)], version, px)[0]
        return self._predict([self._prepare(one, px) for one in image], version, px)

    def classify_folder(
        self, folder: str | Path, task: str | None = None, resolution: int | None = None
    ) -> Iterator[tuple[Path, Prediction | DataError]]:
        """Classify every image file below ``folder``, in sorted order, a batch at a time.

        An image that cannot be read gives its error in the place of a prediction.

        Raises:
            DataError: no such folder, or no image in it.
        """
        version, px = self._choose(task, resolution)
        paths = sorted(
            path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES
        )
        if not paths:
            raise DataError(
                f"folder {folder} holds no image; it needs at least 1 of "
                f"{', '.join(IMAGE_SUFFIXES)}; correct the path"
            )
        return self._classify_paths(paths, version, px)

    def _classify_paths(
        self, paths: list[Path], version: TaskVersion, px: int
    ) -> Iterator[tuple[Path, Prediction | DataError]]:
        for start in range(0, len(paths), BATCH):
            chunk = paths[start : start + BATCH]
            pixels: dict[Path, Pixels] = {}
            outcomes: dict[Path, Prediction | DataError] = {}
            for path in chunk:
                try:
                    pixels[path] = self._prepare(path, px)
                except DataError as error:
                    outcomes[path] = error
            predictions = self._predict(list(pixels.values()), version, px)
            outcomes |= dict(zip(pixels, predictions, strict=True))
            yield from ((path, outcomes[path]) for path in chunk)

    def _prepare(self, image: Any, resolution: int) -> Pixels:
        """uint8 [px, px, 3] of one image of any size."""
        if isinstance(image, str | Path):
            pixels = load_image(image)
        elif isinstance(image, Image.Image):
            pixels = np.asarray(image.convert("RGB"), np.uint8)
        else:
            pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise DataError(
                f"image is {pixels.dtype} {pixels.shape}; it must be uint8 [H, W, 3] RGB; convert "
                "it"
            )
        return resize_image(pixels, resolution, self.preprocessing)

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
        self._look_for_patches()
        current = self._current
        if task is None and current is not None:
            task = current[0]
            resolution = current[1] if resolution is None else resolution
        if task is None:
            if len(self.tasks) != 1:
                raise ConfigError(
                    f"no task named; the bundle has {', '.join(self.tasks) or 'none'}; name one, "
                    "or call swap_to first"
                )
            task = self.tasks[0]
        version = self._version(task)
        held = version.resolutions
        if resolution is None:
            own = self.preprocessing.input_size
            resolution = own if own in held else held[-1]
        if resolution not in held:
            raise UnknownResolutionError(
                f"task {task!r} was not exported at {resolution} px; it has "
                f"{', '.join(map(str, held))}; choose one of them or export it again"
            )
        return version, resolution

    def _version(self, task: str) -> TaskVersion:
        versions = self._versions
        if task not in versions:
            raise UnknownTaskError(
                f"no task {task!r} in {self._bundle.path}; it has "
                f"{', '.join(self.tasks) or 'none'}; choose one of them or add the task"
            )
        return versions[task]

    def _resident(
        self, version: TaskVersion, resolution: int, timings: dict[str, float] | None = None
    ) -> Resident:
        backend = self._open_backend()
        key = (version.task, resolution, version.sha256)

        def read() -> PatchValues:
            return version.read(resolution)

        def build() -> Resident:
            start = perf_counter()
            values = self._patches.get(key, read)
            middle = perf_counter()
            resident = backend.load(values, resolution)
            if timings is not None:
                timings["patch_ms"] = 1e3 * (middle - start)
                timings["load_ms"] = 1e3 * (perf_counter() - middle)
            return resident

        return self._residents.get(key, build)[0]

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise RuntimeBackendError(
                f"the engine over {self._bundle.path} is closed; a closed engine runs nothing; "
                "open another"
            )
        return self._backend

    def close(self) -> None:
        """Drop every resident; a running inference ends first where it holds one."""
        self._backend = None
        if self._background is not None:
            self._background.shutdown(wait=True)
        self._residents.clear()
        self._patches.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
