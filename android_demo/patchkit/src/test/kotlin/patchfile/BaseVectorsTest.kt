package patchdeploy.patchkit.patchfile

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertNotEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory
import patchdeploy.patchkit.Document
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.child
import patchdeploy.patchkit.children
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.jsonBytes
import patchdeploy.patchkit.policyOf
import patchdeploy.patchkit.readVectors
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.slots.overlay
import patchdeploy.patchkit.text
import patchdeploy.patchkit.verdict

class BaseVectorsTest {
    private val vectors = readVectors("base_vectors.json")
    private val table = CodingTable.fromBytes(vectors.base64("coding_table"))
    private val policy = policyOf(vectors.child("policy"))

    private fun base(name: String, runtime: String): Pair<ByteArray, SlotTable> {
        val one = vectors.child("bases").child(name).child(runtime)
        return one.base64("file") to SlotTable.fromJson(jsonBytes(one.getValue("slots")))
    }

    /** Codes "load" and "self_test" are of a runtime, which patchkit has none of. */
    @TestFactory
    fun `the part of check 9 that needs no runtime says what the vector says`(): List<DynamicTest> =
        vectors.children("cases").flatMap { case ->
            listOf("tflite", "onnx").map { runtime ->
                dynamicTest("$runtime: ${case.text("name")}") {
                    val opened = openPatch(case.base64("file"), policy, table)
                    val (file, slots) = base(case.text("base"), runtime)
                    val expected = case.child("codes").text(runtime)
                    val found = verdict { checkResults(opened, BaseFile(file, slots)) }
                    assertEquals(if (expected == "result") "result" else "ok", found)
                }
            }
        }

    @TestFactory
    fun `the base with the patch laid over it is the file whose hash stands there`(): List<DynamicTest> =
        vectors.child("results").flatMap { (runtime, bySide) ->
            val patch = openPatch(vectors.children("cases")[0].base64("file"), policy, table).patch
            (bySide as Map<*, *>).map { (px, expected) ->
                dynamicTest("$runtime at $px px") {
                    val (file, slots) = base("whole", runtime)
                    val values = patch.values.getValue((px as String).toInt())
                    assertEquals(expected, sha256Hex(overlay(file, slots, px.toInt(), values)))
                    assertNotEquals(expected, sha256Hex(file))
                }
            }
        }
}
