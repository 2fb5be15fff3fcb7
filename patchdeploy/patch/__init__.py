"""A model patch: the few tensors that turn a frozen base into another task or resolution.

`variants` has `Patch` and `PatchConfig`; `reach` says what one leaves as it is, `owner` whose it
is; `tensors` makes a task's first tensors, `forward` runs a module with them, `counts` says how
many parameters each kind has.
"""

from patchdeploy.patch.owner import recognise_patch
from patchdeploy.patch.reach import ReachWarning, check_reach
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
    "ReachWarning",
    "Statistics",
    "check_reach",
    "count_parameters",
    "find_sites",
    "recognise_patch",
]
