package patchdeploy.litert

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import patchdeploy.patchkit.Document
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.child
import patchdeploy.patchkit.children
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.jsonBytes
import patchdeploy.patchkit.patchfile.OpenedPatch
import patchdeploy.patchkit.patchfile.checkResults
import patchdeploy.patchkit.patchfile.enlarge
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.policyOf
import patchdeploy.patchkit.readVectors
import patchdeploy.patchkit.runtime.runSelfTest
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.text
import patchdeploy.patchkit.verdict

/** The vectors of check 9, on the runtime itself. */
class LiteRtBackendTest {
    private val vectors = readVectors("base_vectors.json")
    private val table = CodingTable.fromBytes(vectors.base64("coding_table"))
    private val policy = policyOf(vectors.child("policy"))
    private val cases = vectors.children("cases")

    private fun base(name: String): Pair<ByteArray, SlotTable> {
        val one = vectors.child("bases").child(name).child("tflite")
        return one.base64("file") to SlotTable.fromJson(jsonBytes(one.getValue("slots")))
    }

    private fun open(case: Document): OpenedPatch = openPatch(case.base64("file"), policy, table)

    @TestFactory
    fun `check 9 says what the vector says`(): List<DynamicTest> = cases.map { case ->
        dynamicTest(case.text("name")) {
            val opened = open(case)
            val (file, slots) = base(case.text("base"))
            val found = verdict {
                checkResults(opened, BaseFile(file, slots))
                runSelfTest(LiteRtBackend(BaseFile(file, slots)), opened.patch, table)
            }
            assertEquals(case.child("codes").text("tflite"), found)
        }
    }

    /** ai-edge-litert 2.3 is at 0 here; TensorFlow 2.21's XNNPACK adds a mean in another order. */
    @Test
    fun `the self-test's scores are within 1 LSB of Python's executor, with any number of threads`() {
        val patch = open(cases[0]).patch
        val (file, slots) = base("whole")
        for (threads in 1..2) {
            val worst = runSelfTest(LiteRtBackend(BaseFile(file, slots), threads), patch, table)
            assertTrue(checkNotNull(worst) <= 1) { "$worst LSB on $threads threads" }
        }
    }

    @Test
    fun `another patch gives other scores, and a closed model none`() {
        val patch = open(cases[0]).patch
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
        val patch = open(cases[0]).patch
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
