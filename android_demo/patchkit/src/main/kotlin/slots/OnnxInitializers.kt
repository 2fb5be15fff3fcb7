package patchdeploy.patchkit.slots

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.FileFormatException

/**
 * The protobuf wire format of a ModelProto, as far as slots need it: where each initialiser's raw
 * data lies. Field numbers are those of onnx/onnx.proto3; the encoding is that of
 * https://protobuf.dev/programming-guides/encoding.
 */

private const val VARINT = 0
private const val FIXED64 = 1
private const val BYTES = 2
private const val FIXED32 = 5
private const val MODEL_GRAPH = 7L
private const val GRAPH_INITIALIZER = 5L
private const val TENSOR_TYPE = 2L
private const val TENSOR_NAME = 8L
private const val TENSOR_RAW_DATA = 9L
private const val TYPE_INT8 = 3
private const val TYPE_UINT8 = 2

/** A run of bytes, from [start] up to [end]. */
internal data class Span(val start: Int, val end: Int) {
    val lengthBytes: Int get() = end - start
}

private class WireField(val key: Long, val content: Span)

/**
 * Where the raw data of every initialiser lies, by name.
 *
 * @throws FileFormatException truncated, or not a ModelProto.
 */
internal fun findInitializers(data: Bytes): Map<String, Span> {
    val found = LinkedHashMap<String, Span>()
    for (tensor in tensors(data)) {
        val name = tensor[TENSOR_NAME] ?: continue
        found[String(data.slice(name.start, name.end).copy(), Charsets.UTF_8)] = tensor[TENSOR_RAW_DATA] ?: continue
    }
    return found
}

/**
 * Make the int8 kernels of a .onnx uint8 ones of zero point 128, in place: q + 128 flips the top bit
 * of each byte, and the type changes; nothing moves. For x86-64 without VNNI, after the slots are
 * set (docs/bundle-format.md, "Without the Engine").
 *
 * @throws FileFormatException truncated, or not a ModelProto.
 */
public fun makeKernelsUnsigned(model: ByteArray) {
    for (tensor in tensors(Bytes(model))) {
        val kind = tensor[TENSOR_TYPE] ?: continue
        if (kind.lengthBytes != 1 || model[kind.start].toInt() != TYPE_INT8) continue
        model[kind.start] = TYPE_UINT8.toByte()
        val raw = tensor[TENSOR_RAW_DATA] ?: continue
        for (at in raw.start until raw.end) model[at] = (model[at].toInt() xor 128).toByte()
    }
}

/** By field number the content, for every initialiser; of a field that comes again the last. */
private fun tensors(data: Bytes): List<Map<Long, Span>> =
    submessages(data, listOf(Span(0, data.size)), MODEL_GRAPH)
        .let { submessages(data, it, GRAPH_INITIALIZER) }
        .map { tensor -> fields(data, tensor).associate { (it.key ushr 3) to it.content } }

private fun submessages(data: Bytes, spans: List<Span>, field: Long): List<Span> =
    spans.flatMap { fields(data, it) }.filter { it.key == (field shl 3 or BYTES.toLong()) }.map { it.content }

/** Every field of the message at [span]; those of fixed size are skipped. */
private fun fields(data: Bytes, span: Span): List<WireField> {
    val found = ArrayList<WireField>()
    var position = span.start
    while (position < span.end) {
        val key = Varint.read(data, position, span.end)
        val type = (key.value and 7).toInt()
        val content = when (type) {
            VARINT -> Span(key.end, Varint.read(data, key.end, span.end).end)
            FIXED64, FIXED32 -> run(key.end, if (type == FIXED64) 8 else 4, span.end)
            BYTES -> Varint.read(data, key.end, span.end).let { run(it.end, it.value, span.end) }
            else -> throw broken(key.end, "wire type $type")
        }
        if (type == VARINT || type == BYTES) found.add(WireField(key.value, content))
        position = content.end
    }
    return found
}

private fun run(start: Int, length: Long, end: Int): Span {
    if (length < 0 || length > end - start) throw broken(end, "the end of a message inside a field")
    return Span(start, start + length.toInt())
}

private class Varint(val value: Long, val end: Int) {
    companion object {
        fun read(data: Bytes, start: Int, end: Int): Varint {
            var value = 0L
            for (k in 0 until minOf(10, end - start)) {
                val byte = data[start + k]
                value = value or ((byte.toLong() and 127) shl (7 * k))
                if (byte < 128) return Varint(value, start + k + 1)
            }
            throw broken(end, "an integer without an end")
        }
    }
}

private fun broken(position: Int, found: String) = FileFormatException(
    "the .onnx bytes hold $found at byte $position; a model is a whole protobuf ModelProto; copy the " +
        "file again or export it again",
)
