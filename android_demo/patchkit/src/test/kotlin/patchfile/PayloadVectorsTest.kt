package patchdeploy.patchkit.patchfile

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import patchdeploy.patchkit.Document
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.child
import patchdeploy.patchkit.children
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.hashes
import patchdeploy.patchkit.long
import patchdeploy.patchkit.policyOf
import patchdeploy.patchkit.readVectors
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.text
import patchdeploy.patchkit.verdict

class PayloadVectorsTest {
    private val vectors = readVectors("payload_vectors.json")
    private val cases = vectors.children("cases")
    private val table = CodingTable.fromBytes(vectors.base64("coding_table"))
    private fun policy(case: Document) =
        policyOf(vectors.child("policy") + (case["policy"]?.let { case.child("policy") }.orEmpty()))

    @TestFactory
    fun `our reader says what the vector says`(): List<DynamicTest> = cases.map { case ->
        dynamicTest(case.text("name")) {
            var found: OpenedPatch? = null
            assertEquals(case.text("code"), verdict { found = openPatch(case.base64("file"), policy(case), table) })
            found?.let { compare(case, it.patch) }
        }
    }

    @TestFactory
    fun `one resolution alone has the values that it has among all`(): List<DynamicTest> =
        cases.filter { it.text("code") == "ok" }.map { case ->
            dynamicTest(case.text("name")) {
                for ((px, expected) in case.child("values")) {
                    val patch = openPatch(case.base64("file"), policy(case), table, px.toInt()).patch
                    assertEquals(mapOf(px.toInt() to expected), patch.values.mapValues { hashes(it.value) })
                }
            }
        }

    @Test
    fun `every code of checks 7 and 8 has a vector`() {
        val codes = cases.map { it.text("code") }.toSet()
        assertTrue(codes.containsAll(setOf("ok", "sites", "inflate", "parts", "work", "values"))) { "$codes" }
    }

    private fun compare(case: Document, patch: PatchFile) {
        assertEquals(case["labels"], patch.classes)
        assertEquals(case.child("values"), patch.values.entries.associate { (px, one) -> "$px" to hashes(one) })
        assertEquals(case.long("tolerance")?.toInt(), patch.golden?.toleranceLsb)
        val golden = patch.golden ?: return
        for (px in patch.values.keys) {
            val pixels = (0 until golden.images).map { enlarge(golden.thumbnail(it), px) }
            assertEquals(case.child("enlarged").text("$px"), sha256Hex(pixels.reduce(ByteArray::plus)))
        }
        for ((runtime, bySide) in case.child("scores")) {
            for ((px, images) in bySide as Map<*, *>) {
                val found = (0 until golden.images).map { image ->
                    golden.scores(runtime, (px as String).toInt(), image)?.map(Byte::toLong)
                }
                assertEquals(images, found)
            }
        }
    }
}
