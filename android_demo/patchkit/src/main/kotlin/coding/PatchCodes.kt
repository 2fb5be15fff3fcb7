package patchdeploy.patchkit.coding

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode

internal const val MAX_SCALE_STEP = 12
internal const val EXACT_SCALES = 255
internal const val MIN_BIAS_STEP = -126
internal const val EXACT_BIASES = -128

/**
 * How coarsely each convolution is coded, in graph order.
 *
 * @property scale t in 0..12, the step is 2^t / 256 octave; or 255: exact.
 * @property bias e in -126..127, the step is 2^e; or -128: exact.
 */
public class CodingSteps internal constructor(public val scale: IntArray, public val bias: IntArray) {
    /** @throws PatchRefusedException code "values": a step that is none of these. */
    internal fun check() {
        for ((index, t) in scale.withIndex()) {
            if (t > MAX_SCALE_STEP && t != EXACT_SCALES) {
                refuse("0 to $MAX_SCALE_STEP or $EXACT_SCALES", "$t of convolution $index")
            }
        }
        for ((index, e) in bias.withIndex()) {
            if (e < MIN_BIAS_STEP && e != EXACT_BIASES) {
                refuse("$MIN_BIAS_STEP to 127 or $EXACT_BIASES", "$e of convolution $index")
            }
        }
    }

    private fun refuse(expected: String, got: String): Nothing = throw PatchRefusedException(
        RefusalCode.VALUES, "steps", expected, got, "pack the task again with its base",
    )
}

/** Whole numbers, [count] for each resolution; at a further one, differences to the first. */
internal class Codes(private val all: LongArray, private val count: Int) {
    fun at(side: Int, k: Int): Long = if (side == 0) all[k] else all[side * count + k] + all[k]
}

/** The same in bytes, modulo 256. */
internal class ByteCodes(private val all: Bytes, private val count: Int) {
    fun at(side: Int, k: Int): Int = if (side == 0) all[k] else all[side * count + k] + all[k]
}

/**
 * All resolutions of a patch, in the order of the file; the first is coded against the base.
 *
 * @property sides in pixels.
 * @property scales, biases of each row less the head's spare ones.
 * @property activationScales, zeroPoints of each activation site.
 * @property kernels of each owned element outside the head.
 * @property head of each element of the head's rows that the task uses.
 */
internal class PatchCodes(
    val steps: CodingSteps,
    val classes: Int,
    val sides: List<Int>,
    val scales: Codes,
    val biases: Codes,
    val activationScales: Codes,
    val zeroPoints: ByteCodes,
    val kernels: ByteCodes,
    val head: ByteCodes,
)
