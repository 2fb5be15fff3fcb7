package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.cascade.Cascade
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.PatchValues
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.slots.overlay

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
 * @param runtime the format's name, as the header's results have it.
 * @throws PatchRefusedException code "result": another model, or a resolution that the file lacks.
 * @throws patchdeploy.patchkit.IntegrityException the base file is not the one of its slot table.
 */
public fun checkResults(opened: OpenedPatch, runtime: String, baseFile: ByteArray, table: SlotTable) {
    val expected = opened.checked.header.results[runtime].orEmpty()
    for ((px, values) in opened.patch.values) {
        val found = try {
            sha256Hex(overlay(baseFile, table, px, values))
        } catch (error: UnknownResolutionException) {
            throw noModel(runtime, px, error)
        } catch (error: SlotTableException) {
            throw noModel(runtime, px, error)
        }
        if (expected[px] != found) {
            val rule = expected[px] ?: "among the results of the header"
            throw refuseResult("SHA-256 of $runtime at $px px", rule, found)
        }
    }
}

private fun noModel(runtime: String, px: Int, error: Exception) =
    refuseResult("$runtime at $px px", "a model that this base file can become", "none (${error.message})", error)

private fun refuseResult(field: String, expected: String, got: String, cause: Exception? = null) =
    PatchRefusedException(
        RefusalCode.RESULT, field, expected, got,
        "use the base files that the patch was packed with", cause,
    )
