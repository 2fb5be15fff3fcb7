package patchdeploy.patchkit.patchfile

import java.util.zip.DataFormatException
import java.util.zip.Inflater
import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode

/**
 * The parts of a payload: nine in a fixed order and then optional ones, each stored or deflated by
 * itself.
 *
 * In: a payload and how long each part may be. Out: the parts' contents by name. How long a part
 * may be is known before a byte of it is inflated, so hostile bytes cost no more memory than a
 * patch of the same base may.
 */
internal val PARTS = listOf(
    "labels", "notes", "steps", "activations", "scales", "biases", "kernels", "head", "golden",
)

/** By number; only a file of encoding "parts-2" has them. */
internal val OPTIONAL_PARTS = mapOf(PARTS.size to "cascade")

/** Optional parts from this number on may be passed over by a reader that does not know them. */
private const val FIRST_IGNORED = 128
private const val PREFIX_BYTES = 10
private const val STORED = 0
private const val DEFLATED = 1
private const val MAX_PLANES = 5

/** Deflate makes at most so many bytes of one: 258 for two bits (RFC 1951). */
private const val MOST_EXPANSION = 1032L

/**
 * Every part of [payload] by name; stored ones are not copied.
 *
 * @param mostBytes by part, the greatest length that it can have; a longer one is not inflated.
 * @param optional the payload's encoding is "parts-2". Parts that a reader may pass over and does
 *   not know are left out.
 * @throws PatchRefusedException codes "parts" (order, lengths) and "inflate".
 */
internal fun readParts(payload: Bytes, mostBytes: Map<String, Long>, optional: Boolean): Map<String, Bytes> {
    val contents = LinkedHashMap<String, Bytes>()
    for (part in prefixes(payload, optional)) {
        val content = readContent(payload, part, part.name?.let(mostBytes::getValue))
        if (part.name != null) contents[part.name] = content
    }
    return contents
}

/**
 * Length of each part as it stands in [payload], its prefix included; nothing is inflated.
 *
 * @throws PatchRefusedException code "parts".
 */
internal fun partLengths(payload: Bytes, optional: Boolean): Map<String, Int> {
    val lengths = LinkedHashMap<String, Int>()
    for (part in prefixes(payload, optional)) {
        checkStored(payload, part)
        lengths[part.shown] = PREFIX_BYTES + part.stored.toInt()
    }
    return lengths
}

/** A part as its prefix says; [name] is null for one that may be passed over and is not known. */
private class Part(val number: Int, val method: Int, val length: Long, val start: Int, val stored: Long) {
    val name: String? = PARTS.getOrNull(number) ?: OPTIONAL_PARTS[number]
    val shown: String = name ?: "part $number"
    val end: Long get() = start + stored
}

/** The parts in their order, each before its bytes are looked at, to the payload's exact end. */
private fun prefixes(payload: Bytes, optional: Boolean): Sequence<Part> = sequence {
    var place = 0L
    for ((number, name) in PARTS.withIndex()) {
        val part = readPrefix(payload, place, name, number..number)
        yield(part)
        place = part.end
    }
    var before = PARTS.size - 1
    while (optional && (place < payload.size || before < PARTS.size)) {
        val part = readPrefix(payload, place, "optional part", before + 1..255)
        yield(part)
        place = part.end
        before = part.number
    }
    if (place != payload.size.toLong()) throw refuse("payload", "$place bytes, those of its parts", payload.size)
}

/** The part at [place], whose number must be one of [numbers] and known or above 127. */
private fun readPrefix(payload: Bytes, place: Long, what: String, numbers: IntRange): Part {
    if (payload.size - place < PREFIX_BYTES) {
        throw refuse(what, "a part of $PREFIX_BYTES bytes and more", payload.size - place)
    }
    val at = place.toInt()
    val number = payload[at]
    val method = payload[at + 1]
    if (number !in numbers || method > DEFLATED) {
        throw refuse(what, "part ${numbers.first} to ${numbers.last} by method 0 or 1", "$number by $method")
    }
    if (number >= PARTS.size && number < FIRST_IGNORED && number !in OPTIONAL_PARTS) {
        throw refuse(what, "${OPTIONAL_PARTS.keys.joinToString()}, or $FIRST_IGNORED on", number)
    }
    return Part(number, method, payload.u32(at + 2), at + PREFIX_BYTES, payload.u32(at + 6))
}

private fun checkStored(payload: Bytes, part: Part) {
    if (part.end > payload.size || (part.method == STORED && part.stored != part.length)) {
        throw refuse("${part.shown} length", "inside the payload", part.stored)
    }
}

/** What a part holds; of one that is not known only the frame is looked at. */
private fun readContent(payload: Bytes, part: Part, most: Long?): Bytes {
    if (most != null && part.length > most) {
        throw refuse("${part.shown} length", "at most $most", part.length, RefusalCode.INFLATE)
    }
    checkStored(payload, part)
    val body = payload.slice(part.start, part.end.toInt())
    return if (part.name == null || part.method == STORED) body else inflate(part.shown, body, part.length)
}

/** Exactly [length] bytes, from a stream that ends exactly where [body] does. */
private fun inflate(name: String, body: Bytes, length: Long): Bytes {
    if (length > MOST_EXPANSION * body.size) throw broken(name, length, "${body.size} bytes")
    val content = ByteArray(length.toInt())
    val inflater = Inflater(true)
    try {
        body.within(inflater::setInput)
        var at = 0
        while (at < content.size) {
            val count = inflater.inflate(content, at, content.size - at)
            if (count == 0) throw broken(name, length, "$at bytes")
            at += count
        }
        val more = inflater.inflate(ByteArray(1))
        if (more > 0 || !inflater.finished() || inflater.remaining > 0) {
            throw broken(name, length, "another stream")
        }
    } catch (error: DataFormatException) {
        throw broken(name, length, "no raw deflate stream", error)
    } finally {
        inflater.end()
    }
    return Bytes(content)
}

private fun broken(name: String, length: Long, found: String, cause: Throwable? = null) =
    refuse(name, "$length bytes from the whole part", found, RefusalCode.INFLATE, cause)

/**
 * [count] integers that [content] holds as byte planes from [place] on, to its exact end: the number
 * of planes, 0 to 5, then the lowest byte of every integer, then the next byte of every one; a sign
 * is folded into the lowest bit.
 *
 * @throws PatchRefusedException code "parts".
 */
internal fun readPlanes(name: String, content: Bytes, place: Int, count: Int): LongArray {
    val planes = if (place < content.size) content[place] else MAX_PLANES + 1
    if (planes > MAX_PLANES || content.size - place - 1L != planes.toLong() * count) {
        throw refuse(name, "0 to $MAX_PLANES planes of $count bytes", "$planes in ${content.size - place} bytes")
    }
    val numbers = LongArray(count)
    for (plane in 0 until planes) {
        val start = place + 1 + plane * count
        for (k in 0 until count) numbers[k] = numbers[k] or (content[start + k].toLong() shl (8 * plane))
    }
    for (k in 0 until count) numbers[k] = (numbers[k] ushr 1) xor -(numbers[k] and 1)
    return numbers
}

/** A payload that breaks a rule. */
internal fun refuse(
    field: String,
    expected: String,
    got: Any?,
    code: RefusalCode = RefusalCode.PARTS,
    cause: Throwable? = null,
) = PatchRefusedException(code, field, expected, got.toString(), "pack the task again with its base", cause)
