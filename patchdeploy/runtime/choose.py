"""Which back end a name stands for; each imports its runtime when it is made."""

from __future__ import annotations

from typing import Any

from patchdeploy.bundle import Bundle
from patchdeploy.errors import ConfigError
from patchdeploy.runtime.backend import Backend
from patchdeploy.runtime.litert import LiteRTBackend
from patchdeploy.runtime.ort import OnnxRuntimeBackend

RUNTIME_FORMATS: dict[str, str] = {"litert": "tflite", "onnxruntime": "onnx"}
"""The converter whose base file a runtime reads."""


def make_backend(
    bundle: Bundle, runtime: str, threads: int, mode: str, package: str | None
) -> Backend:
    """The back end for ``runtime`` over ``bundle``.

    Raises:
        ConfigError: an unknown runtime or mode, fewer than 1 thread, or a bundle without the
            runtime's format.
        MissingExtraError: the runtime is not installed.
    """
    if runtime not in RUNTIME_FORMATS:
        raise ConfigError(
            f"runtime {runtime!r}; it must be one of {', '.join(RUNTIME_FORMATS)}; choose one"
        )
    if mode not in ("resident", "per_run") or (mode == "per_run" and runtime != "onnxruntime"):
        raise ConfigError(
            f"mode {mode!r} with runtime {runtime!r}; there is 'resident', and with onnxruntime "
            "also 'per_run'; choose one"
        )
    if type(threads) is not int or threads < 1:
        raise ConfigError(f"threads is {threads!r}; it must be an integer of at least 1; set it")
    options: dict[str, Any] = {"threads": threads}
    if runtime == "litert":
        return LiteRTBackend(bundle, package=package, **options)
    return OnnxRuntimeBackend(bundle, mode=mode, **options)
