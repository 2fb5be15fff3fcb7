package patchdeploy.cli

import java.nio.file.Path
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.checkPatchFile
import patchdeploy.patchkit.patchfile.inspectPatchFile
import patchdeploy.patchkit.patchfile.decodeChecked
import patchdeploy.patchkit.store.Hooks
import patchdeploy.patchkit.store.Installed
import patchdeploy.patchkit.store.Shipped
import patchdeploy.patchkit.store.Store

/** One operation on a store folder, for compare.py: the same folder is Python's in the next one. */
internal fun Document.useStore(data: ByteArray): Any? {
    val store = openStore()
    return when (val operation = text("do")) {
        "install" -> told(store.install(data, get("activate") as Boolean))
        "activate" -> told(store.activate(text("sha256")))
        "revert" -> told(store.revert(text("task")))
        "clean_up" -> store.cleanUp()
        "recover" -> store.recover()?.let { listOf(it.active, it.refused.keys.sorted()) }
        "active" -> store.active()
        "read" -> store.read(text("task")).let { listOf(it.checked.sha256, it.patch.classes) }
        "list" -> store.list().map {
            listOf(it.sha256, it.status.name.lowercase(), it.task, it.sequence, it.expires, it.fileBytes, it.problem != null)
        }
        else -> error("no operation '$operation'")
    }
}

private fun told(installed: Installed): List<Any?> = installed.run {
    listOf(sha256, task, sequence, changed, recovery != null, lostResolutions)
}

private fun Document.openStore(): Store {
    val table = tableAt(text("table"))
    val bound = policyOf(child("policy")).copy(baseSha256 = table.sha256, baseBytes = table.lengthBytes.toLong())
    val shipped = child("shipped").mapValues { (_, path) ->
        val file = read(path as String)
        val found = inspectPatchFile(file)
        Shipped(found.header.sequence, found.keyIndices.sorted()) { file }
    }
    val hooks = Hooks(::checkPatchFile, { decodeChecked(it, table) }, { checked, _ -> refuseFifths(checked) })
    return Store(Path.of(text("folder")), bound, hooks, shipped = shipped, clock = { getValue("now") as Long })
}

/** In the place of a runtime: what is refused shows that the self-test comes before the commit. */
private fun refuseFifths(checked: CheckedPatch) {
    if (checked.header.sequence % 5 == 0L) {
        throw PatchRefusedException(RefusalCode.SELF_TEST, "sequence", "no multiple of 5", "one", "none")
    }
}
