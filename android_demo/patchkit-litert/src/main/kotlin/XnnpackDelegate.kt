package patchdeploy.litert

import com.sun.jna.Memory
import com.sun.jna.NativeLibrary
import com.sun.jna.Pointer
import org.bytedeco.javacpp.Loader
import org.bytedeco.tensorflowlite.TfLiteOpaqueDelegateStruct
import org.bytedeco.tensorflowlite.global.tensorflowlite
import patchdeploy.patchkit.RuntimeBackendException

/**
 * XNNPACK with its int8 operators on, by two flags that no Java option of LiteRT sets.
 *
 * In: threads. Out: a delegate of the C API, made by JNA. `TfLiteXNNPackDelegateOptions` begins, in
 * LiteRT 2.21, with int32 num_threads at byte 0 and uint32 flags at byte 8; all else is 0. The
 * library is asked for the flags that it has understood: another layout is refused, never run.
 *
 * @throws RuntimeBackendException the library has other flags than were asked for.
 */
internal class XnnpackDelegate(threads: Int) : AutoCloseable {
    private var handle: Pointer? = null

    init {
        val options = Memory(OPTIONS_BYTES).apply { clear() }
        options.setInt(0, threads)
        options.setInt(FLAGS_AT, QS8 or QU8)
        val made: Pointer? = LIBRARY.getFunction("TfLiteXNNPackDelegateCreate").invokePointer(arrayOf(options))
        handle = made ?: throw RuntimeBackendException("LiteRT made no XNNPACK delegate; use another build of it")
        val flags = LIBRARY.getFunction("TfLiteXNNPackDelegateGetFlags").invokeInt(arrayOf(made))
        if (flags != QS8 or QU8) {
            close()
            throw RuntimeBackendException(
                "XNNPACK has the flags $flags; it must have ${QS8 or QU8}, or int8 scores are others than " +
                    "Python's; use LiteRT 2.21",
            )
        }
    }

    /** As the interpreter's options take it; it must be open while an interpreter has it. */
    fun asDelegate(): TfLiteOpaqueDelegateStruct =
        TfLiteOpaqueDelegateStruct(Address(Pointer.nativeValue(checkNotNull(handle))))

    override fun close() {
        handle?.let { LIBRARY.getFunction("TfLiteXNNPackDelegateDelete").invokeVoid(arrayOf(it)) }
        handle = null
    }

    private class Address(place: Long) : org.bytedeco.javacpp.Pointer() {
        init {
            address = place
        }
    }

    private companion object {
        const val OPTIONS_BYTES = 256L
        const val FLAGS_AT = 8L
        const val QS8 = 1
        const val QU8 = 2
        val LIBRARY: NativeLibrary by lazy { NativeLibrary.getInstance(Loader.load(tensorflowlite::class.java)) }
    }
}
