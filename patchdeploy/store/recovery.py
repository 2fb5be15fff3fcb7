"""The state of a store, also where STATE is lost or damaged.

In: the folder. Out: the state that STATE or its copy says, and a `Recovery` where it does not come
from STATE. Without either record nothing says which patch a task ran, whether it was reverted or
replaced: then none is active, so what ships with the app runs, and no patch lower than those that
lie in the folder becomes active. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from patchdeploy.errors import IntegrityError, PatchRefusedError
from patchdeploy.patchfile import CheckedPatch
from patchdeploy.store.folder import MISSING, Seen, StoreFolder, patch_name
from patchdeploy.store.records import Recovery
from patchdeploy.store.state import MAX_TASKS, Floor, StoreState, raise_floor


@dataclass(frozen=True)
class FoundState:
    """The state that holds now.

    Attributes:
        state: what is active.
        recovery: set where it does not come from STATE.
        is_fresh: neither a record nor a patch is there.
        is_lost: STATE and its copy are gone, and patches are there.
    """

    state: StoreState
    recovery: Recovery | None = None
    is_fresh: bool = False
    is_lost: bool = False


def find_state(folder: StoreFolder) -> FoundState:
    """What STATE says, or its copy; no patch file is read.

    Raises:
        OSError: the disk failed, which says nothing about STATE.
    """
    while True:
        seen = folder.look()
        if seen.state is not None and seen.problem is None:
            return FoundState(seen.state)
        state = seen.state or StoreState()
        is_fresh = seen == Seen(None, MISSING) and not folder.patches()
        if folder.look() != seen:  # a writer was at it meanwhile
            continue
        if is_fresh:
            return FoundState(state, is_fresh=True)
        recovery = Recovery(seen.problem or "", state.active, {})
        return FoundState(state, recovery, is_lost=seen.state is None)


def keep_floors(
    found: FoundState, folder: StoreFolder, check: Callable[[bytes], CheckedPatch]
) -> FoundState:
    """``found``, a lost state, with the floors that the patches in the folder give.

    Args:
        check: checks 1 to 5 of a patch file.

    Raises:
        OSError: the disk failed.
    """
    floors: dict[str, tuple[Floor, ...]] = {}
    refused: dict[str, str] = {}
    for sha256 in sorted(folder.patches()):
        try:
            checked = check(folder.read_patch(sha256))
        except FileNotFoundError:
            continue
        except (IntegrityError, PatchRefusedError) as error:
            refused[patch_name(sha256)] = str(error)
            continue
        floor = Floor(checked.header.sequence, sha256, tuple(sorted(checked.signed_by)))
        task = checked.header.task
        if task not in floors and len(floors) >= MAX_TASKS:
            refused[patch_name(sha256)] = f"the store has {MAX_TASKS} other tasks"
            continue
        floors[task] = raise_floor(floors.get(task, ()), floor)
    recovery = None if found.recovery is None else replace(found.recovery, refused=refused)
    return replace(found, state=replace(found.state, floors=floors), recovery=recovery)
