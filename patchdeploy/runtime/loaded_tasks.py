"""The tasks that an Engine has at hand: which version of each runs, what is loaded, what is newer.

In: a bundle, a backend, byte budgets, and perhaps a store. Out: residents. A (task, resolution) is
loaded when it is first asked for and stays within the budget; a look at the store gives a new
mapping of versions, and whoever holds a version of the old one goes on with it unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Lock
from time import monotonic, perf_counter
from typing import Any

from patchdeploy.bundle import Bundle
from patchdeploy.errors import PatchdeployError, RuntimeBackendError, UnknownTaskError
from patchdeploy.runtime.backend import Backend, Resident
from patchdeploy.runtime.fork import check_process
from patchdeploy.runtime.patches import Patches
from patchdeploy.runtime.residents import Key, Residents
from patchdeploy.runtime.versions import (
    LOGGER,
    StoreWatch,
    TaskVersion,
    Versions,
    bundle_versions,
    nearest_resolution,
)
from patchdeploy.slots import PatchValues
from patchdeploy.store import Store


class LoadedTasks:
    """Versions and residents of one Engine, for any number of threads; see `Engine.open`."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        budget_bytes: int | None,
        patch_budget_bytes: int,
        store: Store | None,
        refresh_seconds: float | None,
        format_name: str,
    ) -> None:
        """
        Args:
            format_name: of the bundle's base file that ``backend`` runs.

        Raises:
            ConfigError: a store of another base or runtime. (One that cannot be read is logged.)
            IntegrityError: there is a store, and a patch file of the bundle is damaged.
        """
        self._process = os.getpid()
        self._bundle = bundle
        self._refresh_seconds = refresh_seconds
        self._refreshed = monotonic()
        self._refresh_lock, self._background_lock = Lock(), Lock()
        self._watch: StoreWatch | None = None
        if store is None:
            self._versions = bundle_versions(bundle, format_name, None).versions
        else:
            self._watch = StoreWatch(store, bundle, format_name)
            self._versions = self._watch.shipped
            with suppress(PatchdeployError):  # logged
                self._versions = self._watch.look(self._versions)
        self._backend: Backend | None = backend
        self._residents = Residents(budget_bytes)
        self._patches = Patches(patch_budget_bytes)
        self._background: ThreadPoolExecutor | None = None

    def open_backend(self) -> Backend:
        """The runtime.

        Raises:
            RuntimeBackendError: the engine is closed, or was opened in the process that forked.
        """
        self.check_process()
        if self._backend is None:
            raise RuntimeBackendError(
                f"the engine over {self._bundle.path} is closed; a closed engine runs nothing; "
                "open another"
            )
        return self._backend

    def check_process(self) -> None:
        """Check that no fork lies between the engine's opening and this call.

        Raises:
            RuntimeBackendError: one does.
        """
        check_process(self._process, f"the engine over {self._bundle.path}")

    @property
    def versions(self) -> Versions:
        """What each task runs now; a refresh puts another mapping in its place."""
        return self._versions

    @property
    def has_store(self) -> bool:
        """Whether patches may come later."""
        return self._watch is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Task names, sorted."""
        return tuple(sorted(self._versions))

    @property
    def store_problem(self) -> str | None:
        """Why the store could not be read at the last look; None where it could."""
        return None if self._watch is None else self._watch.problem

    @property
    def residents(self) -> tuple[tuple[str, int], ...]:
        """The (task, resolution) pairs that are loaded, the least recently used first."""
        self.check_process()
        loaded = self._residents.keys()
        return tuple((task, px) for task, px, _ in loaded)

    @property
    def resident_bytes(self) -> int:
        """Estimated private memory of the residents."""
        self.check_process()
        return self._residents.resident_bytes()

    def version(self, task: str) -> TaskVersion:
        """What ``task`` runs now.

        Raises:
            UnknownTaskError: no such task.
            PatchRefusedError: there is one, and none of its patches may be used any more.
        """
        self.check_process()
        versions = self._versions
        if task not in versions:
            problem = None if self._watch is None else self._watch.problem_of(task)
            if problem is not None:
                raise problem
            raise UnknownTaskError(
                f"no task {task!r} in {self._bundle.path}; it has "
                f"{', '.join(self.names) or 'none'}; choose one of them or add the task"
            )
        return versions[task]

    def load(
        self, version: TaskVersion, resolution: int, timings: dict[str, float] | None = None
    ) -> Resident:
        """The resident of ``version`` at ``resolution``, loaded now unless it is already.

        Args:
            timings: where this call loads it, gets ``patch_ms`` and ``load_ms``.

        Raises:
            RuntimeBackendError: the engine is closed, or the runtime refused the model.
            PatchdeployError: the patch file cannot be read or used.
        """
        backend = self.open_backend()
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

    def evict(self, task: str, resolution: int) -> None:
        """Unload a resident (nothing happens if it is none); running inferences end first."""
        self.check_process()
        self._evict(lambda key: key[:2] == (task, resolution))

    def refresh(self) -> tuple[str, ...]:
        """Look at the store now, and take over what it has active; see `Engine.refresh`.

        Raises:
            StorageError, PatchdeployError: as there; everything stays as it is.
        """
        self.check_process()
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
            for task in sorted(changed & before.keys() & after.keys()):
                _tell_lost(before[task], after[task])
            self._versions = after
            current = {(task, one.sha256) for task, one in after.items()}
            self._evict(lambda key: (key[0], key[2]) not in current)
        return tuple(sorted(changed))

    def _load_like_now(self, version: TaskVersion) -> None:
        """Load ``version`` at each resolution at which its task is resident, or the nearest one."""
        for task, px in self.residents:
            if task == version.task:
                self.load(version, nearest_resolution(px, version.resolutions))

    def _evict(self, goes: Callable[[Key], bool]) -> None:
        loaded = self._residents.keys()
        for key in filter(goes, loaded):
            self._residents.evict(key)

    def look_for_patches(self) -> None:
        """Start `refresh` on a thread, at most every ``refresh_seconds``."""
        seconds, now = self._refresh_seconds, monotonic()
        if self._watch is None or seconds is None or now - self._refreshed < seconds:
            return
        self._refreshed = now
        self.in_background(self.refresh_quietly)

    def refresh_quietly(self) -> None:
        """`refresh` where nobody waits for what it raises: that is logged."""
        try:
            with suppress(PatchdeployError):  # logged where it is new
                self.refresh()
        except Exception:
            LOGGER.exception("a defect of patchdeploy: the store was not read")

    def in_background(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call on the one thread that works beside the inferences.

        Raises:
            RuntimeBackendError: the engine is closed.
        """
        self.open_backend()
        with self._background_lock:
            if self._background is None:
                self._background = ThreadPoolExecutor(1, thread_name_prefix="patchdeploy-prewarm")
        return self._background.submit(call, *arguments)

    def close(self) -> None:
        """Drop every resident; a running inference ends first where it holds one."""
        self._backend = None
        if os.getpid() != self._process:
            return  # a thread of the parent may hold the locks for ever
        if self._background is not None:
            self._background.shutdown(wait=True)
        self._residents.clear()
        self._patches.clear()


def _tell_lost(before: TaskVersion, after: TaskVersion) -> None:
    """Say which sides a newer patch lacks: who asks for one gets an error, by default the nearest
    one answers."""
    lost = [px for px in before.resolutions if px not in after.resolutions]
    if lost:
        LOGGER.warning(
            "task %s: its new patch has no %s px; it has %s px",
            after.task,
            ", ".join(map(str, lost)),
            ", ".join(map(str, after.resolutions)),
        )
