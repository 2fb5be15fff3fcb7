package patchdeploy.onnxruntime

import patchdeploy.patchkit.engine.EngineContract
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.slots.BaseFile

class OnnxRuntimeEngineTest : EngineContract("onnx", mostLsb = 0) {
    override fun makeBackend(base: BaseFile): Backend = OnnxRuntimeBackend(base)
}

class UnsignedKernelsEngineTest : EngineContract("onnx", mostLsb = 0) {
    override fun makeBackend(base: BaseFile): Backend = OnnxRuntimeBackend(base, kernels = Kernels.UNSIGNED)
}
