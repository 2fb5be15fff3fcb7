package patchdeploy.patchkit.runtime

import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.slots.PatchValues

/**
 * A runtime over one base file. A model that it loads holds one task at one resolution.
 */
public interface Backend {
    /** The runtime's name, for messages. */
    public val name: String

    /** The runtime's version, as it says itself. */
    public val version: String

    /** Of the base file that it runs, as the results of a header name it. */
    public val format: String

    /**
     * The base with [values] laid over it, ready to run at [resolution].
     *
     * @throws RuntimeBackendException the runtime refuses the model.
     * @throws patchdeploy.patchkit.UnknownResolutionException the file has no such signature.
     * @throws patchdeploy.patchkit.SlotTableException values of another base.
     */
    public fun load(values: PatchValues, resolution: Int): Resident
}

/** A loaded model; one inference at a time, from any thread. Closing it frees native memory. */
public interface Resident : AutoCloseable {
    /** Estimated memory that it alone holds: its model, packed kernels, activations. */
    public val residentBytes: Long

    /**
     * float32 [head capacity]: the scores of one image.
     *
     * @param image uint8 RGB [px, px, 3].
     * @throws RuntimeBackendException an image of another length, a closed model, or the runtime failed.
     */
    public fun run(image: ByteArray): FloatArray
}

/**
 * Memory of a resident by byte of its model, measured in Python on MobileNetV2 1.0 at 224 px, x86-64:
 * 2.3 to 2.8 with LiteRT 2.3, 2.6 with ONNX Runtime 1.32.
 */
public const val PRIVATE_BYTES_PER_MODEL_BYTE: Int = 3
