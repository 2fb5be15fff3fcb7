package patchdeploy.patchkit.patchfile

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.child
import patchdeploy.patchkit.children
import patchdeploy.patchkit.long
import patchdeploy.patchkit.policyOf
import patchdeploy.patchkit.readVectors
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.text
import patchdeploy.patchkit.verdict

class ContainerVectorsTest {
    private val vectors = readVectors("vectors.json")
    private val cases = vectors.children("container")

    @TestFactory
    fun `our reader says what the vector says`(): List<DynamicTest> = cases.map { case ->
        dynamicTest(case.text("name")) {
            val file = case.base64("file")
            val data = file.copyOf(file.size + (case.long("zeros") ?: 0).toInt())
            val policy = policyOf(vectors.child("policy") + case.child("policy"))
            var found: CheckedPatch? = null
            assertEquals(case.text("code"), verdict { found = checkPatchFile(data, policy) })
            if (case.text("code") == "ok") {
                assertEquals(case["signed_by"], found?.signedBy?.map(Int::toLong))
                assertEquals(sha256Hex(data), found?.sha256)
            }
        }
    }

    @Test
    fun `there are vectors of good files and of bad ones`() {
        val (good, bad) = cases.partition { it.text("code") == "ok" }
        assertTrue(good.size >= 12 && bad.size >= 150) { "${good.size} good, ${bad.size} bad" }
    }
}
