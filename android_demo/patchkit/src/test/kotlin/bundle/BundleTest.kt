package patchdeploy.patchkit.bundle

import java.io.FileOutputStream
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.UnknownTaskException
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.sha256Hex

class BundleTest {
    private val files = BundleVectors.files

    private fun open(files: Map<String, ByteArray>, format: String = "tflite") = Bundle.open(MapFiles(files), format)

    /** [edit] on the manifest's text, and the hash that it records of itself made right again. */
    private fun withManifest(edit: (String) -> String): Map<String, ByteArray> {
        val line = Regex("\n  \"manifest_sha256\": \"[0-9a-f]{64}\",")
        val text = String(files.getValue(Manifest.NAME))
        val body = edit(text).replace(line, "")
        val hash = "\n  \"manifest_sha256\": \"${sha256Hex(body.toByteArray())}\","
        val place = body.indexOf("\n  \"patchdeploy\":")
        val whole = if (place < 0) body else body.substring(0, place) + hash + body.substring(place)
        return files + (Manifest.NAME to whole.toByteArray())
    }

    @Test
    fun `a bundle says what its manifest says, in either format`() {
        for (format in listOf("tflite", "onnx")) {
            val bundle = open(files, format)
            assertEquals(listOf("first", "second"), bundle.tasks)
            assertEquals(listOf(16, 24), bundle.manifest.resolutions)
            assertEquals(format, bundle.base.table.runtime)
            assertEquals(bundle.manifest.baseSha256, bundle.table.sha256)
            val patch = openPatch(bundle.patchFile("first"), bundle.policy("first"), bundle.table).patch
            assertEquals(bundle.task("first").labels, patch.classes)
            assertTrue(patch.cascade != null)
        }
        assertThrows<UnknownTaskException> { open(files).patchFile("third") }
        assertThrows<ConfigException> { open(files, "coreml") }
    }

    @TestFactory
    fun `a file with one byte changed, cut or gone is refused by name`(): List<DynamicTest> {
        val read = files.keys.filter { !it.startsWith("reference/") && !it.startsWith("base.onnx") }
        return read.flatMap { path ->
            val data = files.getValue(path)
            val changed = data.copyOf().also { it[it.size / 2] = (it[it.size / 2] + 1).toByte() }
            listOf("changed" to changed, "cut" to data.copyOf(data.size - 1), "longer" to data + 0, "gone" to null)
                .map { (what, bytes) ->
                    dynamicTest("$path $what") {
                        val broken = if (bytes == null) files - path else files + (path to bytes)
                        val error = assertThrows<PatchkitException> { open(broken) }
                        assertTrue(error is IntegrityException || error is FileFormatException)
                        assertTrue(Regex("$path|manifest|base file").containsMatchIn(error.message!!), error.message)
                    }
                }
        }
    }

    private fun edit(name: String, edit: (String) -> String) = name to edit

