package patchdeploy.patchkit.engine

import java.util.concurrent.ConcurrentHashMap
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.cascade.Cascade
import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.decodePayload
import patchdeploy.patchkit.patchfile.checkResult
import patchdeploy.patchkit.slots.PatchValues
import patchdeploy.patchkit.store.StoredPatch

/**
 * One task as one patch file makes it.
 *
 * The file stays in memory as it was checked, compressed. Slot values are decoded where a model is
 * loaded, and nothing but the model keeps them.
 *
 * @property labels in the order of the scores.
 * @property cascade over its resolutions; null where it carries none.
 * @property fromStore false: it came with the app.
 */
public class TaskVersion private constructor(
    private val bundle: Bundle,
    internal val checked: CheckedPatch,
    public val labels: List<String>,
    public val cascade: Cascade?,
    public val fromStore: Boolean,
) {
    /** Its name. */
    public val task: String get() = checked.header.task

    /** Of the patch file. */
    public val sha256: String get() = checked.sha256

    /** Greater for a newer patch of the task. */
    public val sequence: Long get() = checked.header.sequence

    /** Sides in pixels, ascending. */
    public val resolutions: List<Int> = checked.header.resolutions.sorted()

    /** Indices of the keys that signed it; empty for a development bundle. */
    public val signedBy: List<Int> get() = checked.signedBy

    /** Unix seconds from which on it is not installed; 0: never. */
    public val expires: Long get() = checked.header.expires

    /** Length of the patch file. */
    public val patchBytes: Int get() = checked.fileBytes

    private val proved: MutableSet<Int> = ConcurrentHashMap.newKeySet()

    /**
     * Slot values at [resolution], which make of the bundle's base file what the patch's maker signed.
     *
     * @throws patchdeploy.patchkit.PatchRefusedException codes "sites" to "values"; "result": another
     *   model.
     */
    internal fun read(resolution: Int): PatchValues {
        val values = decodePayload(checked, bundle.table, resolution).values.getValue(resolution)
        if (resolution !in proved) prove(resolution, values)
        return values
    }

    private fun prove(resolution: Int, values: PatchValues) {
        checkResult(checked.header, bundle.base, resolution, values)
        proved.add(resolution)
    }

    internal companion object {
        /**
         * The bundle's own patch, which must be what the manifest says of it.
         *
         * @throws patchdeploy.patchkit.PatchRefusedException it cannot be decoded.
         * @throws IntegrityException the manifest says something else of it.
         */
        fun ofBundle(bundle: Bundle, checked: CheckedPatch): TaskVersion {
            val entry = bundle.task(checked.header.task)
            val sides = checked.header.resolutions.sorted()
            val patch = decodePayload(checked, bundle.table, sides.first())
            if (patch.classes != entry.labels || sides != entry.resolutions) {
                throw IntegrityException(
                    "${entry.file} holds task '${patch.task}' with ${patch.classes.size} classes at " +
                        "${sides.joinToString()} px; the manifest records ${entry.labels.size} at " +
                        "${entry.resolutions.joinToString()} px, or other labels; export the bundle again",
                )
            }
            return TaskVersion(bundle, checked, patch.classes, patch.cascade, fromStore = false)
        }

        /**
         * A store's patch, proved at every resolution: an app's update can bring another base file
         * than the store was filled for.
         *
         * @throws patchdeploy.patchkit.PatchRefusedException code "result".
         */
        fun ofStore(bundle: Bundle, stored: StoredPatch): TaskVersion {
            val patch = stored.patch
            val version = TaskVersion(bundle, stored.checked, patch.classes, patch.cascade, fromStore = true)
            for ((px, values) in patch.values) version.prove(px, values)
            return version
        }
    }
}

/** The side of [held] that is nearest to [px]; the larger of two. */
internal fun nearestResolution(px: Int, held: List<Int>): Int =
    held.minWith(compareBy<Int> { Math.abs(it - px) }.thenByDescending { it })
