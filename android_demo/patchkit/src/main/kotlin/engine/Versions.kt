package patchdeploy.patchkit.engine

import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.patchfile.checkPatchFile
import patchdeploy.patchkit.patchfile.stillCount
import patchdeploy.patchkit.store.Store

/**
 * Which patch of each task runs: the bundle's, or a newer one of a store.
 *
 * In: a bundle, perhaps a store. Out: [Versions], a value that never changes; another look gives
 * another.
 *
 * @property running by task.
 * @property problems by task, why a patch of it cannot be used.
 */
internal class Versions(val running: Map<String, TaskVersion>, val problems: Map<String, PatchkitException>)

internal class VersionFinder(private val bundle: Bundle, private val store: Store?) {
    private var keys: TrustedKeys? = null
    private var shipped: Versions? = null

    /**
     * What each task is to run. The task of a store's patch that cannot be used stays as [current]
     * has it, unless a key that signed that was revoked.
     *
     * @throws patchdeploy.patchkit.StorageException the store's folder cannot be read.
     * @throws PatchkitException the store's list of keys does not go with the app's.
     */
    fun find(current: Versions): Versions {
        if (store == null) return shipped(bundle.policy())
        val policy = store.effectivePolicy()
        val own = shipped(bundle.policy().copy(trusted = policy.trusted, allowUnsigned = policy.allowUnsigned))
        val running = own.running.toMutableMap()
        val problems = own.problems.toMutableMap()
        for ((task, sha256) in store.active()) {
            val held = current.running[task]?.takeIf { it.signedBy.isEmpty() || stillCount(it.signedBy, policy) }
            if (held?.sha256 == sha256) {
                running[task] = held
                problems.remove(task)
                continue
            }
            try {
                val found = TaskVersion.ofStore(bundle, store.read(task))
                if (found.sequence >= (running[task]?.sequence ?: 0)) running[task] = found
                problems.remove(task)
            } catch (error: PatchkitException) {
                problems[task] = error
                if (held != null) running[task] = held
            }
        }
        return Versions(running, problems)
    }

    /** The bundle's own patches, as far as [policy] lets them run. */
    fun shipped(policy: Policy): Versions {
        shipped?.let { if (policy.trusted == keys) return it }
        val running = HashMap<String, TaskVersion>()
        val problems = HashMap<String, PatchkitException>()
        for (task in bundle.tasks) {
            try {
                val checked = checkPatchFile(bundle.patchFile(task), policy.copy(task = task))
                running[task] = TaskVersion.ofBundle(bundle, checked)
            } catch (error: PatchRefusedException) {
                problems[task] = error
            }
        }
        keys = policy.trusted
        return Versions(running, problems).also { shipped = it }
    }
}