    @TestFactory
    fun `a manifest whose values break a rule is refused though its own hash is right`(): List<DynamicTest> = listOf(
        edit("another format") { it.replace("\"format\": 2", "\"format\": 3") },
        edit("a key more") { it.replaceFirst("{\n", "{\n  \"aaa\": 1,\n") },
        edit("a key less") { it.replace(Regex("\n  \"source_sha256\": \"[0-9a-f]+\","), "") },
        edit("a path that leaves the bundle") { it.replace("base.coding", "../base.coding") },
        edit("a hidden path") { it.replace("base.coding", ".base.coding") },
        edit("a file that does not ship") { it.replaceFirst("\"ships\": true", "\"ships\": false") },
        edit("a file with two uses") { it.replace("patches/second.pdp", "base.coding") },
        edit("a file without a hash") { it.replaceFirst("\"file\": \"base.tflite\"", "\"file\": \"other.tflite\"") },
        edit("a negative length") { it.replaceFirst(Regex("\"bytes\": [0-9]+"), "\"bytes\": -1") },
        edit("files too large for any phone") { it.replace(Regex("\"bytes\": [0-9]+"), "\"bytes\": 1073741825") },
        edit("a hash in capitals") { it.replaceFirst(Regex("\"base_sha256\": \"[0-9a-f]+\""), "\"base_sha256\": \"${"A".repeat(64)}\"") },
        edit("resolutions that fall") { it.replace(Regex("\n    16,\n    24\n"), "\n    24,\n    16\n") },
        edit("a resolution that was not exported") { it.replace(Regex("\n {8}24\n"), "\n        25\n") },
        edit("a label twice") { it.replace("\"class 1\"", "\"class 0\"") },
        edit("another way to resize") { it.replace("\"squash\"", "\"stretch\"") },
        edit("no crop") { it.replace("\"crop_fraction\": 1.0", "\"crop_fraction\": 0.0") },
        edit("a std of 0") { it.replace(Regex("\"std\": \\[\n +[0-9.]+"), "\"std\": [\n      0.0") },
        edit("keys that are no list") { it.replace("\\\"threshold\\\":1", "\\\"threshold\\\":9") },
        edit("a task's name in capitals") { it.replace("\"second\": {", "\"SECOND\": {") },
        edit("a layout whose head lies outside") { it.replaceFirst(Regex("\"head_row\": [0-9]+"), "\"head_row\": 100000") },
        edit("no text at all") { "" },
    ).map { (name, edit) ->
        dynamicTest(name) {
            val broken = withManifest(edit)
            assertTrue(!broken.getValue(Manifest.NAME).contentEquals(files.getValue(Manifest.NAME)), "no edit")
            assertThrows<FileFormatException> { open(broken) }
        }
    }

    @Test
    fun `a manifest that records another hash of itself is refused`() {
        val text = String(files.getValue(Manifest.NAME))
        val other = text.replace("\"patchdeploy\": \"", "\"patchdeploy\": \"9")
        assertThrows<IntegrityException> { open(files + (Manifest.NAME to other.toByteArray())) }
        assertEquals(text, String(withManifest { it }.getValue(Manifest.NAME)))
    }

    @Test
    fun `labels that the manifest and the patch do not share are refused where the engine opens`() {
        val broken = open(withManifest { it.replaceFirst("\"class 1\"", "\"klasse 1\"") })
        val checked = patchdeploy.patchkit.patchfile.checkPatchFile(broken.patchFile("first"), broken.policy("first"))
        assertThrows<IntegrityException> { patchdeploy.patchkit.engine.TaskVersion.ofBundle(broken, checked) }
    }

    @Test
    fun `a folder is read, a link out of it is not`(@TempDir folder: Path) {
        for ((path, data) in files) {
            Files.createDirectories(folder.resolve(path).parent)
            Files.write(folder.resolve(path), data)
        }
        assertEquals(listOf("first", "second"), Bundle.open(FolderFiles(folder), "tflite").tasks)
        val outside = Files.createTempFile(folder.parent, "outside", ".tflite")
        Files.write(outside, files.getValue("base.tflite"))
        Files.delete(folder.resolve("base.tflite"))
        Files.createSymbolicLink(folder.resolve("base.tflite"), outside)
        assertThrows<IntegrityException> { Bundle.open(FolderFiles(folder), "tflite") }
        Files.delete(outside)
    }

    @Test
    fun `a mapped base gives the models of one that was read`(@TempDir folder: Path) {
        val file = folder.resolve("an.apk") // the asset lies behind other bytes
        FileOutputStream(file.toFile()).use { it.write(ByteArray(12)); it.write(files.getValue("base.tflite")) }
        val mapping = FileChannel.open(file).use { it.map(FileChannel.MapMode.READ_ONLY, 12, Files.size(file) - 12) }
        val mapped = Bundle.open(
            object : BundleFiles by MapFiles(files) {
                override fun map(path: String): ByteBuffer? = mapping.takeIf { path == "base.tflite" }
            },
            "tflite",
        )
        val read = open(files)
        val values = openPatch(read.patchFile("first"), read.policy("first"), read.table).patch.values.getValue(16)
        assertArrayEquals(bytesOf(read.base.render(values, 16)), bytesOf(mapped.base.render(values, 16)))
        assertEquals(read.base.resultSha256(values, 16), mapped.base.resultSha256(values, 16))
    }

    private fun bytesOf(buffer: ByteBuffer) = ByteArray(buffer.capacity()).also { buffer.duplicate().get(it) }
}
