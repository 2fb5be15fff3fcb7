"""Tasks attached to one shared base: attach, switch, merge, take off again.

`model` has `PatchedModel`; `mixed` runs a batch of several tasks, through `rows` (whose values each
image has), `affine` and `layers` (the layers that look them up); `agreement` compares both.
"""

from patchdeploy.patched_model.model import (
    PatchedModel,
    attach_patch,
    initial_tensors,
    merge_tensors,
    random_head,
    reestimate_statistics,
    run_patched,
    trained_names,
)

__all__ = [
    "PatchedModel",
    "attach_patch",
    "initial_tensors",
    "merge_tensors",
    "random_head",
    "reestimate_statistics",
    "run_patched",
    "trained_names",
]
