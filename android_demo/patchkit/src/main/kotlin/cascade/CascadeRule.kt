package patchdeploy.patchkit.cascade

import patchdeploy.patchkit.ConfigException

/** Above every confidence: a stage with it never answers. */
internal const val MAX_THRESHOLD: Long = (1L shl 31) - 1

/**
 * One resolution of a cascade.
 *
 * @property resolution side in pixels.
 * @property threshold the stage answers where its confidence is at least this; 0 for the last
 *   stage, which always answers.
 * @property ratio of its exponentials, 1 to 2^32 - 1; 0 for the margin, and for the last stage.
 */
public data class Stage(val resolution: Int, val threshold: Long, val ratio: Long)

/**
 * Which resolutions run in which order, and how sure each must be to answer.
 *
 * @property score what a confidence is.
 * @property stages one or more, each resolution once; the last one always answers.
 * @throws ConfigException a field is outside its range.
 */
public data class CascadeRule(val score: ScoreKind, val stages: List<Stage>) {
    init {
        val sides = stages.map { it.resolution }
        if (sides.isEmpty() || sides.toSet().size != sides.size) {
            throw ConfigException(
                "stages at ${sides.joinToString()} px; a cascade has one stage or more, each at a " +
                    "resolution that no other has; remove the repeated ones",
            )
        }
        stages.dropLast(1).forEach(::check)
        val last = stages.last()
        if (last.threshold != 0L || last.ratio != 0L) {
            throw ConfigException(
                "the last stage has threshold ${last.threshold} and ratio ${last.ratio}; it always " +
                    "answers, so both must be 0",
            )
        }
    }

    private fun check(stage: Stage) {
        val ratios = if (score == ScoreKind.MARGIN) 0..0L else 1..MAX_RATIO
        if (stage.threshold !in 0..MAX_THRESHOLD || stage.ratio !in ratios) {
            throw ConfigException(
                "stage at ${stage.resolution} px has threshold ${stage.threshold} and ratio " +
                    "${stage.ratio}; with score ${score.text} they are 0 to $MAX_THRESHOLD and " +
                    "${ratios.first} to ${ratios.last}; fit the cascade again",
            )
        }
    }

    /** Sides in pixels, in the order in which they run. */
    val resolutions: List<Int> get() = stages.map { it.resolution }

    /** Whether [stage] is sure of an image: the last one of every image. */
    public fun isSure(stage: Stage, codes: ByteArray): Boolean =
        stage === stages.last() || confidence(score, codes, stage.ratio) >= stage.threshold

    /**
     * Position in [stages] of the first that is sure.
     *
     * @param codes int8 scores of the task's classes at a resolution; asked for one stage after the
     *   other, never for the last.
     */
    public inline fun route(codes: (Int) -> ByteArray): Int {
        for (place in 0 until stages.size - 1) {
            val stage = stages[place]
            if (isSure(stage, codes(stage.resolution))) return place
        }
        return stages.size - 1
    }
}

/**
 * What was shown about a cascade.
 *
 * @property reference resolution that it was compared with.
 * @property toleranceMillionths how much worse it may be, in millionths of the images.
 * @property confidenceMillionths of the test, in millionths.
 * @property images that the test saw.
 * @property certified whether the test passed.
 */
public data class Certificate(
    val reference: Int,
    val toleranceMillionths: Int,
    val confidenceMillionths: Int,
    val images: Long,
    val certified: Boolean,
)

/** What a patch carries: the rule, and what was shown about it. */
public data class Cascade(val rule: CascadeRule, val certificate: Certificate)
