"""A model patch: the few tensors that turn a frozen base into another task or resolution.

`variants` has `Patch` and `PatchConfig`; `tensors` makes a task's first tensors, `forward` runs a
module with them, `counts` says how many parameters each kind has.
"""

from patchdeploy.patch.variants import (
    CONFIG_FILE,
    NORM_TENSORS,
    TENSOR_FILE,
    Kind,
    Patch,
    PatchConfig,
    PatchSites,
    Statistics,
    count_parameters,
    find_sites,
)

__all__ = [
    "CONFIG_FILE",
    "NORM_TENSORS",
    "TENSOR_FILE",
    "Kind",
    "Patch",
    "PatchConfig",
    "PatchSites",
    "Statistics",
    "count_parameters",
    "find_sites",
]
