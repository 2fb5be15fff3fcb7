"""What a patch store answers, and the functions that it is given.

In: nothing. Out: the frozen records that `store.Store` returns, and `Hooks`, the checks of a patch
file that the store runs in their order without knowing what they look at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from patchdeploy.patchfile import CheckedPatch, Policy
from patchdeploy.patchfile.values import PatchFile

Status = Literal["active", "previous", "installed"]


@dataclass(frozen=True)
class Hooks:
    """The checks of docs/patch-format.md that come before the commit. Each raises a typed error.

    Attributes:
        check: checks 1 to 6 of a file's bytes (`patchfile.check_patch_file`).
        decode: checks 7 and 8: the values.
        self_test: check 9: result hash, runtime, golden inputs. Called before anything of the
            patch is written.
    """

    check: Callable[[bytes, Policy], CheckedPatch]
    decode: Callable[[CheckedPatch], PatchFile]
    self_test: Callable[[CheckedPatch, PatchFile], None]


@dataclass(frozen=True)
class Shipped:
    """The patch of a task that comes with the app, outside the store.

    Attributes:
        sequence: a floor, unless its signers were revoked: what is older is not activated.
        read: the bytes of its file, checked as any other's before they are used.
        signers: indices of the keys that signed it; none: it is of a development bundle.
    """

    sequence: int
    read: Callable[[], bytes]
    signers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """That STATE was missing or damaged, and what came of it.

    Attributes:
        reason: what was wrong with STATE.
        active: SHA-256 of the patch that each task runs now, as the copy of STATE says; empty
            where that was lost, too: then what ships with the app runs.
        refused: for each patch file that gives no floor in the place of the lost ones, why.
    """

    reason: str
    active: Mapping[str, str]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Installed:
    """What an install, an activation or a revert came to.

    Attributes:
        sha256: of the patch file.
        task, sequence: from its header.
        changed: False where everything was so already.
        recovery: set where STATE had been lost or damaged.
        lost_resolutions: sides in pixels that the patch before it has and this one lacks.
    """

    sha256: str
    task: str
    sequence: int
    changed: bool
    recovery: Recovery | None = None
    lost_resolutions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One patch file of a store.

    Attributes:
        sha256: its name.
        status: "active", "previous", or "installed": there, and not in use.
        task, sequence, expires: from its header, or None where it has a problem. For a file in
            use the task is what STATE says.
        file_bytes: its length; None where it cannot be read.
        problem: why it cannot be used, or None.
    """

    sha256: str
    status: Status
    task: str | None
    sequence: int | None
    expires: int | None
    file_bytes: int | None
    problem: str | None


class StoredPatch(NamedTuple):
    """An active patch: ``patch`` is decoded from ``checked``, which was checked in ``data``.

    Attributes:
        data: the whole file, read once.
        checked: its header, payload and signers.
        patch: its values.
    """

    data: bytes
    checked: CheckedPatch
    patch: PatchFile
