"""Which patch may become active: check 6 of docs/patch-format.md, as a store makes it.

In: the state, what the reader demands, what ships with the app, and a patch that passed checks 1
to 5. Out: nothing, or a refusal. No disk.
"""

from __future__ import annotations

from patchdeploy.errors import PatchRefusedError
from patchdeploy.patchfile import CheckedPatch, Policy
from patchdeploy.patchfile.key_lists import still_count
from patchdeploy.store.records import Shipped, Status
from patchdeploy.store.state import Floor, StoreState


def floor_of(checked: CheckedPatch) -> Floor:
    """The floor that a patch sets once it is active."""
    return Floor(checked.header.sequence, checked.sha256, tuple(sorted(checked.signed_by)))


def check_sequence(
    state: StoreState, policy: Policy, shipped: Shipped | None, checked: CheckedPatch
) -> None:
    """Above the floor, or the very file that set it; and no older than what ships.

    Floors of keys that do not count any more are none.

    Raises:
        PatchRefusedError: code "sequence".
    """
    task, sequence = checked.header.task, checked.header.sequence
    floor = state.highest(task, lambda signers: still_count(signers, policy))
    if floor and sequence <= floor.sequence and checked.sha256 != floor.sha256:
        expected = f"above {floor.sequence}, the highest that task {task!r} ever had active"
    elif shipped and sequence < shipped.sequence and _counts(shipped, policy):
        expected = f"{shipped.sequence} or more, that of the patch which ships with the app"
    else:
        return
    raise PatchRefusedError(
        "sequence",
        "sequence",
        expected,
        str(sequence),
        "fetch a newer patch; the one before the active one comes back with revert",
    )


def _counts(shipped: Shipped, policy: Policy) -> bool:
    """Whether what ships is a floor: the app vouches for it, unless its key was revoked since."""
    return not shipped.signers or still_count(shipped.signers, policy)


def is_settled(state: StoreState, checked: CheckedPatch, activate: bool) -> bool:
    """Whether STATE names this very file for what is asked."""
    task = checked.header.task
    is_active = state.active.get(task) == checked.sha256
    return is_active or (not activate and state.previous.get(task) == checked.sha256)


def find_use(sha256: str, state: StoreState) -> tuple[Status, str | None]:
    """What STATE says about a file: its use and its task."""
    for task, active in state.active.items():
        if sha256 == active:
            return "active", task
        if sha256 == state.previous.get(task):
            return "previous", task
    return "installed", None
