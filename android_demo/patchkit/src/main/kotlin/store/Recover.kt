package patchdeploy.patchkit.store

import java.nio.file.NoSuchFileException
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.stillCount

/**
 * The state of a store, also where STATE is lost or damaged, and which patch may become active.
 * Without either record nothing says what a task ran: then nothing is active, so what ships with the
 * app runs, and no patch lower than those in the folder becomes active. Nothing is written here.
 *
 * @property state what is active.
 * @property recovery set where it does not come from STATE.
 * @property isFresh neither a record nor a patch is there.
 * @property isLost STATE and its copy are gone, and patches are there.
 */
internal class FoundState(
    val state: StoreState,
    val recovery: Recovery? = null,
    val isFresh: Boolean = false,
    val isLost: Boolean = false,
) {
    fun with(state: StoreState, recovery: Recovery? = this.recovery) = FoundState(state, recovery, isFresh, isLost)
}

/** What STATE says, or its copy; no patch file is read. */
internal fun findState(folder: StoreFolder): FoundState {
    while (true) {
        val seen = folder.look()
        if (seen.state != null && seen.problem == null) return FoundState(seen.state)
        val state = seen.state ?: StoreState()
        val isFresh = seen == Seen(null, MISSING) && folder.patches().isEmpty()
        if (folder.look() != seen) continue // a writer was at it meanwhile
        if (isFresh) return FoundState(state, isFresh = true)
        val recovery = Recovery(seen.problem.orEmpty(), state.active, emptyMap())
        return FoundState(state, recovery, isLost = seen.state == null)
    }
}

/**
 * [found], a lost state, with the floors that the patches in the folder give.
 *
 * @param check checks 1 to 5 of a patch file.
 */
internal fun keepFloors(found: FoundState, folder: StoreFolder, check: (ByteArray) -> CheckedPatch): FoundState {
    val floors = HashMap<String, List<Floor>>()
    val refused = HashMap<String, String>()
    for (sha256 in folder.patches().sorted()) {
        try {
            val checked = check(folder.readPatch(sha256))
            val task = checked.header.task
            if (task !in floors && floors.size >= MAX_TASKS) {
                refused[patchName(sha256)] = "the store has $MAX_TASKS other tasks"
            } else {
                floors[task] = raiseFloor(floors[task].orEmpty(), floorOf(checked))
            }
        } catch (_: NoSuchFileException) {
            continue
        } catch (error: IntegrityException) {
            refused[patchName(sha256)] = error.message.orEmpty()
        } catch (error: PatchRefusedException) {
            refused[patchName(sha256)] = error.message.orEmpty()
        }
    }
    return found.with(found.state.copy(floors = floors), found.recovery?.copy(refused = refused))
}

/** The floor that a patch sets once it is active. */
internal fun floorOf(checked: CheckedPatch) = Floor(checked.header.sequence, checked.sha256, checked.signedBy.sorted())

/**
 * Check 6 of a store: above the floor, or the very file that set it; and no older than what ships.
 * Floors of keys that do not count any more are none.
 *
 * @throws PatchRefusedException code "sequence".
 */
internal fun checkSequence(state: StoreState, policy: Policy, shipped: Shipped?, checked: CheckedPatch) {
    val task = checked.header.task
    val sequence = checked.header.sequence
    val floor = state.highest(task) { stillCount(it, policy) }
    val expected = if (floor != null && sequence <= floor.sequence && checked.sha256 != floor.sha256) {
        "above ${floor.sequence}, the highest that task '$task' ever had active"
    } else if (shipped != null && sequence < shipped.sequence && counts(shipped, policy)) {
        "${shipped.sequence} or more, that of the patch which ships with the app"
    } else {
        return
    }
    throw PatchRefusedException(
        RefusalCode.SEQUENCE, "sequence", expected, "$sequence",
        "fetch a newer patch; the one before the active one comes back with revert",
    )
}

/** Whether what ships is a floor: the app vouches for it, unless its key was revoked since. */
private fun counts(shipped: Shipped, policy: Policy): Boolean =
    shipped.signers.isEmpty() || stillCount(shipped.signers, policy)

/** Whether STATE names this very file for what is asked. */
internal fun isSettled(state: StoreState, checked: CheckedPatch, activate: Boolean): Boolean {
    val task = checked.header.task
    return state.active[task] == checked.sha256 || (!activate && state.previous[task] == checked.sha256)
}
