"""A bundle: one base per runtime and a patch per task, in a folder that is never half written.

`manifest` is its table of contents, `reader` opens it, `models` makes stand-alone models of it,
`writer` creates it, adds and removes tasks, `pin` gives it another list of trusted keys.
"""

from patchdeploy.bundle.pin import Pinned, pin_keys
from patchdeploy.bundle.writer import (
    Bundle,
    add_task,
    check_request,
    create_bundle,
    find_place,
    next_sequence,
    open_bundle,
    patched,
    remove_task,
    size_report,
    staged_bundle,
    standalone,
)

__all__ = [
    "Bundle",
    "Pinned",
    "add_task",
    "check_request",
    "create_bundle",
    "find_place",
    "next_sequence",
    "open_bundle",
    "patched",
    "pin_keys",
    "remove_task",
    "size_report",
    "staged_bundle",
    "standalone",
]
