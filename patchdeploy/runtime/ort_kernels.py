"""Which form of kernels ONNX Runtime multiplies exactly on this processor: int8, or uint8.

In: the onnxruntime module. Out: "signed" or "unsigned". On x86-64 without VNNI its uint8 by int8
products are added with saturation at 16 bits, and scores come out wrong without a word. Flags of a
processor are not always at hand (Windows) and not always true (emulators, containers), so a small
model with known answers is run, once a process (`patchdeploy_onnx.probe`).
"""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

import numpy as np
from patchdeploy_onnx import probe, wire

from patchdeploy.errors import ConfigError, RuntimeBackendError

SIGNED, UNSIGNED = "signed", "unsigned"
"""int8 kernels, as base.onnx has them; uint8 ones with zero point 128: the same scores, slower."""
VARIABLE = "PATCHDEPLOY_ORT_KERNELS"
"""Environment variable: one of the two instead of the fastest that is exact here."""


def choose_kernels(module: ModuleType) -> str:
    """The fastest form that ``module``, which is onnxruntime, runs exactly here, or the forced one.

    Raises:
        ConfigError: VARIABLE is neither form.
        RuntimeBackendError: no form is exact here, or the forced one is not.
    """
    forced = os.environ.get(VARIABLE, "")
    if forced not in ("", SIGNED, UNSIGNED):
        raise ConfigError(
            f"{VARIABLE} is {forced!r}; it must be {SIGNED!r} or {UNSIGNED!r}; correct it or "
            "unset it"
        )
    tried = (forced,) if forced else (SIGNED, UNSIGNED)
    for form in tried:
        if is_exact(module, form):
            return form
    raise RuntimeBackendError(
        f"onnxruntime {module.__version__} gives wrong products with {' and '.join(tried)} kernels "
        f"on this processor; scores must be exact; "
        + (f"unset {VARIABLE}" if forced else "use another version of it, or runtime 'litert'")
    )


@cache
def is_exact(module: ModuleType, form: str) -> bool:
    """Whether ``module`` gives the known answers with kernels of ``form`` on this processor.

    Raises:
        RuntimeBackendError: it does not run the model at all.
    """
    model = probe.probe_model()
    if form == UNSIGNED:
        model = wire.unsigned_kernels(model)
    options = module.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_DISABLE_ALL
    image = np.full((1, probe.SIDE, probe.SIDE, probe.CHANNELS), probe.PIXEL, np.uint8)
    try:
        session = module.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        found = session.run([conv.name for conv in probe.CONVS], {probe.INPUT: image})
    except Exception as error:  # its errors have no common base
        raise RuntimeBackendError(
            f"onnxruntime {module.__version__} does not run quantised convolutions ({error}); a "
            "bundle's .onnx is made of them; install another version or use runtime 'litert'"
        ) from error
    return all(np.array_equal(scores, expected(scores.shape)) for scores in found)


def expected(shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 of ``shape`` [..., channels]: the exact answer, channels with kernel +127 and -127."""
    rows = np.where(np.arange(shape[-1]) % 2, 128 - probe.STEPS, 128 + probe.STEPS)
    return np.broadcast_to(rows, shape).astype(np.uint8)
