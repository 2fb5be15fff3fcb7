package patchdeploy.litert

import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import org.bytedeco.javacpp.BytePointer
import org.bytedeco.javacpp.FloatPointer
import org.bytedeco.tensorflowlite.TfLiteInterpreter
import org.bytedeco.tensorflowlite.TfLiteModel
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterAllocateTensors
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterCreate
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterDelete
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterGetInputTensor
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterGetOutputTensor
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterInvoke
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterOptionsAddDelegate
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterOptionsCreate
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterOptionsDelete
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteInterpreterOptionsSetNumThreads
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteModelCreate
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteModelDelete
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteTensorByteSize
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteTensorData
import org.bytedeco.tensorflowlite.global.tensorflowlite.TfLiteVersion
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.runtime.PRIVATE_BYTES_PER_MODEL_BYTE
import patchdeploy.patchkit.runtime.Resident
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.PatchValues

/**
 * LiteRT (TensorFlow Lite's C API) over a base.tflite: one interpreter for each resident, over a
 * private copy of the base that shows one resolution's signature alone.
 *
 * The file's int8 operators run in XNNPACK, as in Python: with the runtime's own int8 kernels scores
 * are up to 8 LSB away ([XnnpackDelegate]).
 *
 * @param base a .tflite.
 * @param threads of one inference.
 */
public class LiteRtBackend(private val base: BaseFile, private val threads: Int = 1) : Backend {
    override val name: String get() = "LiteRT"
    override val version: String get() = TfLiteVersion().string
    override val format: String get() = "tflite"

    init {
        require(threads >= 1) { "$threads threads; there must be 1 or more" }
    }

    override fun load(values: PatchValues, resolution: Int): Resident {
        val model = BytePointer(base.size.toLong())
        try {
            base.renderInto(model.asByteBuffer(), values, resolution)
        } catch (error: PatchkitException) {
            model.close()
            throw error
        }
        return LiteRtResident(model, threads)
    }
}

/**
 * @param model a whole .tflite outside of the JVM's heap, which must stay as it is while the
 *   interpreter lives; it is freed with it.
 */
private class LiteRtResident(private val model: BytePointer, threads: Int) : Resident {
    override val residentBytes: Long = PRIVATE_BYTES_PER_MODEL_BYTE * model.capacity()
    private val lock = ReentrantLock()
    private val delegate = XnnpackDelegate(threads)
    private var native: TfLiteModel? = null
    private var interpreter: TfLiteInterpreter? = null

    init {
        try {
            open(threads)
        } catch (error: RuntimeBackendException) {
            close()
            throw error
        }
    }

    private fun open(threads: Int) {
        val whole = TfLiteModelCreate(model, model.capacity()) ?: throw refused("the file")
        native = whole
        val options = TfLiteInterpreterOptionsCreate()
        try {
            TfLiteInterpreterOptionsSetNumThreads(options, threads)
            TfLiteInterpreterOptionsAddDelegate(options, delegate.asDelegate())
            interpreter = TfLiteInterpreterCreate(whole, options) ?: throw refused("an operator")
        } finally {
            TfLiteInterpreterOptionsDelete(options)
        }
        if (TfLiteInterpreterAllocateTensors(interpreter) != OK) throw refused("its tensors")
    }

    private fun refused(what: String) = RuntimeBackendException(
        "LiteRT refused $what of a model of ${model.capacity()} bytes; it must be a bundle that this version " +
            "runs; export the bundle again or upgrade the runtime",
    )

    override fun run(image: ByteArray): FloatArray = lock.withLock {
        val live = interpreter ?: throw RuntimeBackendException("the model was closed; load it again")
        val input = TfLiteInterpreterGetInputTensor(live, 0)
        if (TfLiteTensorByteSize(input) != image.size.toLong()) {
            throw RuntimeBackendException(
                "an image of ${image.size} bytes; the model takes ${TfLiteTensorByteSize(input)}: uint8 RGB; " +
                    "resize it with resizeImage to the resident's resolution",
            )
        }
        BytePointer(TfLiteTensorData(input)).put(image, 0, image.size)
        demand(TfLiteInterpreterInvoke(live))
        val output = TfLiteInterpreterGetOutputTensor(live, 0)
        val scores = FloatArray((TfLiteTensorByteSize(output) / Float.SIZE_BYTES).toInt())
        FloatPointer(TfLiteTensorData(output)).get(scores)
        scores
    }

    private fun demand(status: Int) {
        if (status != OK) throw RuntimeBackendException("LiteRT failed with status $status; load the model again")
    }

    override fun close(): Unit = lock.withLock {
        interpreter?.let { TfLiteInterpreterDelete(it) }
        interpreter = null
        delegate.close()
        native?.let { TfLiteModelDelete(it) }
        native = null
        model.close()
    }

    private companion object {
        const val OK = 0
    }
}
