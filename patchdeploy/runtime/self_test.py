"""The self-test of a patch on the runtime at hand: check 9 of docs/patch-format.md.

In: a back end over the base, a decoded patch. Out: the largest difference to the scores that
travel with the patch, or a `PatchRefusedError`: the runtime refused the model, or the model says
something else than its maker saw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from patchdeploy.coding.table import CodingTable
from patchdeploy.errors import PatchRefusedError, RuntimeBackendError
from patchdeploy.patchfile.golden import check_golden, enlarge
from patchdeploy.patchfile.values import PatchFile
from patchdeploy.runtime.backend import Backend, Resident
from patchdeploy.slots import PatchValues


def run_self_test(
    backend: Backend, format_name: str, patch: PatchFile, table: CodingTable
) -> int | None:
    """Load every resolution of ``patch`` and compare its scores.

    Args:
        format_name: of the base file that ``backend`` runs, as the header's results name it.

    Returns:
        The largest difference in LSB of the scores; None where the patch carries no
        self-test (then its models were loaded, and no more).

    Raises:
        PatchRefusedError: codes "load" and "self_test".
    """
    measured = {}
    for px, values in patch.values.items():
        try:
            scores = _run_all(backend.load(values, px), patch, px)
        except (RuntimeBackendError, MemoryError) as error:
            raise PatchRefusedError(
                "load",
                f"model of task {patch.task!r} at {px} px",
                f"one that {backend.name} {backend.version} runs",
                f"refused ({str(error) or 'out of memory'})",
                "keep the patch that is active and pack this task again",
            ) from error
        if patch.golden is None:
            continue
        measured[px] = score_codes(scores[:, : len(patch.classes)], values, table)
    if patch.golden is None:
        return None
    return check_golden(
        patch.golden, format_name, measured, f"{backend.name} on task {patch.task!r}"
    )


def _run_all(resident: Resident, patch: PatchFile, resolution: int) -> NDArray[np.float32]:
    """float32 [images, head capacity]: one image at a time, so that memory is that of one."""
    thumbnails = () if patch.golden is None else patch.golden.thumbnails
    scores = [resident.run(enlarge(one[None], resolution)) for one in thumbnails]
    return np.concatenate(scores) if scores else np.empty((0, 0), np.float32)


def score_codes(
    scores: NDArray[np.float32], values: PatchValues, table: CodingTable
) -> NDArray[np.int8]:
    """The int8 that a score stands for: round(score / scale) + zero point of the output.

    Scores are scale * (code - zero point), rounded once, so the quotient is within 2^-15 of it.
    """
    return output_codes(scores, *output_scale(values, table))


def output_scale(values: PatchValues, table: CodingTable) -> tuple[float, int]:
    """Scale and zero point of the head's output."""
    place = table.output_index
    return float(values.activation_scale[place]), int(values.activation_zero_point[place])


def output_codes(scores: NDArray[np.float32], scale: float, zero_point: int) -> NDArray[np.int8]:
    """`score_codes` from what `output_scale` gives."""
    codes = np.rint(scores.astype(np.float64) / scale) + zero_point
    clipped: NDArray[np.int8] = np.clip(codes, -128, 127).astype(np.int8)
    return clipped
