package patchdeploy.litert

import java.nio.file.Files
import java.nio.file.Path
import java.util.Base64
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.json.JsonRules
import patchdeploy.patchkit.json.parseJson
import patchdeploy.patchkit.patchfile.OpenedPatch
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.PublicKey
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.patchfile.checkResults
import patchdeploy.patchkit.patchfile.enlarge
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.runtime.runSelfTest
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.SlotTable

/** The vectors of check 9, on the runtime itself. */
class LiteRtBackendTest {
    private val vectors = document("base_vectors.json")
    private val table = CodingTable.fromBytes(bytes(vectors["coding_table"]))
    private val cases = vectors["cases"] as List<*>

    private fun document(name: String): Map<*, *> {
        val path = Path.of(System.getProperty("patchdeploy.repository"), "tests", "patchfile", name)
        return parseJson(Files.readAllBytes(path), JsonRules(false, true, 308, 32)) as Map<*, *>
    }

    private fun bytes(text: Any?): ByteArray = Base64.getDecoder().decode(text as String)

    private fun base(name: Any?): Pair<ByteArray, SlotTable> {
        val one = ((vectors["bases"] as Map<*, *>)[name] as Map<*, *>)["tflite"] as Map<*, *>
        return bytes(one["file"]) to SlotTable.fromJson(text(one["slots"]).toByteArray())
    }

    private fun text(value: Any?): String = when (value) {
        is Map<*, *> -> value.entries.joinToString(",", "{", "}") { (key, one) -> "\"$key\":${text(one)}" }
        is List<*> -> value.joinToString(",", "[", "]", transform = ::text)
        is String -> "\"$value\""
        else -> "$value"
    }

    private fun open(case: Map<*, *>): OpenedPatch {
        val policy = vectors["policy"] as Map<*, *>
        val keys = (policy["trusted"] as List<*>).map { PublicKey.fromHex(it as String) }
        return openPatch(bytes(case["file"]), Policy(TrustedKeys(keys, 1), task = policy["task"] as String), table)
    }

    @TestFactory
    fun `check 9 says what the vector says`(): List<DynamicTest> = cases.map { one ->
        val case = one as Map<*, *>
        dynamicTest(case["name"] as String) {
            val opened = open(case)
            val (file, slots) = base(case["base"])
            val found = try {
                checkResults(opened, BaseFile(file, slots))
                runSelfTest(LiteRtBackend(BaseFile(file, slots)), opened.patch, table)
                "ok"
            } catch (error: PatchRefusedException) {
                error.code.text
            }
            assertEquals((case["codes"] as Map<*, *>)["tflite"], found)
        }
    }

    /** ai-edge-litert 2.3 is at 0 here; TensorFlow 2.21's XNNPACK adds a mean in another order. */
    @Test
    fun `the self-test's scores are within 1 LSB of Python's executor, with any number of threads`() {
        val patch = open(cases[0] as Map<*, *>).patch
        val (file, slots) = base("whole")
        for (threads in 1..2) {
            val worst = runSelfTest(LiteRtBackend(BaseFile(file, slots), threads), patch, table)
            assertTrue(checkNotNull(worst) <= 1) { "$worst LSB on $threads threads" }
        }
    }

    @Test
    fun `another patch gives other scores, and a closed model none`() {
        val patch = open(cases[0] as Map<*, *>).patch
        val golden = checkNotNull(patch.golden)
        val (file, slots) = base("whole")
        val (px, values) = patch.values.entries.first()
        val image = enlarge(golden.thumbnail(0), px)
        val backend = LiteRtBackend(BaseFile(file, slots))
        val resident = backend.load(values, px)
        val scores = resident.run(image)
        assertArrayEquals(scores, resident.run(image))
        assertFalse(scores.contentEquals(resident.run(enlarge(golden.thumbnail(1), px))))
        assertThrows<RuntimeBackendException> { resident.run(image.copyOf(image.size - 1)) }
        resident.close()
        resident.close()
        assertThrows<RuntimeBackendException> { resident.run(image) }
    }

    @Test
    fun `a base file with one byte changed reaches no interpreter`() {
        val (file, slots) = base("whole")
        file[file.size / 2] = (file[file.size / 2] + 1).toByte()
        assertThrows<IntegrityException> { LiteRtBackend(BaseFile(file, slots)) }
    }

    @Test
    fun `a thousand loads and runs in four threads give the answers of one`() {
        val patch = open(cases[0] as Map<*, *>).patch
        val golden = checkNotNull(patch.golden)
        val (file, slots) = base("whole")
        val backend = LiteRtBackend(BaseFile(file, slots))
        val expected = patch.values.mapValues { (px, values) ->
            backend.load(values, px).use { it.run(enlarge(golden.thumbnail(0), px)) }
        }
        val failures = java.util.concurrent.ConcurrentLinkedQueue<Throwable>()
        val threads = List(4) { thread ->
            Thread {
                repeat(250) { k ->
                    runCatching {
                        val (px, values) = patch.values.entries.elementAt((k + thread) % patch.values.size)
                        backend.load(values, px).use { resident ->
                            assertArrayEquals(expected.getValue(px), resident.run(enlarge(golden.thumbnail(0), px)))
                        }
                    }.onFailure(failures::add)
                }
            }.apply { start() }
        }
        threads.forEach(Thread::join)
        assertEquals(emptyList<Throwable>(), failures.toList())
    }
}
