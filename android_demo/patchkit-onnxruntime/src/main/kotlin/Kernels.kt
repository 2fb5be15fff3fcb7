package patchdeploy.onnxruntime

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtException
import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.slots.makeKernelsUnsigned

/**
 * The form in which ONNX Runtime multiplies kernels: int8, as a base.onnx has them, or uint8 with zero
 * point 128. On x86-64 without VNNI its uint8 by int8 products are added with saturation at 16 bits,
 * and scores come out wrong without a word.
 */
public enum class Kernels {
    SIGNED, UNSIGNED;

    internal val text: String = name.lowercase()
}

/** Whether a form gives the known answers here; asked once a process. */
private val EXACT: Map<Kernels, Lazy<Boolean>> = Kernels.entries.associateWith { lazy { isExact(it) } }

/** @throws RuntimeBackendException [forced], or (null) none of the forms, is exact on this processor. */
internal fun chooseKernels(forced: Kernels?): Kernels {
    val tried = if (forced == null) Kernels.entries else listOf(forced)
    return tried.find { EXACT.getValue(it).value } ?: throw RuntimeBackendException(
        "onnxruntime ${environment.version} gives wrong products with ${tried.joinToString(" and ") { it.text }} " +
            "kernels on this processor; scores must be exact; use another version of it, or LiteRT",
    )
}

private fun isExact(form: Kernels): Boolean {
    val model = probeModel().also { if (form == Kernels.UNSIGNED) makeKernelsUnsigned(it) }
    val image = ByteBuffer.allocateDirect(PROBE_SIDE * PROBE_SIDE * PROBE_CHANNELS).order(ByteOrder.nativeOrder())
    for (k in 0 until image.capacity()) image.put(k, PROBE_PIXEL.toByte())
    val shape = longArrayOf(1, PROBE_SIDE.toLong(), PROBE_SIDE.toLong(), PROBE_CHANNELS.toLong())
    try {
        openSession(model, threads = 1).use { session ->
            OnnxTensor.createTensor(environment, image, shape, OnnxJavaType.UINT8).use { input ->
                session.run(mapOf("image" to input)).use { found ->
                    return found.all { (_, tensor) -> holdsAnswers(tensor as OnnxTensor) }
                }
            }
        }
    } catch (error: OrtException) {
        throw RuntimeBackendException(
            "onnxruntime ${environment.version} does not run quantised convolutions (${error.message}); a bundle's " +
                ".onnx is made of them; use another version of it, or LiteRT",
            error,
        )
    }
}

/** Channels take turns: the exact answers of kernels +127 and -127. */
private fun holdsAnswers(tensor: OnnxTensor): Boolean {
    val channels = tensor.info.shape.last().toInt()
    val found = tensor.byteBuffer
    return (0 until found.remaining()).all { k ->
        val expected = if (k % channels % 2 == 0) 128 + PROBE_STEPS else 128 - PROBE_STEPS
        (found.get(k).toInt() and 255) == expected
    }
}
