"""Is a model right on this processor without the Engine, opened as any .onnx is?

In: a bundle, pixels and the scores that the Engine gives. Out: a row. The file has int8 kernels,
which ONNX Runtime multiplies wrongly on some processors (`runtime.ort_kernels`): the Engine makes
them uint8 there, and whoever opens the file without it is not protected. A bundle is no worse for
the processor that it is verified on, so that is no failure of it, but it is said loudly.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from patchdeploy_onnx import unsigned_kernels

from patchdeploy.bundle import Bundle, patched
from patchdeploy.runtime.ort import INPUT, OUTPUT, load_onnxruntime
from patchdeploy.runtime.ort_kernels import SIGNED, is_exact

LOGGER = logging.getLogger("patchdeploy.verify")
NAME = "without the Engine"
Scores = NDArray[np.float32]


def check_bare(
    bundle: Bundle, task: str, px: int, subject: str, pixels: NDArray[np.uint8], scores: Scores
) -> tuple[str, str, bool | None, str, dict[str, Any]]:
    """The written model and its unsigned form in bare sessions against the Engine's ``scores``.

    Args:
        pixels: uint8 [N, px, px, 3].
        scores: float32 [N, classes].
    """
    model = patched(bundle, task, "onnx", px)
    exact = is_exact(load_onnxruntime(), SIGNED)
    wrong = _count_wrong(model, pixels, scores)
    wrong_unsigned = _count_wrong(unsigned_kernels(model), pixels, scores)
    passed, detail = judge(exact, wrong, wrong_unsigned, len(pixels))
    if passed is None:
        _warn_once(detail.partition(":")[0])
    numbers = {
        "images": len(pixels),
        "kernels_exact": exact,
        "wrong_as_written": wrong,
        "wrong_unsigned": wrong_unsigned,
    }
    return NAME, subject, passed, detail, numbers


def judge(exact: bool, wrong: int, wrong_unsigned: int, count: int) -> tuple[bool | None, str]:
    """Whether the check passes (None: it says something about the processor), and its words.

    Args:
        exact: int8 kernels are multiplied exactly on this processor.
        wrong, wrong_unsigned: images of ``count`` whose scores are not the Engine's, by form.
    """
    if wrong_unsigned or (exact and wrong):
        form, found = ("unsigned form", wrong_unsigned) if wrong_unsigned else ("file", wrong)
        return False, f"the {form} gives other scores than the Engine, {found} of {count} images"
    if exact:
        return True, "the file as written and its unsigned form give the Engine's scores"
    return None, (
        "base.onnx IS WRONG ON THIS PROCESSOR WITHOUT THE ENGINE (int8 kernels saturate); use its "
        "unsigned form there, see docs/bundle-format.md"
        f": as written {wrong} of {count} images have other scores, in unsigned form none"
    )


def _count_wrong(model: bytes, pixels: NDArray[np.uint8], scores: Scores) -> int:
    """Images whose scores in a session with default options differ from ``scores``."""
    module = load_onnxruntime()
    options = module.SessionOptions()
    options.log_severity_level = 3
    session = module.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels)})[0]
    return int(np.any(found[:, : scores.shape[1]] != scores, axis=1).sum())


@cache
def _warn_once(text: str) -> None:
    LOGGER.warning(text)
