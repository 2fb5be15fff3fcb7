"""LiteRT: one interpreter per resident, over a private copy of the base file.

In: a bundle's .tflite and slot values. Out: residents. Each sees one resolution's signature only
(`slots.select_view`), so that XNNPACK packs one subgraph and not all of them.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.bundle import Bundle
from patchdeploy.errors import ConfigError, MissingExtraError, RuntimeBackendError
from patchdeploy.runtime.backend import PRIVATE_BYTES_PER_FILE_BYTE
from patchdeploy.runtime.fork import leave_to_parent
from patchdeploy.runtime.model_copy import ModelCopy
from patchdeploy.runtime.native_log import without_greeting
from patchdeploy.slots import PatchValues

PACKAGES = {
    "ai_edge_litert": ("ai_edge_litert.interpreter", "ai-edge-litert"),
    "tflite_runtime": ("tflite_runtime.interpreter", "tflite-runtime"),
    "tensorflow": ("tensorflow.lite", "tensorflow"),
}
"""Packages with the interpreter, in the order in which they are tried: module, distribution."""


class LiteRTBackend:
    """Interpreters over one bundle's base.tflite."""

    def __init__(self, bundle: Bundle, *, threads: int, package: str | None = None) -> None:
        self._interpreter, self.name, self.version = load_interpreter(package)
        self._threads = threads
        self._copy = ModelCopy(*bundle.base("tflite"))
        self._copy.restock()

    def load(self, values: PatchValues, resolution: int) -> LiteRTResident:
        """See `Backend.load`."""
        model = self._copy.render(values, resolution)
        try:
            with without_greeting():
                interpreter = leave_to_parent(
                    self._interpreter(model_content=model, num_threads=self._threads)
                )
                interpreter.allocate_tensors()
            return LiteRTResident(interpreter, len(model), self.name)
        except (ValueError, RuntimeError) as error:
            raise RuntimeBackendError(
                f"{self.name} {self.version} refused the model of {len(model)} bytes at "
                f"{resolution} px ({error}); it must be a bundle that this version runs; export "
                "the bundle again or upgrade the runtime"
            ) from error
        finally:
            self._copy.restock()


class LiteRTResident:
    """One interpreter; a lock keeps it to one inference at a time."""

    def __init__(self, interpreter: Any, model_bytes: int, name: str) -> None:
        self._interpreter = interpreter
        self._name = name
        self._lock = Lock()
        self._input = interpreter.get_input_details()[0]
        self._output = interpreter.get_output_details()[0]
        self._bytes = PRIVATE_BYTES_PER_FILE_BYTE * model_bytes

    @property
    def resident_bytes(self) -> int:
        """The file's copy, packed kernels and activations, estimated from the file."""
        return self._bytes

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Resident.run`; one invocation per image."""
        scores = np.empty((len(images), int(self._output["shape"][-1])), np.float32)
        try:
            with self._lock:
                for row, image in zip(scores, images, strict=True):
                    self._interpreter.set_tensor(self._input["index"], image[None])
                    self._interpreter.invoke()
                    row[:] = self._interpreter.get_tensor(self._output["index"])[0]
        except (ValueError, RuntimeError) as error:
            raise RuntimeBackendError(
                f"{self._name} failed on images of shape {images.shape} ({error}); the input must "
                f"be {list(self._input['shape'])}; resize the images to the resident's resolution"
            ) from error
        return scores


def load_interpreter(package: str | None = None) -> tuple[Any, str, str]:
    """The Interpreter class, and the name and version of its package.

    Args:
        package: a key of PACKAGES; by default the first that is installed.

    Raises:
        ConfigError: an unknown package.
        MissingExtraError: none is installed.
    """
    if package is not None and package not in PACKAGES:
        raise ConfigError(
            f"LiteRT package {package!r}; it must be one of {', '.join(PACKAGES)}; choose one"
        )
    for name in [package] if package else PACKAGES:
        module, distribution = PACKAGES[name]
        try:
            interpreter = importlib.import_module(module).Interpreter
        except ImportError:
            continue
        try:
            return interpreter, distribution, version(distribution)
        except PackageNotFoundError:  # tensorflow-cpu holds the module tensorflow
            return interpreter, distribution, "of an unnamed build"
    raise MissingExtraError(
        f"runtime 'litert' needs {package or ' or '.join(PACKAGES)}, and it is not installed; "
        "run: pip install 'patchdeploy[tflite]'"
    )
