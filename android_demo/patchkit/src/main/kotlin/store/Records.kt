package patchdeploy.patchkit.store

import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.PatchFile
import patchdeploy.patchkit.patchfile.Policy

/**
 * The checks of docs/patch-format.md that come before the commit. Each throws a typed exception.
 *
 * @property check checks 1 to 6 of a file's bytes.
 * @property decode checks 7 and 8: the values.
 * @property selfTest check 9: result hash, runtime, golden inputs; before anything is written.
 */
public class Hooks(
    public val check: (ByteArray, Policy) -> CheckedPatch,
    public val decode: (CheckedPatch) -> PatchFile,
    public val selfTest: (CheckedPatch, PatchFile) -> Unit,
)

/**
 * The patch of a task that comes with the app, outside the store.
 *
 * @property sequence a floor, unless its signers were revoked.
 * @property signers indices of the keys that signed it; none: it is of a development bundle.
 * @property read the bytes of its file, checked as any other's before they are used.
 */
public class Shipped(public val sequence: Long, public val signers: List<Int>, public val read: () -> ByteArray)

/**
 * That STATE was missing or damaged, and what came of it.
 *
 * @property reason what was wrong with STATE.
 * @property active SHA-256 of the patch that each task runs now, as the copy says; empty where that
 *   was lost, too.
 * @property refused for each patch file that gives no floor in the place of the lost ones, why.
 */
public data class Recovery(val reason: String, val active: Map<String, String>, val refused: Map<String, String>)

/**
 * What an install, an activation or a revert came to.
 *
 * @property changed false where everything was so already.
 * @property recovery set where STATE had been lost or damaged.
 * @property lostResolutions sides in pixels that the patch before it has and this one lacks.
 */
public data class Installed(
    val sha256: String,
    val task: String,
    val sequence: Long,
    val changed: Boolean,
    val recovery: Recovery?,
    val lostResolutions: List<Int> = emptyList(),
)

/** How a patch file of a store is used. */
public enum class PatchStatus { ACTIVE, PREVIOUS, INSTALLED }

/**
 * One patch file of a store.
 *
 * @property task of a file in use: what STATE says; else from its header.
 * @property sequence, expires from its header; null where it has a problem.
 * @property fileBytes its length; null where it cannot be read.
 * @property problem why it cannot be used.
 */
public data class StoreEntry(
    val sha256: String,
    val status: PatchStatus,
    val task: String?,
    val sequence: Long?,
    val expires: Long?,
    val fileBytes: Int?,
    val problem: String?,
)

/** An active patch: [patch] is decoded from [checked], which was checked in [data], read once. */
public class StoredPatch(public val data: ByteArray, public val checked: CheckedPatch, public val patch: PatchFile)
