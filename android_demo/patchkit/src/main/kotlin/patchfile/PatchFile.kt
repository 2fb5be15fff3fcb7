package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.cascade.Cascade
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.PatchValues

/**
 * One task over one base, decoded: every value may stand in its slot.
 *
 * @property task its name.
 * @property classes labels, in the order of the head's rows.
 * @property baseSha256 of the base's coding table.
 * @property values by resolution in pixels; the arrays cover the whole head capacity.
 * @property metrics what the notes hold, for people: maps, lists, text, numbers.
 * @property golden inputs and scores of the self-test; null where there is none.
 * @property cascade over its resolutions; null where none was fitted.
 */
public class PatchFile internal constructor(
    public val task: String,
    public val classes: List<String>,
    public val baseSha256: String,
    public val values: Map<Int, PatchValues>,
    public val metrics: Map<String, Any?>,
    public val golden: Golden?,
    public val cascade: Cascade?,
)

/** A file that passed checks 1 to 8, and what it holds. */
public class OpenedPatch internal constructor(public val checked: CheckedPatch, public val patch: PatchFile)

/**
 * Checks 1 to 8: the patch in [data], every value inside its rule.
 *
 * @param policy its base is that of [table], whatever it says.
 * @param resolution decode and check the values of this one alone, which is faster; by default all.
 * @throws PatchRefusedException with the code of the first check that fails.
 * @throws UnknownResolutionException [resolution] is not in it.
 */
public fun openPatch(data: ByteArray, policy: Policy, table: CodingTable, resolution: Int? = null): OpenedPatch {
    val bound = policy.copy(baseSha256 = table.sha256, baseBytes = table.lengthBytes.toLong())
    val checked = checkPatchFile(data, bound)
    return OpenedPatch(checked, decodePayload(checked, table, resolution))
}

/**
 * Checks 7 and 8 of a file that passed the others, for a store.
 *
 * @throws PatchRefusedException codes "sites", "inflate", "parts", "work", "values".
 */
public fun decodeChecked(checked: CheckedPatch, table: CodingTable): PatchFile = decodePayload(checked, table, null)

/**
 * Check 9, first part, over the base file of one format: what comes of the patch is what its maker
 * signed.
 *
 * @throws PatchRefusedException code "result": another model, or a resolution that the file lacks.
 */
public fun checkResults(opened: OpenedPatch, base: BaseFile) {
    for ((px, values) in opened.patch.values) checkResult(opened.checked.header, base, px, values)
}

/**
 * The same of one resolution in pixels.
 *
 * @throws PatchRefusedException code "result".
 */
internal fun checkResult(header: PatchHeader, base: BaseFile, px: Int, values: PatchValues) {
    val format = base.table.runtime
    val found = try {
        base.resultSha256(values, px)
    } catch (error: UnknownResolutionException) {
        throw noModel(format, px, error)
    } catch (error: SlotTableException) {
        throw noModel(format, px, error)
    }
    val expected = header.results[format]?.get(px)
    if (expected != found) {
        throw refuseResult("SHA-256 of $format at $px px", expected ?: "among the results of the header", found)
    }
}

private fun noModel(format: String, px: Int, error: Exception) =
    refuseResult("$format at $px px", "a model that this base file can become", "none (${error.message})", error)

private fun refuseResult(field: String, expected: String, got: String, cause: Exception? = null) =
    PatchRefusedException(
        RefusalCode.RESULT, field, expected, got,
        "use the base files that the patch was packed with", cause,
    )
