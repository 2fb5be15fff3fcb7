package patchdeploy.patchkit.json

import java.math.BigInteger
import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException

/** A text that is no JSON, or breaks one of [JsonRules]. */
public class JsonException(message: String) : Exception(message)

/**
 * What a JSON text may hold beyond RFC 8259. Numbers are always finite as a float64.
 *
 * @property repeatedKeys of a key that is there twice the last value counts; otherwise refused.
 * @property loneSurrogates an escape may be half of a pair.
 * @property mostDigits of an integer, its sign not counted.
 * @property mostLevels objects and lists inside each other that are parsed at all.
 */
public class JsonRules(
    public val repeatedKeys: Boolean,
    public val loneSurrogates: Boolean,
    public val mostDigits: Int,
    public val mostLevels: Int,
)

/**
 * The document in [data], UTF-8 without a byte order mark: maps, lists, strings, Boolean, null;
 * [Long] or [BigInteger] for a number without fraction and exponent, else [Double].
 *
 * @throws JsonException any other text.
 */
public fun parseJson(data: ByteArray, rules: JsonRules): Any? = JsonReader(utf8(data), rules).document()

/** @throws JsonException not UTF-8. */
internal fun utf8(data: ByteArray): String = try {
    Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString()
} catch (error: CharacterCodingException) {
    throw JsonException("it is not UTF-8")
}

private class JsonReader(private val text: String, private val rules: JsonRules) {
    private var at = 0

    fun document(): Any? {
        val value = value(0)
        space()
        if (at != text.length) refuse("more than one value")
        return value
    }

    private fun value(level: Int): Any? {
        space()
        return when (val first = peek()) {
            '{' -> objectOf(level + 1)
            '[' -> listOf(level + 1)
            '"' -> string()
            't' -> literal("true", true)
            'f' -> literal("false", false)
            'n' -> literal("null", null)
            else -> if (first == '-' || first in '0'..'9') number() else refuse("no value")
        }
    }

    private fun objectOf(level: Int): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        enter(level)
        if (take('}')) return found
        do {
            space()
            if (peek() != '"') refuse("no key")
            val key = string()
            if (!take(':')) refuse("no colon")
            if (key in found && !rules.repeatedKeys) refuse("a key twice")
            found[key] = value(level)
        } while (take(','))
        if (!take('}')) refuse("no end of an object")
        return found
    }

    private fun listOf(level: Int): List<Any?> {
        val found = ArrayList<Any?>()
        enter(level)
        if (take(']')) return found
        do found.add(value(level)) while (take(','))
        if (!take(']')) refuse("no end of a list")
        return found
    }

    private fun enter(level: Int) {
        if (level > rules.mostLevels) refuse("more than ${rules.mostLevels} levels")
        at++
    }

    private fun string(): String {
        at++
        val found = StringBuilder()
        while (true) {
            val one = peek()
            at++
            when {
                one == '"' -> break
                one == '\\' -> found.append(escape())
                one < ' ' -> refuse("a control character")
                else -> found.append(one)
            }
        }
        val value = found.toString()
        if (!rules.loneSurrogates && hasLoneSurrogate(value)) refuse("half of a surrogate pair")
        return value
    }

    private fun escape(): Char {
        val kind = peek()
        at++
        val plain = ESCAPES.indexOf(kind)
        if (plain >= 0) return ESCAPED[plain]
        if (kind != 'u' || at + 4 > text.length) refuse("an unknown escape")
        var code = 0
        repeat(4) {
            val digit = HEX.indexOf(text[at++].lowercaseChar())
            if (digit < 0) refuse("an unknown escape")
            code = code * 16 + digit
        }
        return code.toChar()
    }

    private fun number(): Any {
        val start = at
        if (peek() == '-') at++
        val first = at
        digits()
        if (text[first] == '0' && at > first + 1) refuse("a leading zero")
        val wholeEnd = at
        if (at < text.length && text[at] == '.') { at++; digits() }
        if (at < text.length && text[at].lowercaseChar() == 'e') { at++; sign(); digits() }
        val literal = text.substring(start, at)
        if (at != wholeEnd) return finite(literal)
        if (wholeEnd - first > rules.mostDigits) refuse("an integer of ${wholeEnd - first} digits")
        finite(literal)
        return if (literal.length <= 18) literal.toLong() else BigInteger(literal)
    }

    private fun finite(literal: String): Double =
        literal.toDouble().also { if (it.isInfinite()) refuse("a number past float64") }

    private fun sign() {
        if (at < text.length && (text[at] == '+' || text[at] == '-')) at++
    }

    private fun digits() {
        val start = at
        while (at < text.length && text[at] in '0'..'9') at++
        if (at == start) refuse("a number without digits")
    }

    private fun literal(word: String, value: Any?): Any? {
        if (!text.startsWith(word, at)) refuse("no value")
        at += word.length
        return value
    }

    private fun take(mark: Char): Boolean {
        space()
        return (peek() == mark).also { if (it) at++ }
    }

    private fun space() {
        while (at < text.length && text[at] in " \t\n\r") at++
    }

    private fun peek(): Char = if (at < text.length) text[at] else refuse("an end")

    private fun refuse(found: String): Nothing = throw JsonException("$found at character $at")

    private companion object {
        const val ESCAPES = "\"\\/bfnrt"
        const val ESCAPED = "\"\\/\b\u000c\n\r\t"
        const val HEX = "0123456789abcdef"
    }
}

private fun hasLoneSurrogate(text: String): Boolean {
    var at = 0
    while (at < text.length) {
        val paired = text[at].isHighSurrogate() && at + 1 < text.length && text[at + 1].isLowSurrogate()
        if (text[at].isSurrogate() && !paired) return true
        at += if (paired) 2 else 1
    }
    return false
}
