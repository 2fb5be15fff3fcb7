package patchdeploy.patchkit.coding

import java.nio.ByteBuffer
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.json.parseDocument
import patchdeploy.patchkit.select

/**
 * A safetensors file: a length, so many bytes of JSON, then arrays without gap or overlap to the
 * exact end.
 *
 * In: bytes. Out: the text under `patchdeploy` of its metadata and views of its arrays.
 */
private const val MAX_HEADER_BYTES = 64 shl 20
private const val MAX_LEVELS = 4
private const val PREFIX_BYTES = 8
private val ITEM_BYTES = mapOf("F32" to 4, "I8" to 1)

internal class TensorFile(
    val notes: String,
    private val entries: Map<String, Entry>,
    private val body: ByteBuffer,
    private val name: String,
) {
    class Entry(val dtype: String, val length: Long, val first: Long, val end: Long)

    val names: Set<String> get() = entries.keys

    /**
     * The bytes of a flat array.
     *
     * @throws FileFormatException it is not there, or of another type or length.
     */
    fun array(wanted: String, dtype: String, length: Int): ByteBuffer {
        val entry = entries[wanted]
        if (entry == null || entry.dtype != dtype || entry.length != length.toLong()) {
            val found = entry?.run { "${this.dtype} [${this.length}]" } ?: "missing"
            throw broken(name, "with $wanted $found", "$dtype [$length]")
        }
        val view = body.duplicate()
        select(view, entry.first.toInt(), entry.end.toInt())
        return view.slice()
    }
}

/** @throws FileFormatException no such file, or another array type than F32 and I8, or no vector. */
internal fun readTensors(data: ByteArray, name: String): TensorFile {
    val prefix = ByteBuffer.wrap(data).order(java.nio.ByteOrder.LITTLE_ENDIAN)
    val header = if (data.size < PREFIX_BYTES) -1 else prefix.getLong(0)
    if (header !in 0..minOf(MAX_HEADER_BYTES, data.size - PREFIX_BYTES)) {
        throw broken(name, "of ${data.size} bytes that says its header has $header", "whole")
    }
    val start = PREFIX_BYTES + header.toInt()
    val text = data.copyOfRange(PREFIX_BYTES, start)
    val document = parseDocument(text, "$name, its header", MAX_HEADER_BYTES, MAX_LEVELS)
    val fields = document.table(Regex("(?s).*"), "a name", most = 16)
    val notes = fields["__metadata__"]?.keys("patchdeploy")?.get("patchdeploy")?.shortText(MAX_HEADER_BYTES)
        ?: throw broken(name, "without notes", "one with the text 'patchdeploy'")
    val entries = (fields - "__metadata__").mapValues { (_, one) ->
        val body = one.keys("dtype", "shape", "data_offsets")
        val (first, end) = body.getValue("data_offsets").items(2, 2).map { it.integer(0, Int.MAX_VALUE.toLong()) }
        val dtype = body.getValue("dtype").text(Regex("F32|I8"), "F32 or I8")
        TensorFile.Entry(dtype, body.getValue("shape").items(1, 1)[0].integer(0, Int.MAX_VALUE.toLong()), first, end)
    }
    checkPlaces(name, entries.values.sortedWith(compareBy({ it.first }, { it.end })), data.size - start)
    return TensorFile(notes, entries, ByteBuffer.wrap(data, start, data.size - start).slice(), name)
}

private fun checkPlaces(name: String, entries: List<TensorFile.Entry>, bodyBytes: Int) {
    var at = 0L
    for (entry in entries) {
        if (entry.first != at || entry.end - entry.first != entry.length * ITEM_BYTES.getValue(entry.dtype)) {
            throw broken(name, "with an array at ${entry.first} to ${entry.end}", "arrays one after the other")
        }
        at = entry.end
    }
    if (at != bodyBytes.toLong()) throw broken(name, "with $bodyBytes bytes of arrays", "$at, as its header says")
}

private fun broken(name: String, found: String, rule: String) = FileFormatException(
    "$name is a file $found; it must be $rule; copy it again or export the base again",
)
