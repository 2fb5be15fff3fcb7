package patchdeploy.patchkit.store

import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.PatchFile
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.sha256Hex

/**
 * The operations of a store that the fault tests interrupt, each with what comes before it.
 *
 * @property setUp makes the store that [act] finds.
 * @property act what a fault interrupts.
 * @property shipped sequence numbers of the patches that come with the app.
 * @property isDamagedBefore a patch in use is not whole before it.
 */
internal class Operation(
    val setUp: (Store, SimulatedDisk) -> Unit,
    val act: (Store) -> Unit,
    val shipped: Map<String, Int> = emptyMap(),
    val isDamagedBefore: Boolean = false,
)

private fun installs(vararg sequences: Int): (Store, SimulatedDisk) -> Unit = { store, _ ->
    for (sequence in sequences) store.install(patch(sequence))
}

/** Patches are signed once. */
private val patches = HashMap<Pair<Int, String>, ByteArray>()

internal fun patch(sequence: Int, task: String = "first"): ByteArray =
    patches.getOrPut(sequence to task) { PatchForge.patch(sequence, task) }

internal fun hashOf(sequence: Int, task: String = "first"): String = sha256Hex(patch(sequence, task))

private fun then(first: (Store, SimulatedDisk) -> Unit, second: (Store, SimulatedDisk) -> Unit): (Store, SimulatedDisk) -> Unit =
    { store, disk -> first(store, disk); second(store, disk) }

private fun spoiled(vararg names: String): (Store, SimulatedDisk) -> Unit = { _, disk ->
    for (name in names) disk.put(name, disk.bytes(name).also { it[it.size / 2] = '~'.code.toByte() })
}

private fun lost(vararg names: String): (Store, SimulatedDisk) -> Unit = { _, disk -> names.forEach(disk::lose) }

private fun littered(store: Store, disk: SimulatedDisk) {
    installs(1, 2, 3)(store, disk)
    store.install(patch(4), activate = false)
    disk.put("0123456789abcdef.tmp", "half".toByteArray())
    disk.put("fedcba9876543210.tmp", ByteArray(0))
}

private fun twoTasks(store: Store, disk: SimulatedDisk) {
    installs(1, 2)(store, disk)
    store.install(patch(1, "second"))
}

internal val OPERATIONS: Map<String, Operation> = mapOf(
    "a first install" to Operation({ _, _ -> }, { it.install(patch(1)) }),
    "a first install beside what ships" to Operation({ _, _ -> }, { it.install(patch(2)) }, mapOf("first" to 1)),
    "an install" to Operation(installs(1), { it.install(patch(2)) }),
    "an install over a previous patch" to Operation(installs(1, 2), { it.install(patch(3)) }),
    "an install without activating" to Operation(installs(1), { it.install(patch(2), activate = false) }),
    "an install of another task" to Operation(installs(1, 2), { it.install(patch(1, "second")) }),
    "the same install again" to Operation(installs(1, 2), { it.install(patch(2)) }),
    "an install after a revert" to Operation(
        then(installs(1, 2)) { store, _ -> store.revert("first") }, { it.install(patch(2)) },
    ),
    "an install over a damaged STATE" to Operation(then(::twoTasks, spoiled("STATE")), { it.install(patch(3)) }),
    "an install over a damaged copy" to Operation(then(::twoTasks, spoiled("STATE.copy")), { it.install(patch(3)) }),
    "an install where both records are lost" to Operation(
        then(::twoTasks, lost("STATE", "STATE.copy")), { it.install(patch(3)) },
    ),
    "an install that puts a damaged patch back" to Operation(
        then(installs(1, 2)) { _, disk -> spoiled(hashOf(2) + ".pdp")(Store(FOLDER, PatchForge.policy, HOOKS, disk), disk) },
        { it.install(patch(2)) }, isDamagedBefore = true,
    ),
    "an activation" to Operation(
        then(installs(1)) { store, _ -> store.install(patch(2), activate = false) }, { it.activate(hashOf(2)) },
    ),
    "an activation over a lost STATE" to Operation(
        then(::littered, lost("STATE")), { it.activate(hashOf(4)) },
    ),
    "a revert" to Operation(::twoTasks, { it.revert("first") }),
    "a revert to what ships" to Operation(
        { store, _ -> store.install(patch(2)) }, { it.revert("first") }, mapOf("first" to 1),
    ),
    "a revert over a damaged STATE" to Operation(then(::twoTasks, spoiled("STATE")), { it.revert("first") }),
    "a clean-up" to Operation(::littered, { it.cleanUp() }),
    "a clean-up where STATE is damaged" to Operation(then(::littered, spoiled("STATE")), { it.cleanUp() }),
    "a recovery" to Operation(then(::twoTasks, spoiled("STATE")), { it.recover() }),
    "a recovery of the copy" to Operation(then(::twoTasks, lost("STATE.copy")), { it.recover() }),
    "a recovery without a record" to Operation(then(::twoTasks, spoiled("STATE", "STATE.copy")), { it.recover() }),
)

/** The checks, with each file's signature looked at once: what a test does a thousand times. */
internal val HOOKS: Hooks = run {
    val plain = PatchForge.hooks()
    val checked = HashMap<Pair<String, Policy>, CheckedPatch>()
    val decoded = HashMap<String, PatchFile>()
    Hooks(
        { data, policy -> checked.getOrPut(sha256Hex(data) to policy) { plain.check(data, policy) } },
        { one -> decoded.getOrPut(one.sha256) { plain.decode(one) } },
        plain.selfTest,
    )
}

internal fun storeOn(files: Files, shipped: Map<String, Int> = emptyMap()): Store {
    val ours = shipped.mapValues { (task, sequence) -> Shipped(sequence.toLong(), listOf(0)) { patch(sequence, task) } }
    return Store(FOLDER, PatchForge.policy, HOOKS, files, ours, clock = { 100 })
}
