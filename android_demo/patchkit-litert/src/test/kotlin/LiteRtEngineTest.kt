package patchdeploy.litert

import patchdeploy.patchkit.engine.EngineContract
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.slots.BaseFile

/** TensorFlow 2.21's XNNPACK adds a mean in another order than the executor: 1 LSB. */
class LiteRtEngineTest : EngineContract("tflite", mostLsb = 1) {
    override fun makeBackend(base: BaseFile): Backend = LiteRtBackend(base)
}
