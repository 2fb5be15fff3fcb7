package patchdeploy.patchkit.engine

import java.nio.file.Path
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.patchfile.OpenedPatch
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.patchfile.checkPatchFile
import patchdeploy.patchkit.patchfile.checkResults
import patchdeploy.patchkit.patchfile.decodeChecked
import patchdeploy.patchkit.patchfile.joinLists
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.runtime.runSelfTest
import patchdeploy.patchkit.store.DiskFiles
import patchdeploy.patchkit.store.Files
import patchdeploy.patchkit.store.Hooks
import patchdeploy.patchkit.store.Shipped
import patchdeploy.patchkit.store.Store

/**
 * The store in [folder] for patches over the base of [bundle]; nothing is written yet.
 *
 * A patch is installed once its model is the one that its maker signed, and its self-test passed on
 * [backend].
 *
 * @param backend over the bundle's base file.
 * @param trusted keys that must sign; null: those that the bundle pins. What either list has revoked
 *   is revoked.
 * @param allowUnsigned take patches that nobody signed, for development; each is logged.
 * @param files the disk.
 * @throws ConfigException [backend] runs another format than the bundle was opened for.
 */
public fun openStore(
    folder: Path,
    bundle: Bundle,
    backend: Backend,
    trusted: TrustedKeys? = null,
    allowUnsigned: Boolean = false,
    files: Files = DiskFiles(),
): Store {
    checkFormat(bundle, backend)
    val policy = bundle.policy().copy(trusted = newest(trusted, bundle.manifest.trusted), allowUnsigned = allowUnsigned)
    val hooks = Hooks(::checkPatchFile, { decodeChecked(it, bundle.table) }) { checked, patch ->
        checkResults(OpenedPatch(checked, patch), bundle.base)
        runSelfTest(backend, patch, bundle.table)
    }
    val shipped = bundle.tasks.associateWith { task ->
        val checked = checkPatchFile(bundle.patchFile(task), bundle.policy(task))
        Shipped(checked.header.sequence, checked.signedBy) { bundle.patchFile(task) }
    }
    return Store(folder, policy, hooks, files, shipped)
}

/** @throws ConfigException [backend] runs another format than [bundle] was opened for. */
internal fun checkFormat(bundle: Bundle, backend: Backend) {
    if (backend.format != bundle.format) {
        throw ConfigException(
            "${backend.name} runs ${backend.format} files; the bundle was opened for ${bundle.format}; open it " +
                "for ${backend.format}, or choose another runtime",
        )
    }
}

/** [given], less the keys that [pinned], if it is a list of the same keys, knows as revoked. */
private fun newest(given: TrustedKeys?, pinned: TrustedKeys?): TrustedKeys? = try {
    joinLists(given, pinned)
} catch (_: PatchKeyException) {
    given
}
