package patchdeploy.patchkit.json

import java.math.BigInteger
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import patchdeploy.patchkit.CanonicalTextException

class JsonTest {
    private val strict = JsonRules(repeatedKeys = false, loneSurrogates = false, mostDigits = 20, mostLevels = 3)
    private val lenient = JsonRules(repeatedKeys = true, loneSurrogates = true, mostDigits = 20, mostLevels = 3)

    private fun read(text: String, rules: JsonRules = strict): Any? = parseJson(text.toByteArray(), rules)

    @Test
    fun `values of every kind are read, with space where JSON allows it`() {
        assertEquals(mapOf("a" to listOf(1L, -2L, true, false, null)), read(" {\"a\" :\t[1 ,-2,\r\ntrue,false , null] } "))
        assertEquals(emptyMap<String, Any?>(), read("{}"))
        assertEquals(emptyList<Any?>(), read("[ ]"))
        assertEquals(listOf(0L, -0L, 1.5, 100.0, 0.01, 2e3), read("[0,-0,1.5,1E+2,1e-2,2e3]"))
        assertEquals(BigInteger("12345678901234567890"), read("12345678901234567890"))
        assertEquals("\"\\/\b\u000c\n\r\t\u00e9\ud83d\ude00", read("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u00E9\\ud83d\\uDE00\""))
    }

    @Test
    fun `of a key that comes again the last value counts where the rules allow it`() {
        assertEquals(mapOf("a" to 2L), read("{\"a\":1,\"a\":2}", lenient))
        assertThrows<JsonException> { read("{\"a\":1,\"a\":2}") }
    }

    @Test
    fun `half of a surrogate pair is refused unless the rules allow it`() {
        for (half in listOf("\\ud800", "\\udc00", "\\ud800x", "\\ud800\\ud800", "x\\udfff")) {
            assertThrows<JsonException>(half) { read("\"$half\"") }
            read("\"$half\"", lenient)
        }
        assertEquals("a\ud83d\ude00b", read("\"a\\ud83d\\ude00b\""))
    }

    @TestFactory
    fun `what is no JSON, or past the rules, is refused`(): List<DynamicTest> = listOf(
        "", " ", "{", "[", "[1", "[1,", "[1 2]", "[1}", "{\"a\"", "{\"a\" 1}", "{\"a\":1", "{\"a\":1 \"b\":2}", "{a:1}", "{,}",
        "{\"a\":1,}", "[,]", "1 2", "{} {}", "tru", "fals", "nul", "NaN", "+1", ".5", "1.", "1.e3", "1e", "1e+", "-", "-a", "01", "-01",
        "1e400", "-1e400", "123456789012345678901", "[[[[1]]]]", "{\"a\":{\"a\":{\"a\":{}}}}", "\"", "\"a", "\"\n\"", "\"\\", "\"\\x\"",
        "\"\\u12\"", "\"\\u12g4\"", "\"\\u12",
    ).map { text -> dynamicTest("text '$text'") { assertThrows<JsonException> { read(text) } } }

    @Test
    fun `bytes that are no UTF-8 and a byte order mark are refused`() {
        assertThrows<JsonException> { parseJson(byteArrayOf('"'.code.toByte(), -1, '"'.code.toByte()), strict) }
        assertThrows<JsonException> { read("\ufeff1") }
    }

    private fun canonical(text: String, allowNull: Boolean = false): Any? = parseCanonical(text.toByteArray(), allowNull)

    @Test
    fun `canonical text is read and written again as it is`() {
        val text = "{\"a\":[0,9007199254740991,\"~ \"],\"b\":{},\"c\":[[],\"\"]}"
        assertArrayEquals(text.toByteArray(), encodeCanonical(canonical(text)))
        assertEquals(mapOf("a" to null), canonical("{\"a\":null}", allowNull = true))
        assertEquals("{\"a\":null}", String(encodeCanonical(mapOf("a" to null))))
    }

    @TestFactory
    fun `a second way to write the same is refused`(): List<DynamicTest> = listOf(
        "", "1 ", " 1", "01", "-1", "1.0", "9007199254740992", "99999999999999999999", "{\"b\":1,\"a\":2}", "{\"a\":1,\"a\":1}",
        "{\"a\" :1}", "[1, 2]", "[1", "{\"a\":1", "{\"a\"1}", "{1:1}", "\"a", "\"\\n\"", "\"\t\"", "\"\u007f\"", "\"é\"", "true", "null", "nul",
        "[[[[[[[[[1]]]]]]]]]", "{} {}",
    ).map { text -> dynamicTest("text '$text'") { assertThrows<CanonicalTextException> { canonical(text) } } }

    @Test
    fun `null is refused where it may not be, and so is a part of it`() {
        assertThrows<CanonicalTextException> { canonical("[null]") }
        assertThrows<CanonicalTextException> { canonical("[nul]", allowNull = true) }
        assertThrows<CanonicalTextException> { canonical("[nulx]", allowNull = true) }
    }
}
