"""Whose patch it is: of this base, by today's hash or by that of earlier versions, or of another.

In: a base and a patch. Out: the patch as one made today, or a WrongBaseError.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from patchdeploy.base import Base
from patchdeploy.errors import WrongBaseError
from patchdeploy.patch.variants import NORM_TENSORS, Patch, find_sites


def recognise_patch(base: Base, patch: Patch, remedy: str) -> Patch:
    """``patch``, if it was trained on ``base``.

    One that earlier versions made names the base by its tensors alone, and owns nothing of a
    normalisation with affine=False, which had no scale and bias then: it gets today's name, and
    there the base's values, with which it was trained.

    Args:
        remedy: what to do with a patch of another base.

    Raises:
        WrongBaseError: it was trained on another base.

    Warns:
        OldHashWarning: it names the base by its tensors alone.
    """
    if patch.base_sha256 == base.sha256:
        return patch
    if not base.is_named(patch.base_sha256, f"patch {patch.task!r}"):
        raise WrongBaseError(
            f"patch {patch.task!r} was trained on base {patch.base_sha256[:16]}, this base is "
            f"{base.sha256[:16]}; {remedy}"
        )
    variants = {px: {**_missing(base, patch, px), **patch.tensors(px)} for px in patch.resolutions}
    return replace(patch, base_sha256=base.sha256, variants=variants)


def _missing(base: Base, patch: Patch, px: int) -> dict[str, NDArray[np.float32]]:
    """The base's values of normalisations of which the patch has no tensor at all."""
    tensors = patch.tensors(px)
    state = base.module.state_dict()
    keys = (
        [f"{path}.{name}" for name in NORM_TENSORS] for path in find_sites(base, patch.config).norms
    )
    return {
        key: state[key].numpy().copy()
        for group in keys
        if not any(key in tensors for key in group)
        for key in group
    }
