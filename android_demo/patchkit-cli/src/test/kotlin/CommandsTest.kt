package patchdeploy.cli

import java.io.ByteArrayOutputStream
import java.io.PrintStream
import java.nio.file.Files
import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode

class CommandsTest {
    private val vectorsFolder: String = Path.of(System.getProperty("patchdeploy.repository"), "tests", "patchfile").toString()
    private val vectors = readDocument(read("$vectorsFolder/base_vectors.json"))
    private val case = vectors.children("cases").first()

    @TempDir
    lateinit var folder: Path

    private fun file(name: String, data: ByteArray): String = Files.write(folder.resolve(name), data).toString()

    private val patch: String get() = file("task.pdp", case.base64("file"))
    private val table: String get() = file("base.coding", vectors.base64("coding_table"))
    private val keys: String get() {
        val trusted = vectors.child("policy")["trusted"]
        return file("trusted.json", """{"format":1,"keys":${toJson(trusted)},"threshold":1}""".toByteArray())
    }

    @Test
    fun `every vector of tests-patchfile is judged as it says`() {
        val judged = judgeVectors(vectorsFolder)
        assertEquals(0, judged.exitCode)
        assertEquals(emptyList<Any>(), judged.report.values.flatMap { (it as Map<*, *>)["different"] as List<*> })
    }

    @Test
    fun `check takes a file of a trusted key and names its task`() {
        val found = check(listOf(patch, table), keys)
        assertEquals("ok", found["code"])
        assertEquals(vectors.child("policy")["task"], found["task"])
    }

    @Test
    fun `check trusts nobody where no list of keys is given`() {
        val error = assertThrows<PatchRefusedException> { check(listOf(patch, table), null) }
        assertEquals(RefusalCode.KEY_UNKNOWN, error.code)
    }

    @Test
    fun `inspect tells lengths that make up the file`() {
        val found = inspect(patch)
        val parts = (found["parts"] as Map<*, *>).values.sumOf { it as Int }
        val header = (found["header"] as Map<*, *>)["payload"] as Map<*, *>
        assertEquals(header["bytes"], parts)
    }

    @Test
    fun `overlay writes the model whose hash is signed and no other`() {
        val base = vectors.child("bases").child("whole").child("tflite")
        val px = vectors.child("results").child("tflite").keys.first()
        val out = folder.resolve("model.tflite").toString()
        val slots = file("slots.json", toJson(base.getValue("slots")).toByteArray())
        val found = overlayFile(listOf(file("base", base.base64("file")), slots, table, patch, px, out), keys)
        assertEquals("ok", found["code"])
        assertEquals(vectors.child("results").child("tflite")[px], patchdeploy.patchkit.sha256Hex(read(out)))
    }

    @Test
    fun `questions are answered in turn until the input ends`() {
        val question = """{"ask":"confidence","kind":"margin","ratio":0,"classes":2,"bytes":4}""" + "\n"
        val input = question.toByteArray() + byteArrayOf(3, 7, 9, -9) + question.toByteArray() + byteArrayOf(0, 0, 1, 0)
        val output = ByteArrayOutputStream()
        answerQuestions(input.inputStream(), PrintStream(output))
        assertEquals("{\"confidence\":[4,18]}\n{\"confidence\":[0,1]}\n", output.toString())
    }

    @Test
    fun `text that JSON would misread is escaped`() {
        assertEquals("""{"a":["\"\\\u000a\u00e9",1,true,null]}""", toJson(mapOf("a" to listOf("\"\\\né", 1, true, null))))
    }
}
