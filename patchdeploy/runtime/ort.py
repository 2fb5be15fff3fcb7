"""ONNX Runtime: a session per resident, or one session whose slots are inputs of every run.

In: a bundle's .onnx and slot values. Out: residents. The file is written channels-last with the
runtime's own operators, so sessions open with graph optimisation off.

*resident* lays the patch over a copy of the base file before the session is made: no cost per
inference. *per_run* makes one session and feeds the patch with each run: no session to make for
a task, and slower inference.

Where the runtime's uint8 by int8 products are wrong, as on x86-64 without VNNI, kernels are made
uint8 once when a back end opens (`ort_kernels`): the same scores in both modes, and slower.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from patchdeploy_onnx import wire  # by module: it is half imported where it imports patchdeploy

from patchdeploy.bundle import Bundle
from patchdeploy.errors import MissingExtraError, RuntimeBackendError
from patchdeploy.runtime.backend import PRIVATE_BYTES_PER_FILE_BYTE
from patchdeploy.runtime.fork import leave_to_parent
from patchdeploy.runtime.model_copy import ModelCopy
from patchdeploy.runtime.ort_format import make_ort_model
from patchdeploy.runtime.ort_kernels import UNSIGNED, choose_kernels
from patchdeploy.slots import PatchValues, SlotTable, slot_values

PER_RUN_VERSION = (1, 29)
"""Below, a bias that is an input is dropped without a word (onnxruntime#31684)."""
INPUT, OUTPUT = "image", "scores"
TELEMETRY_OFF = ("1", "true", "yes", "on")
"""Values of ORT_DISABLE_TELEMETRY that onnxruntime understands so; any other leaves it on."""


class OnnxRuntimeBackend:
    """Sessions over one bundle's base.onnx."""

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int,
        mode: str = "resident",
    ) -> None:
        """
        Raises:
            RuntimeBackendError: the runtime refuses the base file, or is wrong on this processor.
        """
        self._module = load_onnxruntime()
        self.version = str(self._module.__version__)
        self.kernels = choose_kernels(self._module)
        self._threads = threads
        base, self._table = bundle.base("onnx")
        if self.kernels == UNSIGNED:
            base, self._table = wire.unsigned_kernels(base), unsigned_table(self._table)
        self._copy: ModelCopy | None = None
        self._per_run: Any = None
        if mode == "per_run":
            check_per_run_version(self.version)
            self._per_run = self._session(wire.per_run_model(base, self._table))
            self._self_test(bundle.manifest.resolutions[0])
        else:
            faster = make_ort_model(self._module, base, self._table)
            if faster is None:
                self._session(base)  # a file that it refuses is refused now, not at the first swap
            self._copy = ModelCopy(*(faster or (base, self._table)))

    def load(self, values: PatchValues, resolution: int) -> OnnxResident:
        """See `Backend.load`; a file serves every resolution."""
        if self._copy is None:
            return OnnxResident(self._per_run, slot_feeds(self._table, values), 0)
        model = self._copy.render(values, resolution)
        return OnnxResident(self._session(model), {}, len(model))

    def _session(self, model: bytes) -> Any:
        options = self._module.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        level = self._module.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
        try:
            return leave_to_parent(
                self._module.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            )
        except Exception as error:  # its errors have no common base
            raise self._refused(model, error) from error

    def _refused(self, model: bytes, error: Exception) -> RuntimeBackendError:
        return RuntimeBackendError(
            f"onnxruntime {self.version} refused the model of {len(model)} bytes ({error}); it "
            "must be a bundle that this version runs; export the bundle again or upgrade the "
            "runtime"
        )

    def _self_test(self, resolution: int) -> None:
        """Biases at both ends must give different scores, or the runtime drops them."""
        image = np.zeros((1, resolution, resolution, 3), np.uint8)
        scores = []
        for bias in (-(2**28), 2**28):
            feeds = {
                slot.name: np.full(wire.slot_dims(slot), bias, np.int32)
                for slot in self._table.slots
                if slot.kind == "bias"
            }
            scores.append(OnnxResident(self._per_run, feeds, 0).run(image))
        if np.array_equal(scores[0], scores[1]):
            raise RuntimeBackendError(
                f"onnxruntime {self.version} ignores a bias that is an input; per-run mode needs "
                "a version that does not; use mode='resident' or another version"
            )


class OnnxResident:
    """A session and what is fed with each run; sessions may be run from any thread."""

    def __init__(self, session: Any, feeds: dict[str, NDArray[Any]], model_bytes: int) -> None:
        self._session = session
        self._feeds = feeds
        fed_bytes = sum(array.nbytes for array in feeds.values())
        self._bytes = PRIVATE_BYTES_PER_FILE_BYTE * model_bytes + fed_bytes

    @property
    def resident_bytes(self) -> int:
        """Initialisers, packed kernels and activations, estimated, or the values that are fed."""
        return self._bytes

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Resident.run`; the whole batch in one run."""
        try:
            found = self._session.run([OUTPUT], {INPUT: images, **self._feeds})
        except Exception as error:  # its errors have no common base
            raise RuntimeBackendError(
                f"onnxruntime failed on images of shape {images.shape} ({error}); the input must "
                "be uint8 [N, px, px, 3]; resize the images to the resident's resolution"
            ) from error
        return np.asarray(found[0], np.float32)


def slot_feeds(table: SlotTable, values: PatchValues) -> dict[str, NDArray[Any]]:
    """The slots of ``values`` by initialiser name, in the initialiser's shape."""
    return {
        slot.name: np.ascontiguousarray(slot_values(slot, values)).reshape(wire.slot_dims(slot))
        for slot in table.slots
    }


def unsigned_table(table: SlotTable) -> SlotTable:
    """``table`` for a file that `unsigned_kernels` made: kernels at the same places, as uint8."""
    slots = (replace(slot, dtype="u8") if slot.dtype == "i8" else slot for slot in table.slots)
    return replace(table, slots=tuple(slots))


def check_per_run_version(version: str) -> None:
    """Check that per-run mode is right in onnxruntime ``version``.

    Raises:
        RuntimeBackendError: older than PER_RUN_VERSION.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match is None or (int(match[1]), int(match[2])) < PER_RUN_VERSION:
        raise RuntimeBackendError(
            f"onnxruntime {version} drops a bias that is an input (onnxruntime#31684); per-run "
            "mode needs 1.29 or newer; upgrade onnxruntime or use mode='resident'"
        )


def load_onnxruntime() -> ModuleType:
    """The onnxruntime module, its telemetry off unless the user has switched it on.

    ``import patchdeploy`` has switched it off; the call is for a program that imported onnxruntime
    before, where it ends what is not sent yet.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "runtime 'onnxruntime' needs onnxruntime, which is not installed; "
            "run: pip install 'patchdeploy[onnx]'"
        ) from error
    if os.environ.get("ORT_DISABLE_TELEMETRY", "1").lower() in TELEMETRY_OFF:
        onnxruntime.disable_telemetry_events()
    module: ModuleType = onnxruntime
    return module
