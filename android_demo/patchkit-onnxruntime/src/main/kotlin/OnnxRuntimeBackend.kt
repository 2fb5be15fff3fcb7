package patchdeploy.onnxruntime

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtLoggingLevel
import ai.onnxruntime.OrtSession
import ai.onnxruntime.OnnxJavaType
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.concurrent.locks.ReentrantReadWriteLock
import kotlin.concurrent.read
import kotlin.concurrent.write
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.runtime.PRIVATE_BYTES_PER_MODEL_BYTE
import patchdeploy.patchkit.runtime.Resident
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.PatchValues
import patchdeploy.patchkit.slots.makeKernelsUnsigned

private const val INPUT = "image"

/**
 * ONNX Runtime over a base.onnx: one session for each resident, of a copy of the base with the patch
 * laid over it. The file is written with the runtime's own operators, so graph optimisation is off.
 *
 * Where the runtime's uint8 by int8 products are wrong, as on x86-64 without VNNI, kernels are made
 * uint8 ([Kernels]): the same scores, slower.
 *
 * @param base a .onnx.
 * @param threads of one inference.
 * @param kernels null: the fastest form that is exact on this processor.
 * @throws RuntimeBackendException no form is exact here, or [kernels] is not.
 */
public class OnnxRuntimeBackend(
    private val base: BaseFile,
    private val threads: Int = 1,
    kernels: Kernels? = null,
) : Backend {
    override val name: String get() = "ONNX Runtime"
    override val version: String get() = environment.version
    override val format: String get() = "onnx"

    /** The form in which kernels are run. */
    public val kernels: Kernels

    init {
        require(threads >= 1) { "$threads threads; there must be 1 or more" }
        this.kernels = chooseKernels(kernels)
    }

    /** A file serves every resolution; the session takes images of [resolution] alone. */
    override fun load(values: PatchValues, resolution: Int): Resident {
        val model = ByteArray(base.size)
        base.renderInto(ByteBuffer.wrap(model), values, resolution)
        if (kernels == Kernels.UNSIGNED) makeKernelsUnsigned(model)
        return OnnxRuntimeResident(openSession(model, threads), model.size, resolution)
    }
}

/** The process's environment, its telemetry off. */
internal val environment: OrtEnvironment by lazy {
    switchTelemetryOff()
    OrtEnvironment.getEnvironment(OrtLoggingLevel.ORT_LOGGING_LEVEL_ERROR).also { it.setTelemetry(false) }
}

/** @throws RuntimeBackendException the runtime refuses [model]. */
internal fun openSession(model: ByteArray, threads: Int): OrtSession = try {
    OrtSession.SessionOptions().use { options ->
        options.setIntraOpNumThreads(threads)
        options.setInterOpNumThreads(1)
        options.setOptimizationLevel(OrtSession.SessionOptions.OptLevel.NO_OPT)
        environment.createSession(model, options)
    }
} catch (error: OrtException) {
    throw RuntimeBackendException(
        "onnxruntime ${environment.version} refused the model of ${model.size} bytes (${error.message}); it must " +
            "be a bundle that this version runs; export the bundle again or upgrade the runtime",
        error,
    )
}

/** A session runs any number of inferences at once; it is closed after those that run. */
private class OnnxRuntimeResident(session: OrtSession, modelBytes: Int, private val px: Int) : Resident {
    override val residentBytes: Long = PRIVATE_BYTES_PER_MODEL_BYTE.toLong() * modelBytes
    private val lock = ReentrantReadWriteLock()
    private var session: OrtSession? = session

    override fun run(image: ByteArray): FloatArray = lock.read {
        val live = session ?: throw RuntimeBackendException("the model was closed; load it again")
        if (image.size != px * px * 3) {
            throw RuntimeBackendException(
                "an image of ${image.size} bytes; the model takes ${px * px * 3}: uint8 RGB; resize it with " +
                    "resizeImage to the resident's resolution",
            )
        }
        try {
            infer(live, image)
        } catch (error: OrtException) {
            throw RuntimeBackendException("onnxruntime failed (${error.message}); load the model again", error)
        }
    }

    private fun infer(live: OrtSession, image: ByteArray): FloatArray {
        val pixels = ByteBuffer.allocateDirect(image.size).order(ByteOrder.nativeOrder())
        pixels.duplicate().put(image)
        val shape = longArrayOf(1, px.toLong(), px.toLong(), 3)
        return OnnxTensor.createTensor(environment, pixels, shape, OnnxJavaType.UINT8).use { input ->
            live.run(mapOf(INPUT to input)).use { found ->
                val scores = (found[0] as OnnxTensor).floatBuffer
                FloatArray(scores.remaining()).also(scores::get)
            }
        }
    }

    override fun close(): Unit = lock.write {
        session?.close()
        session = null
    }
}
