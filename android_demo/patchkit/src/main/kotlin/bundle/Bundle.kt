package patchdeploy.patchkit.bundle

import java.io.IOException
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.UnknownTaskException
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.slots.checkFit

/**
 * A bundle as it was when it was opened: the base file of one format, and the patch files.
 *
 * Each of its bytes was compared with the hash that the manifest records; what becomes of the files
 * afterwards does not matter.
 *
 * @property place where it came from, for messages.
 * @property table what its patches are coded against.
 * @property base of [format].
 * @property format the converter's name, "tflite" or "onnx".
 */
public class Bundle private constructor(
    public val place: String,
    public val manifest: Manifest,
    public val table: CodingTable,
    public val base: BaseFile,
    public val format: String,
    private val patches: Map<String, ByteArray>,
) {
    /** Sorted. */
    public val tasks: List<String> get() = manifest.tasks.keys.sorted()

    /** @throws UnknownTaskException no such task. */
    public fun task(name: String): TaskEntry = manifest.tasks[name] ?: throw UnknownTaskException(
        "no task '${name.take(80)}' in $place; it has ${tasks.joinToString().ifEmpty { "none" }}; choose one " +
            "of them or install a patch of it",
    )

    /**
     * The patch file of [task], a copy.
     *
     * @throws UnknownTaskException no such task.
     */
    public fun patchFile(task: String): ByteArray = task(task).let { patches.getValue(task).copyOf() }

    /**
     * What this bundle demands of a patch over its base.
     *
     * @param task that it must be for; null: any.
     */
    public fun policy(task: String? = null): Policy = Policy(
        trusted = manifest.trusted,
        allowUnsigned = manifest.trusted == null,
        runtime = format,
        task = task,
        baseSha256 = table.sha256,
        baseBytes = table.lengthBytes.toLong(),
        resolutions = manifest.resolutions.toSet(),
    )

    public companion object {
        /**
         * Open the bundle in [files] for the runtime of one format.
         *
         * @throws ConfigException it has no base file of [format].
         * @throws FileFormatException no bundle, or a file that does not parse.
         * @throws IntegrityException a file is missing or is not the one that the manifest records.
         */
        public fun open(files: BundleFiles, format: String): Bundle {
            val manifest = Manifest.fromJson(readManifest(files))
            val reader = HashedReader(files, manifest)
            val converter = manifest.converters[format] ?: throw ConfigException(
                "bundle ${files.place} holds no '$format' base file; it has " +
                    "${manifest.converters.keys.sorted().joinToString()}; export it with that format",
            )
            val table = CodingTable.fromBytes(reader.read(manifest.coding))
            checkCoding(files, manifest, table)
            val slots = SlotTable.fromJson(reader.read(converter.slots))
            checkSlots(files, manifest, converter, slots, format)
            val patches = manifest.tasks.mapValues { (_, entry) -> reader.read(entry.file) }
            return Bundle(files.place, manifest, table, reader.base(converter.file, slots), format, patches)
        }

        private fun readManifest(files: BundleFiles): ByteArray = try {
            files.read(Manifest.NAME, Manifest.MAX_BYTES)
        } catch (error: IOException) {
            throw FileFormatException(
                "${files.place} is not a bundle (${Manifest.NAME}: ${error.message}); a bundle is a folder " +
                    "that export wrote; copy it again",
                error,
            )
        }

        private fun checkCoding(files: BundleFiles, manifest: Manifest, table: CodingTable) {
            if (table.sha256 != manifest.baseSha256 || table.layout != manifest.layout) {
                throw IntegrityException(
                    "${manifest.coding} of bundle ${files.place} has SHA-256 ${table.sha256} and " +
                        "${table.layout}; the manifest records ${manifest.baseSha256} and ${manifest.layout}; " +
                        "export the bundle again",
                )
            }
        }

        /** The hash binds the table to its file; its length and the rest are compared by [BaseFile]. */
        private fun checkSlots(
            files: BundleFiles,
            manifest: Manifest,
            converter: ConverterEntry,
            slots: SlotTable,
            format: String,
        ) {
            val recorded = manifest.files.getValue(converter.file)
            if (slots.baseSha256 != recorded.sha256 || slots.baseBytes != recorded.bytes) {
                throw IntegrityException(
                    "slot table ${converter.slots} of bundle ${files.place} is bound to base " +
                        "${slots.baseSha256} of ${slots.baseBytes} bytes; the bundle's ${converter.file} has " +
                        "SHA-256 ${recorded.sha256} and ${recorded.bytes} bytes; export the bundle again",
                )
            }
            checkFit(slots, format, manifest.resolutions, manifest.layout)
        }
    }
}

private class HashedReader(private val files: BundleFiles, private val manifest: Manifest) {
    fun read(path: String): ByteArray {
        val data = reading(path) { files.read(path, manifest.files.getValue(path).bytes) }
        compare(path, data.size, sha256Hex(data))
        return data
    }

    /** Mapped where that is possible. Its hash is compared once, with that of [slots], the manifest's. */
    fun base(path: String, slots: SlotTable): BaseFile {
        val entry = manifest.files.getValue(path)
        val mapping = reading(path) { files.map(path) }
        if (mapping != null) {
            return BaseFile.mapped(mapping, slots)
        }
        return BaseFile(reading(path) { files.read(path, entry.bytes) }, slots)
    }

    private fun <T> reading(path: String, read: () -> T): T = try {
        read()
    } catch (error: IOException) {
        val entry = manifest.files.getValue(path)
        throw IntegrityException(
            "$path of bundle ${files.place} cannot be read (${error.message}); the manifest records " +
                "${entry.bytes} bytes with SHA-256 ${entry.sha256}; copy the bundle again",
            error,
        )
    }

    private fun compare(path: String, length: Int, sha256: String) {
        val entry = manifest.files.getValue(path)
        if (length != entry.bytes || sha256 != entry.sha256) {
            throw IntegrityException(
                "$path of bundle ${files.place} has $length bytes with SHA-256 $sha256; the manifest records " +
                    "${entry.bytes} with ${entry.sha256}; copy the bundle again",
            )
        }
    }
}
