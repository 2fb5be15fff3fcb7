"""A fork, and the models of the process that forked.

In: sessions and interpreters. Out: a child that neither runs nor destroys them. The threads that
they work with are not in the child, and locks that other threads held at that moment are never
released there: running such a model can hang, and so can destroying it, which happens at the latest
when the child ends. So in a child they are never destroyed, and an Engine refuses to work.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any
from weakref import WeakSet

from patchdeploy.errors import RuntimeBackendError

_NATIVE: WeakSet[Any] = WeakSet()


def leave_to_parent(native: Any) -> Any:
    """``native``, which a forked child will never destroy."""
    _NATIVE.add(native)
    return native


def _never_destroy() -> None:
    for native in list(_NATIVE):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(native))


def check_process(owner: int, what: str) -> None:
    """Check that this process is ``owner``, before any lock is taken.

    Args:
        owner: number of the process that opened ``what``.

    Raises:
        RuntimeBackendError: it is a child that was forked from it.
    """
    if os.getpid() != owner:
        raise RuntimeBackendError(
            f"{what} was opened in process {owner}, and this is process {os.getpid()}, forked from "
            "it; a runtime's threads and locks do not survive a fork; open the Engine in the child"
        )


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_never_destroy)
