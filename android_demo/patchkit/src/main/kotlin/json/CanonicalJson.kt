package patchdeploy.patchkit.json

import patchdeploy.patchkit.CanonicalTextException

/**
 * Canonical JSON: one text for one value, so that a signature or a hash covers the value itself.
 *
 * In: a document of maps, lists, whole numbers and plain text. Out: its one byte form, and back, or
 * a [CanonicalTextException]. docs/patch-format.md, "Canonical JSON", has the form.
 */

/** The largest integer: every language holds it exactly, as a float64 too. */
internal const val LARGEST: Long = (1L shl 53) - 1

/** Objects and lists inside each other. */
internal const val MAX_DEPTH: Int = 8
private const val MAX_DIGITS = 16

/** [document] in canonical form; the caller answers for what it holds. */
internal fun encodeCanonical(document: Any?): ByteArray {
    val text = StringBuilder()
    write(document, text)
    return text.toString().toByteArray(Charsets.US_ASCII)
}

private fun write(value: Any?, text: StringBuilder) {
    when (value) {
        null -> text.append("null")
        is String -> text.append('"').append(value).append('"')
        is Int, is Long -> text.append(value)
        is List<*> -> {
            text.append('[')
            value.forEachIndexed { k, one -> if (k > 0) text.append(','); write(one, text) }
            text.append(']')
        }
        is Map<*, *> -> {
            text.append('{')
            value.entries.sortedBy { it.key as String }.forEachIndexed { k, (key, one) ->
                text.append(if (k > 0) ",\"" else "\"").append(key).append("\":")
                write(one, text)
            }
            text.append('}')
        }
        else -> error("canonical JSON holds no ${value::class}")
    }
}

/**
 * The document whose canonical form is [data]: maps, lists, strings and [Long]; time and memory
 * grow with its length alone.
 *
 * @param allowNull `null` may stand for a value.
 * @throws CanonicalTextException any other text, also one that JSON itself would take.
 */
internal fun parseCanonical(data: ByteArray, allowNull: Boolean = false): Any? =
    CanonicalReader(data, allowNull).document()

private class CanonicalReader(private val data: ByteArray, private val allowNull: Boolean) {
    private var at = 0

    fun document(): Any? {
        val value = value(0)
        if (at != data.size) refuse("one value and no more", "more from offset $at on")
        return value
    }

    private fun value(depth: Int): Any? = when (peek()) {
        '{' -> container(depth) { objectOf(depth + 1) }
        '[' -> container(depth) { listOf(depth + 1) }
        '"' -> string()
        in '0'..'9' -> integer()
        else -> literal()
    }

    private fun <T> container(depth: Int, read: () -> T): T {
        if (depth == MAX_DEPTH) refuse("at most $MAX_DEPTH levels deep", "${MAX_DEPTH + 1} levels")
        at++
        return read()
    }

    private fun objectOf(depth: Int): Map<String, Any?> {
        val found = LinkedHashMap<String, Any?>()
        var before: String? = null
        if (take('}')) return found
        do {
            val place = at
            val key = string()
            if (before != null && before >= key) {
                refuse("in canonical order, each key once", "another key at offset $place")
            }
            before = key
            expect(':')
            found[key] = value(depth)
        } while (take(','))
        expect('}')
        return found
    }

    private fun listOf(depth: Int): List<Any?> {
        val found = ArrayList<Any?>()
        if (take(']')) return found
        do found.add(value(depth)) while (take(','))
        expect(']')
        return found
    }

    private fun string(): String {
        expect('"')
        val start = at
        while (peek() != '"') at++
        return String(data, start, at++ - start, Charsets.US_ASCII)
    }

    private fun integer(): Long {
        val start = at
        while (at < data.size && data[at] in DIGITS) at++
        val digits = at - start
        val number = if (digits > MAX_DIGITS) LARGEST + 1 else String(data, start, digits, Charsets.US_ASCII).toLong()
        if (number > LARGEST) refuse("integers from 0 to $LARGEST", "$digits digits at offset $start")
        if (digits > 1 && data[start] == ZERO) {
            refuse("integers without leading zero", "a leading zero at offset $start")
        }
        return number
    }

    private fun literal(): Any? {
        if (allowNull && data.size - at >= 4 && String(data, at, 4, Charsets.US_ASCII) == "null") {
            at += 4
            return null
        }
        refuse(
            "objects, lists, strings and whole numbers from 0, with no space between",
            "something else at offset $at",
        )
    }

    /** The next byte, which must be there and printable ASCII without backslash. */
    private fun peek(): Char {
        if (at == data.size) refuse("JSON", "an end at offset $at")
        val byte = data[at].toInt()
        if (byte < ' '.code || byte > '~'.code || byte == '\\'.code) {
            refuse("printable ASCII without backslash", "byte ${byte and 255} at offset $at")
        }
        return byte.toChar()
    }

    private fun take(mark: Char): Boolean = (peek() == mark).also { if (it) at++ }

    private fun expect(mark: Char) {
        if (!take(mark)) refuse("JSON", "something else than '$mark' at offset $at")
    }

    private fun refuse(expected: String, got: String): Nothing = throw CanonicalTextException(expected, got)

    private companion object {
        const val ZERO = '0'.code.toByte()
        val DIGITS = ZERO..'9'.code.toByte()
    }
}
