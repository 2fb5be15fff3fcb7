package patchdeploy.cli

import java.nio.file.Path
import patchdeploy.litert.LiteRtBackend
import patchdeploy.onnxruntime.OnnxRuntimeBackend
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.bundle.FolderFiles
import patchdeploy.patchkit.engine.Engine
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.slots.BaseFile

/** A runtime by the name that Python knows it by. */
internal enum class RuntimeName(val format: String, val make: (BaseFile, Int) -> Backend) {
    LITERT("tflite", { base, threads -> LiteRtBackend(base, threads) }),
    ONNXRUNTIME("onnx", { base, threads -> OnnxRuntimeBackend(base, threads) });

    companion object {
        /** @throws ConfigException no such runtime. */
        fun of(name: String): RuntimeName = entries.find { it.name.lowercase() == name } ?: throw ConfigException(
            "runtime '${name.take(40)}'; it must be one of ${entries.joinToString { it.name.lowercase() }}; choose one",
        )
    }
}

/** An engine over the bundle in [folder]. */
internal fun openEngine(folder: String, runtime: RuntimeName, threads: Int): Engine {
    val bundle = Bundle.open(FolderFiles(Path.of(folder)), runtime.format)
    return Engine(bundle, runtime.make(bundle.base, threads))
}
