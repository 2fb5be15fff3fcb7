"""What kind of tensor a name is: the parts that training shares, and counts, apart.

In: a base and a name of its state dict or of a patch. Out: a `Part`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from patchdeploy.base import Base

Part = Literal["gamma", "beta", "depthwise", "statistics", "head"]


def part_of(base: Base, name: str) -> Part:
    """What kind of tensor ``name`` is."""
    stem, _, last = name.rpartition(".")
    if stem == base.head_name:
        return "head"
    if last in ("running_mean", "running_var"):
        return "statistics"
    if last in ("patch_scale", "patch_bias"):
        return "gamma" if last == "patch_scale" else "beta"
    if _has_tensor(base, f"{stem}.running_mean"):
        return "gamma" if last == "weight" else "beta"
    return "depthwise"


def _has_tensor(base: Base, name: str) -> bool:
    stem, _, last = name.rpartition(".")
    try:
        return isinstance(getattr(base.module.get_submodule(stem), last, None), Tensor)
    except AttributeError:
        return False
