package patchdeploy.patchkit.store

import java.nio.file.NoSuchFileException
import java.nio.file.Path
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.HEX64_RULE
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.UnknownTaskException
import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.joinLists

private const val GONE = "the file is gone"

/**
 * A folder of signed patches, of which one a task is active: old or new after any fault. The rules
 * are those of docs/patch-format.md, "The store". It keeps nothing in memory.
 *
 * @property folder made by the first write; its parent must exist.
 * @property policy what every patch must meet; `floor` and `now` are the store's and not used.
 * @property hooks the checks.
 * @property files the disk.
 * @property shipped by task, the patch that comes with the app.
 * @property clock Unix seconds.
 */
public class Store(
    private val folder: Path,
    private val policy: Policy,
    private val hooks: Hooks,
    private val files: Files = DiskFiles(),
    private val shipped: Map<String, Shipped> = emptyMap(),
    private val clock: () -> Long = { System.currentTimeMillis() / 1000 },
) {
    private val place = StoreFolder(folder, files)

    /**
     * Check a patch file, keep it, and make it its task's active one. The file that is active
     * already is left as it is, and put back where it was damaged.
     *
     * @param activate false: keep it only.
     * @throws PatchRefusedException it failed a check; nothing changed, but that a folder which was
     *   not there may now be an empty store.
     * @throws ConfigException the store holds as many tasks as it can.
     * @throws patchdeploy.patchkit.StorageException the disk failed; the state before it stays.
     */
    public fun install(data: ByteArray, activate: Boolean = true): Installed {
        val own = data.copyOf()
        return writing("install a patch", makes = true) { found ->
            val checked = check(own, found.state)
            val settled = isSettled(found.state, checked, activate)
            if (settled && place.isWhole(checked.sha256)) {
                installed(checked, found, changed = false)
            } else {
                if (!settled) {
                    demandSequence(found.state, checked)
                    hooks.check(own, policyOf(found.state).copy(floor = 0, now = clock()))
                }
                admit(found, own, checked, activate)
            }
        }
    }

    /**
     * Make a patch that was installed its task's active one.
     *
     * @throws ConfigException [sha256] is not a hash, or the store holds as many tasks as it can.
     * @throws PatchException no such patch in the store, or no store at all.
     * @throws PatchRefusedException it failed a check; nothing changed.
     * @throws IntegrityException the file is not what its name says.
     * @throws patchdeploy.patchkit.StorageException the disk failed; the state before it stays.
     */
    public fun activate(sha256: String): Installed {
        if (!HEX64.matches(sha256)) {
            throw ConfigException("patch '${sha256.take(80)}'; it must be $HEX64_RULE; list the store and choose one")
        }
        return writing("activate a patch") { found ->
            val data = try {
                place.readPatch(sha256)
            } catch (error: NoSuchFileException) {
                throw PatchException(
                    "store $folder holds no patch $sha256; a patch must be installed before it is " +
                        "activated; install it, or list the store and choose one",
                    error,
                )
            }
            val checked = check(data, found.state)
            if (isSettled(found.state, checked, activate = true)) {
                installed(checked, found, changed = false)
            } else {
                demandSequence(found.state, checked)
                admit(found, data, checked, activate = true)
            }
        }
    }

    /**
     * Make the patch before the active one active again; doing it twice changes nothing. The floor
     * stays, so nothing else that is older can be activated.
     *
     * @throws UnknownTaskException the task has no active patch.
     * @throws PatchException it has no previous one, or there is no store.
     * @throws PatchRefusedException that failed a check; nothing changed.
     * @throws IntegrityException its file is gone or is not what its name says.
     * @throws patchdeploy.patchkit.StorageException the disk failed; the state before it stays.
     */
    public fun revert(task: String): Installed = writing("revert a task") { found ->
        active(found.state, task)
        val sha256 = found.state.previous[task] ?: throw PatchException(
            "task '$task' has no previous patch; a revert goes one step back and never further; install " +
                "a newer patch instead",
        )
        val data = try {
            place.readPatch(sha256)
        } catch (error: NoSuchFileException) {
            throw gone(task, sha256)
        }
        val checked = checkTask(data, task, found.state)
        hooks.selfTest(checked, hooks.decode(checked))
        place.commit(found.state.reverted(task), found.state)
        installed(checked, found, changed = true)
    }

    /** Whether the folder is a store; where it is none, reading finds nothing active. */
    public val isThere: Boolean get() = place.disk("look for a store") { place.isStore() }

    /** SHA-256 of each task's active patch, from STATE alone: cheap enough to ask often. */
    public fun active(): Map<String, String> = place.disk("find the active patches") { findAloud().state.active }

    /**
     * The active patch of [task]. The file is read once: the bytes checked are those used.
     *
     * @throws UnknownTaskException it has no active patch.
     * @throws IntegrityException the file is gone, or is not what its name says.
     * @throws PatchRefusedException it fails a check, for instance since its key was revoked.
     */
    public fun read(task: String): StoredPatch {
        val (data, state) = place.disk("read a patch") { readActive(task) }
        val checked = checkTask(data, task, state)
        return StoredPatch(data, checked, hooks.decode(checked))
    }

    /** Every patch file there, and those that should be; by task, then sequence. */
    public fun list(): List<StoreEntry> {
        demandStore("list the patches")
        val entries = place.disk("list the patches") { entries() }
        return entries.sortedWith(compareBy<StoreEntry> { it.task ?: "~" }.thenBy { it.sequence ?: 0L })
    }

    /**
     * Remove what a crash left and every patch that is neither active nor previous. Where STATE was
     * lost or damaged, patches stay.
     *
     * @return the names that were removed, sorted.
     */
    public fun cleanUp(): List<String> = writing("clean up") { found ->
        val patches = if (found.recovery == null) place.patches() - found.state.kept else emptySet()
        place.remove((place.temporaries() + patches.map(::patchName)).sorted())
    }

    /** Write STATE again where it is missing or damaged, as every write does first; what came of it. */
    public fun recover(): Recovery? = writing("recover", makes = true) { it.recovery }

    /** What a patch must meet now: the policy, less the keys that the store knows as revoked. */
    public fun effectivePolicy(): Policy =
        place.disk("read the list of trusted keys") { policyOf(findState(place).state) }

    /**
     * The lock, and the state; STATE and its copy are whole before [work] begins. What is visible
     * may come from a process that was killed before it synced the folder: that is done first, so
     * that nothing is built on a name that a power loss can take back.
     */
    private fun <T> writing(action: String, makes: Boolean = false, work: (FoundState) -> T): T {
        if (!makes) demandStore(action)
        return place.disk(action) { place.locked { work(prepare()) } }
    }

    private fun prepare(): FoundState {
        place.sync()
        val found = findAloud()
        val state = found.state
        val keys = policyOf(state).trusted
        if (found.isFresh) place.syncParent()
        val kept = if (found.isLost) keepFloors(found, place) { check(it, state) } else found
        val new = kept.with(kept.state.copy(trusted = keys))
        val isWhole = found.recovery == null && !found.isFresh
        if (new.state != state || !isWhole || !place.hasCopyOf(state)) {
            place.commit(new.state, if (isWhole) state else null)
        }
        return new
    }

    private fun demandStore(action: String) {
        if (!place.disk(action) { place.isStore() }) {
            throw PatchException(
                "cannot $action in $folder: no patch store is there; installing a patch makes one; " +
                    "correct the path",
            )
        }
    }

    private fun findAloud(): FoundState = findState(place).also { found ->
        found.recovery?.let { LOGGER.warning("STATE of store $folder is lost or damaged: $it") }
    }

    private fun policyOf(state: StoreState): Policy = policy.copy(trusted = joinLists(state.trusted, policy.trusted))

    /** Checks 1 to 5; what is asked of sequence and expiry depends on the operation. */
    private fun check(data: ByteArray, state: StoreState): CheckedPatch =
        hooks.check(data, policyOf(state).copy(floor = 0, now = null))

    private fun checkTask(data: ByteArray, task: String, state: StoreState): CheckedPatch {
        val checked = check(data, state)
        if (checked.header.task != task) {
            throw IntegrityException(
                "STATE names patch ${checked.sha256} for task '$task'; it is one of task " +
                    "'${checked.header.task}'; install the patch of '$task' again",
            )
        }
        return checked
    }

    private fun demandSequence(state: StoreState, checked: CheckedPatch): Unit =
        checkSequence(state, policyOf(state), shipped[checked.header.task], checked)

    /** Checks 7 to 9, then the file, then STATE. */
    private fun admit(found: FoundState, data: ByteArray, checked: CheckedPatch, activate: Boolean): Installed {
        hooks.selfTest(checked, hooks.decode(checked))
        val before = if (activate) findBack(found.state, checked) else null
        val state = if (activate) {
            found.state.activated(checked.header.task, floorOf(checked), before?.sha256)
        } else {
            found.state
        }
        if (checked.sha256 !in found.state.named || !place.isWhole(checked.sha256)) {
            place.putPatch(checked.sha256, data)
        }
        if (state != found.state) place.commit(state, found.state)
        val lost = before?.header?.resolutions.orEmpty() - checked.header.resolutions.toSet()
        return installed(checked, found, changed = true).copy(lostResolutions = lost.sorted())
    }

    /** What a revert is to go back to once [checked] is active; what ships is put into the folder. */
    private fun findBack(state: StoreState, checked: CheckedPatch): CheckedPatch? {
        val task = checked.header.task
        for (sha256 in listOf(state.active[task], state.previous[task])) {
            if (sha256 != null && sha256 != checked.sha256) usable(sha256, task, state)?.let { return it }
        }
        return putShipped(state, checked)
    }

    /** The patch with this name after checks 1 to 5; null where it may not be used. */
    private fun usable(sha256: String, task: String, state: StoreState): CheckedPatch? = try {
        checkTask(place.readPatch(sha256), task, state)
    } catch (_: NoSuchFileException) {
        null
    } catch (_: IntegrityException) {
        null
    } catch (_: PatchRefusedException) {
        null
    }

    private fun putShipped(state: StoreState, checked: CheckedPatch): CheckedPatch? {
        val task = checked.header.task
        val ours = shipped[task] ?: return null
        try {
            val data = ours.read()
            val found = checkTask(data, task, state)
            if (found.sha256 == checked.sha256) return null
            place.putPatch(found.sha256, data)
            return found
        } catch (error: PatchkitException) {
            LOGGER.warning("task $task: a revert cannot go back to what ships: ${error.message}")
            return null
        }
    }

    /** A patch that is replaced and cleaned up while it is looked for is looked for again. */
    private fun readActive(task: String): Pair<ByteArray, StoreState> {
        var state = findState(place).state
        while (true) {
            val sha256 = active(state, task)
            try {
                return place.readPatch(sha256) to state
            } catch (error: NoSuchFileException) {
                state = findState(place).state
                if (active(state, task) == sha256) throw gone(task, sha256)
            }
        }
    }

    private fun active(state: StoreState, task: String): String {
        if (!TASK_NAME.matches(task)) {
            throw ConfigException("task '${task.take(80)}'; it must be 1 to 64 of a-z, 0-9, underscore and hyphen")
        }
        return state.active[task] ?: throw UnknownTaskException(
            "no active patch for task '$task' in store $folder; it has " +
                "${state.active.keys.sorted().joinToString().ifEmpty { "none" }}; choose one of them or " +
                "install one",
        )
    }

    private fun gone(task: String, sha256: String) = IntegrityException(
        "patch file ${patchName(sha256)} of task '$task' is gone from store $folder; STATE names it; " +
            "install the patch again",
    )

    /** A file that is removed while it is looked for is no fault, unless STATE still names it. */
    private fun entries(): List<StoreEntry> {
        while (true) {
            val state = findAloud().state
            val entries = (state.named + place.patches()).map { entry(it, state) }
            val missing = entries.filter { it.problem == GONE }.map { it.sha256 }.toSet()
            if (missing.isEmpty() || findState(place).state == state) {
                return entries.filter { it.sha256 !in missing - state.named }
            }
        }
    }

    private fun entry(sha256: String, state: StoreState): StoreEntry {
        val (status, task) = useOf(sha256, state)
        var fileBytes: Int? = null
        val problem = try {
            val data = place.readPatch(sha256)
            fileBytes = data.size
            val header = (if (task == null) check(data, state) else checkTask(data, task, state)).header
            return StoreEntry(sha256, status, header.task, header.sequence, header.expires, fileBytes, null)
        } catch (_: NoSuchFileException) {
            GONE
        } catch (error: IntegrityException) {
            error.message
        } catch (error: PatchRefusedException) {
            error.message
        }
        return StoreEntry(sha256, status, task, null, null, fileBytes, problem)
    }

    private fun useOf(sha256: String, state: StoreState): Pair<PatchStatus, String?> {
        for ((task, active) in state.active) {
            if (sha256 == active) return PatchStatus.ACTIVE to task
            if (sha256 == state.previous[task]) return PatchStatus.PREVIOUS to task
        }
        return PatchStatus.INSTALLED to null
    }

    private fun installed(checked: CheckedPatch, found: FoundState, changed: Boolean) =
        Installed(checked.sha256, checked.header.task, checked.header.sequence, changed, found.recovery)
}
