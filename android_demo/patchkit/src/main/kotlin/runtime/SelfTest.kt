package patchdeploy.patchkit.runtime

import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.patchfile.Golden
import patchdeploy.patchkit.patchfile.PatchFile
import patchdeploy.patchkit.patchfile.enlarge
import patchdeploy.patchkit.patchfile.scoreCode
import patchdeploy.patchkit.slots.PatchValues

/**
 * The self-test of a patch on the runtime at hand: check 9 of docs/patch-format.md, second part.
 * Every resolution is loaded; one image at a time, so that the memory is that of one.
 *
 * @return the largest difference in LSB of the scores; null where the patch carries no self-test.
 * @throws PatchRefusedException codes "load" and "self_test".
 */
public fun runSelfTest(backend: Backend, patch: PatchFile, table: CodingTable): Int? {
    val worst = patch.values.map { (px, values) ->
        try {
            backend.load(values, px).use { resident -> testResident(backend, resident, patch, px, table) }
        } catch (error: RuntimeBackendException) {
            throw refused(backend, patch, px, error)
        } catch (error: OutOfMemoryError) {
            throw refused(backend, patch, px, error)
        }
    }
    return if (patch.golden == null) null else worst.max()
}

private fun testResident(backend: Backend, resident: Resident, patch: PatchFile, px: Int, table: CodingTable): Int {
    val golden: Golden = patch.golden ?: return 0
    val values = patch.values.getValue(px)
    return (0 until golden.images).maxOf { image ->
        val scores = resident.run(enlarge(golden.thumbnail(image), px))
        val codes = scoreCodes(scores, patch.classes.size, values, table)
        golden.check(backend.format, px, image, codes, "${backend.name} on task '${patch.task}'")
    }
}

/** int8 [classes]: the integers that the first [classes] of [scores] stand for. */
public fun scoreCodes(scores: FloatArray, classes: Int, values: PatchValues, table: CodingTable): ByteArray {
    val scale = values.activationScale[table.outputIndex]
    val zeroPoint = values.activationZeroPoint[table.outputIndex]
    return ByteArray(classes) { scoreCode(scores[it], scale, zeroPoint) }
}

private fun refused(backend: Backend, patch: PatchFile, px: Int, cause: Throwable) = PatchRefusedException(
    RefusalCode.LOAD,
    "model of task '${patch.task}' at $px px",
    "one that ${backend.name} ${backend.version} runs",
    "refused (${cause.message ?: "out of memory"})",
    "keep the patch that is active and pack this task again",
    cause,
)
