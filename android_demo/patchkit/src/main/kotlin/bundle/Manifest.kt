package patchdeploy.patchkit.bundle

import patchdeploy.patchkit.coding.PatchLayout
import patchdeploy.patchkit.image.Preprocessing
import patchdeploy.patchkit.patchfile.TrustedKeys

/**
 * One runtime's base file.
 *
 * @property file path of the base file.
 * @property slots path of its slot table.
 */
public data class ConverterEntry(val file: String, val slots: String)

/**
 * One task.
 *
 * @property file path of the patch file.
 * @property labels in the order of the head's rows.
 * @property resolutions sides in pixels that the patch holds, ascending.
 */
public class TaskEntry internal constructor(
    public val file: String,
    public val labels: List<String>,
    public val resolutions: List<Int>,
    internal val floatFiles: List<String>,
)

/**
 * One file.
 *
 * @property ships whether an app needs it.
 */
public data class FileEntry(val sha256: String, val bytes: Int, val ships: Boolean)

/**
 * What a bundle holds, with the hash of every file; docs/bundle-format.md.
 *
 * @property patchdeploy version that wrote it.
 * @property baseName for people.
 * @property baseSha256 of the coding table; what patches name.
 * @property coding path of the coding table.
 * @property trusted the keys that may sign patches; null: a development bundle, nothing is signed.
 * @property preprocessing how a picture becomes the network's input.
 * @property inputSize side in pixels that the network was trained at.
 * @property resolutions sides in pixels that were exported, ascending.
 * @property layout the lengths that a patch must have.
 * @property converters by name, "tflite" and "onnx".
 * @property tasks by name.
 * @property files every file but the manifest, by path.
 */
public class Manifest internal constructor(
    public val patchdeploy: String,
    public val baseName: String,
    public val baseSha256: String,
    public val coding: String,
    public val trusted: TrustedKeys?,
    public val preprocessing: Preprocessing,
    public val inputSize: Int,
    public val resolutions: List<Int>,
    public val layout: PatchLayout,
    public val converters: Map<String, ConverterEntry>,
    public val tasks: Map<String, TaskEntry>,
    public val files: Map<String, FileEntry>,
) {
    public companion object {
        /** Its path in a bundle. */
        public const val NAME: String = "manifest.json"

        /** The longest that is read. */
        public const val MAX_BYTES: Int = 16 shl 20

        /**
         * Parse and check a manifest. The hash that it records of itself is compared over the bytes
         * as they are, without the line that holds it.
         *
         * @throws patchdeploy.patchkit.FileFormatException truncated, of another format, an unknown
         *   or missing key, or a value outside its rule or not in keeping with the others.
         * @throws patchdeploy.patchkit.IntegrityException changed since it was written.
         */
        public fun fromJson(data: ByteArray): Manifest = parseManifest(data)
    }
}
