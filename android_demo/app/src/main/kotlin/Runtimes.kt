package patchdeploy.demo

import patchdeploy.litert.LiteRtBackend
import patchdeploy.onnxruntime.OnnxRuntimeBackend
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.slots.BaseFile

/**
 * A runtime that the user can choose.
 *
 * @property id for settings; [name] for people.
 * @property isHere its library is part of this build.
 */
data class RuntimeOffer(val id: String, val name: String, val isHere: Boolean)

/** A runtime: the format that it runs, and how it is opened. */
class RuntimeKind(val offer: RuntimeOffer, val format: String, val open: (BaseFile, Int) -> Backend)

/** Both; the first that is here is the default. */
val RUNTIMES: List<RuntimeKind> = listOf(
    RuntimeKind(RuntimeOffer("litert", "LiteRT", isHere("org.bytedeco.tensorflowlite.TfLiteModel")), "tflite") {
            base, threads ->
        LiteRtBackend(base, threads)
    },
    RuntimeKind(RuntimeOffer("onnxruntime", "ONNX Runtime", isHere("ai.onnxruntime.OrtEnvironment")), "onnx") {
            base, threads ->
        OnnxRuntimeBackend(base, threads)
    },
)

private fun isHere(name: String): Boolean = try {
    Class.forName(name, false, RuntimeKind::class.java.classLoader)
    true
} catch (_: ClassNotFoundException) {
    false
}
