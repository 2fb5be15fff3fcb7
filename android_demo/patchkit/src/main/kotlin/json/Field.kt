package patchdeploy.patchkit.json

import java.math.BigInteger
import patchdeploy.patchkit.FileFormatException

/**
 * JSON of another's making: bounded before it is parsed, and read field by field.
 *
 * In: bytes. Out: a [Field] whose methods give values of one type and range, or the exception that
 * names the field, what it holds and the rule. Nothing is converted: true is no number, a text is
 * no number, 1.0 is no integer.
 */

/** Values of a document. */
private const val MAX_VALUES = 2_000_000
private const val MAX_DIGITS = 308
private const val MOST_SHOWN = 80
private const val REMEDY = "use the file that patchdeploy wrote: copy it again, or export it again"

internal typealias Refusal = (String) -> FileFormatException

/**
 * @property value as it was parsed.
 * @property name of the document and of the field in it, for errors.
 * @property refusal makes the exception that is thrown.
 */
internal class Field(val value: Any?, val name: String, private val refusal: Refusal) {
    /** Throws that this value breaks [rule]. */
    fun refuse(rule: String): Nothing = throw refusal("$name is ${shown(value)}; it must be $rule; $REMEDY")

    /** The fields of an object that has [known] and no other keys. */
    fun keys(vararg known: String): Map<String, Field> {
        val found = mapping()
        for (key in found.keys) {
            if (key !in known) inner(key, ": a key").refuse("one of ${known.joinToString()}")
        }
        for (key in known) {
            if (key !in found) inner("missing", ".$key").refuse("there")
        }
        return found.mapValues { (key, one) -> inner(one, ".$key") }
    }

    /** The fields of an object of [least] to [most] keys that match [pattern] in full. */
    fun table(pattern: Regex, rule: String, most: Int, least: Int = 0): Map<String, Field> {
        val found = mapping()
        if (found.size !in least..most) inner(found.size, ": its number of keys").refuse("$least to $most")
        for (key in found.keys) if (!pattern.matches(key)) inner(key, ": a key").refuse(rule)
        return found.mapValues { (key, one) -> inner(one, ".$key") }
    }

    /** The fields of a list of [least] to [most] values. */
    fun items(most: Int, least: Int = 0): List<Field> {
        val found = value as? List<*> ?: refuse("a list")
        if (found.size !in least..most) inner(found.size, ": its length").refuse("$least to $most")
        return found.mapIndexed { k, one -> inner(one, "[$k]") }
    }

    /** A text that matches [pattern] in full. */
    fun text(pattern: Regex, rule: String): String {
        val found = value as? String
        if (found == null || !pattern.matches(found)) refuse(rule)
        return found
    }

    /** Any text of [least] to [most] characters. */
    fun shortText(most: Int, least: Int = 0): String {
        val found = value as? String
        if (found == null || found.codePointCount(0, found.length) !in least..most) {
            refuse("a text of $least to $most characters")
        }
        return found
    }

    /** A whole number in [least, most]. */
    fun integer(least: Long, most: Long): Long {
        val found = value as? Long
        if (found == null || found !in least..most) refuse("an integer from $least to $most")
        return found
    }

    fun integer(least: Int, most: Int): Int = integer(least.toLong(), most.toLong()).toInt()

    /** A finite number in [least, most]. */
    fun number(least: Double, most: Double): Double {
        val found = when (value) {
            is Long, is Double, is BigInteger -> (value as Number).toDouble()
            else -> null
        }
        if (found == null || found !in least..most) refuse("a number from $least to $most")
        return found
    }

    fun flag(): Boolean = value as? Boolean ?: refuse("true or false")

    @Suppress("UNCHECKED_CAST") // objects come of JSON alone: every key is a string
    private fun mapping(): Map<String, Any?> = value as? Map<String, Any?> ?: refuse("an object")

    private fun inner(value: Any?, suffix: String): Field = Field(value, name + suffix, refusal)
}

private fun shown(value: Any?): String {
    val text = if (value is String) "'$value'" else value.toString()
    return if (text.length <= MOST_SHOWN) text else text.take(MOST_SHOWN - 3) + "..."
}

/**
 * The JSON document in [data]; time and memory grow with its length alone.
 *
 * @param name of the document, for errors.
 * @param refusal makes the exception that is thrown: too long, too deep, no JSON in UTF-8, a key
 *   twice, an integer of more than 308 digits, a number that is not finite, text that is no Unicode.
 */
internal fun parseDocument(
    data: ByteArray,
    name: String,
    mostBytes: Int,
    mostLevels: Int,
    refusal: Refusal = { FileFormatException(it) },
): Field {
    if (data.size > mostBytes) {
        throw refusal("$name is ${data.size} bytes long; it must be at most $mostBytes bytes; $REMEDY")
    }
    val values = data.count { it == ','.code.toByte() || it == '['.code.toByte() || it == '{'.code.toByte() }
    if (values > MAX_VALUES) {
        throw refusal("$name is of up to $values values; it must be of at most $MAX_VALUES; $REMEDY")
    }
    val rules = JsonRules(repeatedKeys = false, loneSurrogates = false, MAX_DIGITS, mostLevels)
    try {
        return Field(parseJson(data, rules), name, refusal)
    } catch (error: JsonException) {
        throw refusal(
            "$name is of ${data.size} bytes and does not parse (${error.message}); it must be the " +
                "whole JSON text that patchdeploy wrote; $REMEDY",
        )
    }
}
