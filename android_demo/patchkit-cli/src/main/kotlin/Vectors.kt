package patchdeploy.cli

import java.nio.file.Path
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.patchfile.checkPatchFile
import patchdeploy.patchkit.patchfile.checkResults
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.SlotTable

/** The vectors of tests/patchfile: how many patchkit judges as they say, and which it does not. */
internal class Judged(val report: Map<String, Any?>, val exitCode: Int)

/** What a runtime alone can say; without one such a patch passes. */
private val OF_A_RUNTIME = setOf("load", "self_test")

internal fun judgeVectors(folder: String): Judged {
    val files = mapOf("container" to ::judgeContainer, "payload" to ::judgePayload, "base" to ::judgeBase)
    val report = files.mapValues { (name, judge) ->
        val file = if (name == "container") "vectors.json" else "${name}_vectors.json"
        val cases = judge(readDocument(read(Path.of(folder, file).toString())))
        mapOf("cases" to cases.size, "different" to cases.filterValues { !it }.keys.toList())
    }
    val different = report.values.sumOf { (it.getValue("different") as List<*>).size }
    return Judged(report, if (different == 0) 0 else 1)
}

/** "ok", or the code of the check that refuses. */
internal fun verdict(check: () -> Unit): String = try {
    check()
    "ok"
} catch (error: PatchRefusedException) {
    error.code.text
}

private fun judgeContainer(vectors: Document): Map<String, Boolean> =
    vectors.children("container").associate { case ->
        val file = case.base64("file")
        val data = file.copyOf(file.size + (case.long("zeros") ?: 0).toInt())
        val policy = policyOf(vectors.child("policy") + case.child("policy"))
        case.text("name") to (verdict { checkPatchFile(data, policy) } == case.text("code"))
    }

private fun judgePayload(vectors: Document): Map<String, Boolean> {
    val table = CodingTable.fromBytes(vectors.base64("coding_table"))
    val policy = policyOf(vectors.child("policy"))
    return vectors.children("cases").associate { case ->
        var values: Map<String, Any?>? = null
        val found = verdict {
            val patch = openPatch(case.base64("file"), policy, table).patch
            values = patch.values.entries.associate { (px, one) -> "$px" to hashes(one) }
        }
        case.text("name") to (found == case.text("code") && values == case["values"])
    }
}

private fun judgeBase(vectors: Document): Map<String, Boolean> {
    val table = CodingTable.fromBytes(vectors.base64("coding_table"))
    val policy = policyOf(vectors.child("policy"))
    return vectors.children("cases").flatMap { case ->
        case.child("codes").map { (runtime, code) ->
            val base = vectors.child("bases").child(case.text("base")).child(runtime)
            val slots = SlotTable.fromJson(toJson(base.getValue("slots")).toByteArray())
            val found = verdict {
                checkResults(openPatch(case.base64("file"), policy, table), BaseFile(base.base64("file"), slots))
            }
            "$runtime: ${case.text("name")}" to (found == if (code in OF_A_RUNTIME) "ok" else code)
        }
    }.toMap()
}
