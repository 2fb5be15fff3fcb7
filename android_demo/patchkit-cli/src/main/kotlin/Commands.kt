package patchdeploy.cli

import java.nio.file.Files
import java.nio.file.Path
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.cascade.Cascade
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.patchfile.MAX_FILE_BYTES
import patchdeploy.patchkit.patchfile.OpenedPatch
import patchdeploy.patchkit.patchfile.PatchHeader
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.patchfile.inspectPatchFile
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.slots.overlay

/** The commands that read one patch file; each gives a document of plain JSON values. */

internal const val UNSIGNED = "--unsigned"

internal fun read(path: String): ByteArray = Files.readAllBytes(Path.of(path))

/** No more of a patch file than shows that it is too long. */
internal fun readPatch(path: String): ByteArray =
    Files.newInputStream(Path.of(path)).use { it.readNBytes(MAX_FILE_BYTES + 1) }

/** [trust]: the path of a list of trusted keys, [UNSIGNED], or null: nobody is trusted. */
internal fun policy(trust: String?): Policy = Policy(
    trusted = if (trust == null || trust == UNSIGNED) null else TrustedKeys.fromBytes(read(trust)),
    allowUnsigned = trust == UNSIGNED,
    now = System.currentTimeMillis() / 1000,
)

internal fun check(paths: List<String>, trust: String?): Map<String, Any?> {
    val table = CodingTable.fromBytes(read(paths[1]))
    return described(openPatch(readPatch(paths[0]), policy(trust), table))
}

internal fun inspect(path: String): Map<String, Any?> {
    val found = inspectPatchFile(readPatch(path))
    return mapOf(
        "sha256" to found.sha256,
        "bytes" to found.lengthBytes,
        "header" to headerOf(found.header),
        "keys" to found.keyIndices,
        "parts" to found.partBytes,
    )
}

/** Writes the base with the patch laid over it, once its hash is the signed one. */
internal fun overlayFile(paths: List<String>, trust: String?): Map<String, Any?> {
    val (base, slots, coding, patch, side, out) = paths
    val table = CodingTable.fromBytes(read(coding))
    val slotTable = SlotTable.fromJson(read(slots))
    val px = side.toIntOrNull() ?: throw UnknownResolutionException("resolution '$side'; it must be a side in pixels")
    val opened = openPatch(readPatch(patch), policy(trust), table, px)
    val model = overlay(read(base), slotTable, px, opened.patch.values.getValue(px))
    val found = sha256Hex(model)
    val signed = opened.checked.header.results[slotTable.runtime]?.get(px)
    if (found == signed) Files.write(Path.of(out), model)
    val code = if (found == signed) "ok" else "result"
    return mapOf("code" to code, "sha256" to found, "signed" to signed)
}

private operator fun <T> List<T>.component6(): T = get(5)

internal fun described(opened: OpenedPatch): Map<String, Any?> = mapOf(
    "code" to "ok",
    "sha256" to opened.checked.sha256,
    "signed_by" to opened.checked.signedBy,
    "task" to opened.patch.task,
    "classes" to opened.patch.classes,
    "resolutions" to opened.checked.header.resolutions,
    "sequence" to opened.checked.header.sequence,
    "self_test_images" to (opened.patch.golden?.images ?: 0),
    "cascade" to opened.patch.cascade?.let(::cascadeOf),
)

internal fun cascadeOf(cascade: Cascade): Map<String, Any?> = mapOf(
    "score" to cascade.rule.score.text,
    "stages" to cascade.rule.stages.map { listOf(it.resolution, it.threshold, it.ratio) },
    "reference" to cascade.certificate.reference,
    "tolerance_millionths" to cascade.certificate.toleranceMillionths,
    "confidence_millionths" to cascade.certificate.confidenceMillionths,
    "images" to cascade.certificate.images,
    "certified" to cascade.certificate.certified,
)

private fun headerOf(header: PatchHeader): Map<String, Any?> = mapOf(
    "base" to mapOf("bytes" to header.baseBytes, "sha256" to header.baseSha256),
    "classes" to header.classes,
    "encoding" to header.encoding,
    "engine" to header.engine,
    "expires" to header.expires,
    "format" to 1,
    "payload" to mapOf("bytes" to header.payloadBytes, "sha256" to header.payloadSha256),
    "resolutions" to header.resolutions,
    "results" to header.results,
    "sequence" to header.sequence,
    "sites" to header.sites.map { listOf(it.first, it.count) },
    "task" to header.task,
)

internal fun refusal(error: PatchRefusedException): Map<String, Any?> = mapOf(
    "code" to error.code.text,
    "field" to error.field,
    "expected" to error.expected,
    "got" to error.got,
    "remedy" to error.remedy,
)
