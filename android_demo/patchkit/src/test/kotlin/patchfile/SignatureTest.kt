package patchdeploy.patchkit.patchfile

import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.children
import patchdeploy.patchkit.readVectors
import patchdeploy.patchkit.text
import patchdeploy.patchkit.long

class SignatureTest {
    private val vectors = readVectors("wycheproof_ed25519.json")

    @TestFactory
    fun `every vector of Wycheproof gets its verdict`(): List<DynamicTest> = vectors.children("tests").map { one ->
        dynamicTest("tcId ${one["tcId"]}") {
            val found = verifySignature(hex(one.text("key")), hex(one.text("sig")), hex(one.text("msg")))
            assertEquals(one.text("result") == "valid", found)
        }
    }

    @Test
    fun `there are as many vectors as the file says`() {
        assertEquals(vectors.long("numberOfTests"), vectors.children("tests").size.toLong())
        assertEquals(151, vectors.children("tests").size)
    }

    @TestFactory
    fun `a key of small order or with a second spelling is refused`(): List<DynamicTest> {
        val order8 = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"
        val minusOne = "ec" + "ff".repeat(30) + "7f"
        val texts = listOf(
            "00".repeat(32), "01" + "00".repeat(31), minusOne, order8, "ec" + "ff".repeat(31),
            "ed" + "ff".repeat(30) + "7f", "ee" + "ff".repeat(30) + "7f", "ff".repeat(32), "00".repeat(31) + "80",
        )
        return texts.map { text ->
            dynamicTest(text) {
                org.junit.jupiter.api.assertThrows<PatchKeyException> { PublicKey.fromHex(text) }
            }
        }
    }

    @Test
    fun `under bytes that are no point no signature verifies`() {
        val noPoint = "02" + "00".repeat(31)
        assertEquals(false, verifySignature(hex(noPoint), ByteArray(64), ByteArray(0)))
        PublicKey.fromHex(noPoint)
    }

    private fun hex(text: String): ByteArray = ByteArray(text.length / 2) { text.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
}
