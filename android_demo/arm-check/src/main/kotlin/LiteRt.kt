package patchdeploy.armcheck

import com.github.unidbg.AndroidEmulator
import com.github.unidbg.Emulator
import com.github.unidbg.arm.Arm64Svc
import com.github.unidbg.arm.backend.Unicorn2Factory
import com.github.unidbg.linux.android.AndroidEmulatorBuilder
import com.github.unidbg.linux.android.AndroidResolver
import com.github.unidbg.pointer.UnidbgPointer
import java.io.File

/** TFLITE_XNNPACK_DELEGATE_FLAG_QS8 | QU8, and where TfLiteXNNPackDelegateOptions has them in 2.21. */
private const val INT8_OPERATORS = 3
private const val FLAGS_OFFSET = 8L
private const val OPTIONS_BYTES = 256

/** The bionic that unidbg brings: of Android 6.0 (API 23). */
private const val API = 23

/**
 * TensorFlow Lite's C API in an emulated arm64 Android process.
 *
 * In: the library, and a root folder whose /proc/cpuinfo is of an ARM core. Out: interpreters with
 * XNNPACK's int8 operators on, in one thread, as patchkit-litert makes them.
 */
class LiteRt(library: File, root: File) : AutoCloseable {
    private val emulator: AndroidEmulator = AndroidEmulatorBuilder.for64Bit()
        .setProcessName("arm-check").setRootDir(root)
        .addBackendFactory(Unicorn2Factory(false)).build()
    private val module = run {
        emulator.memory.setLibraryResolver(AndroidResolver(API))
        emulator.memory.addHookListener { memory, _, symbol, _ ->
            if (symbol == "prctl") memory.registerSvc(Refused).peer else 0
        }
        emulator.loadLibrary(library, true)
    }

    val version: String = at(call("TfLiteVersion")).getString(0)

    /** An interpreter of [model]; the bytes stay in the emulated memory as long as this. */
    fun interpreter(model: ByteArray): Interpreter = Interpreter(model)

    inner class Interpreter(model: ByteArray) {
        private val handle: UnidbgPointer

        init {
            val options = at(call("TfLiteInterpreterOptionsCreate"))
            call("TfLiteInterpreterOptionsSetNumThreads", options, 1)
            call("TfLiteInterpreterOptionsAddDelegate", options, delegate())
            val made = at(call("TfLiteModelCreate", copy(model), model.size.toLong()))
            handle = at(call("TfLiteInterpreterCreate", made, options))
            succeed("TfLiteInterpreterAllocateTensors", handle)
        }

        private val input = at(call("TfLiteInterpreterGetInputTensor", handle, 0))
        private val output = at(call("TfLiteInterpreterGetOutputTensor", handle, 0))
        private val scores = FloatArray((call("TfLiteTensorByteSize", output) / Float.SIZE_BYTES).toInt())
        private val outside = block(scores.size * Float.SIZE_BYTES)

        /** uint8 RGB [px, px, 3] -> float32 scores, spare rows of the head included. */
        fun run(image: ByteArray): FloatArray {
            val inside = block(image.size)
            inside.write(0, image, 0, image.size)
            succeed("TfLiteTensorCopyFromBuffer", input, inside, image.size.toLong())
            succeed("TfLiteInterpreterInvoke", handle)
            succeed("TfLiteTensorCopyToBuffer", output, outside, scores.size.toLong() * Float.SIZE_BYTES)
            return outside.getFloatArray(0, scores.size)
        }
    }

    private fun delegate(): UnidbgPointer {
        val options = block(OPTIONS_BYTES)
        options.write(0, ByteArray(OPTIONS_BYTES), 0, OPTIONS_BYTES)
        options.setInt(0, 1)
        options.setInt(FLAGS_OFFSET, INT8_OPERATORS)
        val made = at(call("TfLiteXNNPackDelegateCreate", options))
        val flags = call("TfLiteXNNPackDelegateGetFlags", made).toInt()
        check(flags == INT8_OPERATORS) { "the delegate has flags $flags; it must have $INT8_OPERATORS" }
        return made
    }

    private fun call(name: String, vararg arguments: Any?): Long =
        module.callFunction(emulator, name, *arguments).toLong()

    private fun succeed(name: String, vararg arguments: Any?) {
        val status = call(name, *arguments).toInt()
        check(status == 0) { "$name returned $status; it must return 0" }
    }

    private fun copy(bytes: ByteArray): UnidbgPointer = block(bytes.size).also { it.write(0, bytes, 0, bytes.size) }

    private fun block(size: Int): UnidbgPointer = emulator.memory.malloc(size, true).pointer

    private fun at(address: Long): UnidbgPointer =
        checkNotNull(UnidbgPointer.pointer(emulator, address)) { "a call returned no object" }

    override fun close() = emulator.close()
}

/** prctl, which unidbg lacks and the library asks for names of threads: "not here" will do. */
private object Refused : Arm64Svc("prctl") {
    override fun handle(emulator: Emulator<*>): Long = -1
}
