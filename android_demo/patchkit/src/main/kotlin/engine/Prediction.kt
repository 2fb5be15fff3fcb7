package patchdeploy.patchkit.engine

/**
 * What an image cost, in milliseconds of wall time.
 *
 * @property preMs from pixels to the network's input.
 * @property swapMs to read the patch and load its model; 0 where it was resident.
 * @property inferenceMs in the runtime; with it what waits for another inference of the same model.
 * @property postMs softmax, and a cascade's decisions.
 */
public data class Times(val preMs: Double, val swapMs: Double, val inferenceMs: Double, val postMs: Double) {
    internal operator fun plus(other: Times): Times = Times(
        preMs + other.preMs, swapMs + other.swapMs, inferenceMs + other.inferenceMs, postMs + other.postMs,
    )
}

/**
 * What loading a model took, in milliseconds of wall time; all 0 for a resident.
 *
 * @property patchMs to decode and check the patch.
 * @property loadMs to lay it over the base and load the model.
 */
public data class LoadTimes(val patchMs: Double, val loadMs: Double) {
    public val totalMs: Double get() = patchMs + loadMs
}

/** A label and its probability, 0 to 1. */
public data class Answer(val label: String, val probability: Float)

/**
 * One image's answer.
 *
 * @property version what answered.
 * @property resolution side in pixels at which it did.
 * @property scores float32 by class, the dequantised outputs of the head.
 * @property probabilities float32 by class, their softmax.
 * @property times what it cost; by a cascade, of all stages that ran.
 */
public class Prediction internal constructor(
    public val version: TaskVersion,
    public val resolution: Int,
    public val scores: FloatArray,
    public val probabilities: FloatArray,
    public val times: Times,
) {
    public val task: String get() = version.task
    public val labels: List<String> get() = version.labels

    /** The best class; of equal scores the first. */
    public val label: String get() = labels[scores.indices.maxBy { scores[it] }]

    /** The [count] best classes, the best first; of equal scores the first first. */
    public fun top(count: Int): List<Answer> =
        scores.indices.sortedByDescending { scores[it] }.take(count).map { Answer(labels[it], probabilities[it]) }
}

/** Of float32 scores, in float64. */
internal fun softmax(scores: FloatArray): FloatArray {
    val best = scores.max()
    val powers = DoubleArray(scores.size) { Math.exp(scores[it].toDouble() - best) }
    val sum = powers.sum()
    return FloatArray(scores.size) { (powers[it] / sum).toFloat() }
}
