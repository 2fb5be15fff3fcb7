"""A folder of signed patches, of which one a task is active: old or new after any fault.

`patch_store` has the operations and `rules` what may become active; `files` every operation on the
disk, `folder` names and the lock, `state` and `records` the file STATE, `recovery` what follows
when it is damaged.
"""

from patchdeploy.store.patch_store import (
    Entry,
    Hooks,
    Installed,
    Recovery,
    Shipped,
    Store,
    StoredPatch,
    read_clock,
)

__all__ = [
    "Entry",
    "Hooks",
    "Installed",
    "Recovery",
    "Shipped",
    "Store",
    "StoredPatch",
    "read_clock",
]
