package patchdeploy.onnxruntime

import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder

/**
 * A model whose answers are known, to see whether a processor multiplies kernels exactly: the bytes
 * that Python's patchdeploy_onnx.probe makes, which says why it is as it is. Field numbers are those
 * of onnx/onnx.proto3.
 */

internal const val PROBE_SIDE = 8
internal const val PROBE_CHANNELS = 32
internal const val PROBE_PIXEL = 255

/** Every convolution's exact result is 128 + or - this. */
internal const val PROBE_STEPS = 100
private const val KERNEL = 127
private const val FLOAT = 1
private const val UINT8 = 2
private const val INT8 = 3

private class ProbeConv(val name: String, val channels: Int, val kernel: Int, val stride: Int = 1, val groups: Int = 1) {
    val fanIn: Int get() = PROBE_CHANNELS / groups
    val rowLength: Int get() = kernel * kernel * fanIn
    val side: Int get() = (PROBE_SIDE - kernel) / stride + 1
}

private val CONVS = listOf(
    ProbeConv("matrix", 24, 1),
    ProbeConv("vector", 24, 1, stride = PROBE_SIDE),
    ProbeConv("narrow", 5, 1),
    ProbeConv("window", 16, 3),
    ProbeConv("grouped", 16, 3, groups = 2),
    ProbeConv("depthwise", PROBE_CHANNELS, 3, groups = PROBE_CHANNELS),
)

/** Input "image" uint8 [1, 8, 8, 32]; a uint8 output for each convolution. */
internal fun probeModel(): ByteArray = message {
    integer(1, 8) // IR version
    field(7, message { graph() })
    field(8, message { text(1, ""); integer(2, 15) })
    field(8, message { text(1, "com.microsoft"); integer(2, 1) })
}

private fun Wire.graph() {
    for (conv in CONVS) field(1, message { node(conv) })
    text(2, "probe")
    tensor("one", FLOAT, emptyList(), little(1f))
    tensor("low", UINT8, emptyList(), byteArrayOf(0))
    tensor("middle", UINT8, emptyList(), byteArrayOf(-128))
    tensor("kernel_zero_point", INT8, emptyList(), byteArrayOf(0))
    for (conv in CONVS) {
        val rows = ByteArray(conv.channels * conv.rowLength) { k ->
            (if (k / conv.rowLength % 2 == 0) KERNEL else -KERNEL).toByte()
        }
        tensor("${conv.name}.kernel", INT8, listOf(conv.channels, conv.fanIn, conv.kernel, conv.kernel), rows)
        val step = PROBE_PIXEL.toDouble() * KERNEL * conv.rowLength / PROBE_STEPS
        tensor("${conv.name}.step", FLOAT, emptyList(), little(step.toFloat()))
    }
    field(11, message { value("image", PROBE_SIDE, PROBE_CHANNELS) })
    for (conv in CONVS) field(12, message { value(conv.name, conv.side, conv.channels) })
}

/** QLinearConv, channels last; input and kernels of scale 1, an output of scale "step". */
private fun Wire.node(conv: ProbeConv) {
    val inputs = listOf(
        "image", "one", "low", "${conv.name}.kernel", "one", "kernel_zero_point", "${conv.name}.step", "middle",
    )
    for (input in inputs) text(1, input)
    text(2, conv.name)
    text(4, "QLinearConv")
    integers("kernel_shape", conv.kernel, conv.kernel)
    integers("strides", conv.stride, conv.stride)
    integer("group", conv.groups)
    integer("channels_last", 1)
    text(7, "com.microsoft")
}

private fun Wire.integers(name: String, vararg values: Int): Unit = field(5, message {
    text(1, name)
    for (value in values) integer(8, value)
    integer(20, 7)
})

private fun Wire.integer(name: String, value: Int): Unit = field(5, message {
    text(1, name)
    integer(3, value)
    integer(20, 2)
})

private fun Wire.tensor(name: String, type: Int, dims: List<Int>, data: ByteArray): Unit = field(5, message {
    for (dim in dims) integer(1, dim)
    integer(2, type)
    text(8, name)
    field(9, data)
})

private fun Wire.value(name: String, side: Int, channels: Int) {
    text(1, name)
    val shape = message { for (dim in listOf(1, side, side, channels)) field(1, message { integer(1, dim) }) }
    field(2, message { field(1, message { integer(1, UINT8); field(2, shape) }) })
}

private fun little(value: Float): ByteArray =
    ByteBuffer.allocate(Float.SIZE_BYTES).order(ByteOrder.LITTLE_ENDIAN).putFloat(value).array()

private fun message(write: Wire.() -> Unit): ByteArray = Wire().apply(write).bytes

/** A protobuf message on its way; https://protobuf.dev/programming-guides/encoding. */
private class Wire {
    private val out = ByteArrayOutputStream()
    val bytes: ByteArray get() = out.toByteArray()

    fun integer(number: Int, value: Int) {
        varint(number shl 3)
        varint(value)
    }

    fun field(number: Int, content: ByteArray) {
        varint(number shl 3 or 2)
        varint(content.size)
        out.write(content)
    }

    fun text(number: Int, content: String): Unit = field(number, content.toByteArray())

    private fun varint(value: Int) {
        var rest = value
        while (rest >= 128) {
            out.write(rest and 127 or 128)
            rest = rest shr 7
        }
        out.write(rest)
    }
}
