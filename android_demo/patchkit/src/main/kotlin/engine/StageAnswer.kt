package patchdeploy.patchkit.engine

import patchdeploy.patchkit.patchfile.scoreCode

/**
 * Scores of one image at one resolution.
 *
 * @property resolution side in pixels.
 */
internal class StageAnswer(
    private val version: TaskVersion,
    val resolution: Int,
    private val model: LoadedModel,
    private val scores: FloatArray,
    val times: Times,
) {
    /** int8 by class: the integers that the scores stand for. */
    fun codes(): ByteArray = ByteArray(scores.size) { scoreCode(scores[it], model.scoreScale, model.scoreZeroPoint) }

    /** The answer, which cost [times] before its softmax. */
    fun toPrediction(times: Times): Prediction {
        val start = System.nanoTime()
        val probabilities = softmax(scores)
        val all = times.copy(postMs = times.postMs + millisecondsSince(start))
        return Prediction(version, resolution, scores, probabilities, all)
    }
}

/** Of [System.nanoTime]. */
internal fun millisecondsSince(nanos: Long): Double = (System.nanoTime() - nanos) / 1e6
