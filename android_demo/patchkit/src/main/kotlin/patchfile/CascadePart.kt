package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.cascade.Cascade
import patchdeploy.patchkit.cascade.CascadeRule
import patchdeploy.patchkit.cascade.Certificate
import patchdeploy.patchkit.cascade.ScoreKind
import patchdeploy.patchkit.cascade.Stage

/** The optional part of a payload that holds a cascade; its bytes are in docs/patch-format.md. */

private const val VERSION = 1L
private const val MAX_STAGES = 16
private const val HEAD_BYTES = 20
private const val STAGE_BYTES = 9
private const val MILLION = 1_000_000L

internal const val MAX_CASCADE_BYTES = HEAD_BYTES + MAX_STAGES * STAGE_BYTES

/**
 * The cascade in [content].
 *
 * @param resolutions sides in pixels, in the order of the header.
 * @throws PatchRefusedException code "parts": a field outside its range.
 */
internal fun readCascade(content: Bytes, resolutions: List<Int>): Cascade {
    if (content.size < HEAD_BYTES) {
        throw refuse("cascade length", "at least $HEAD_BYTES bytes", content.size)
    }
    check("version", content[0].toLong(), VERSION..VERSION)
    check("score", content[1].toLong(), 0L until ScoreKind.entries.size)
    check("certified", content[2].toLong(), 0..1L)
    check("stages", content[3].toLong(), 1L..MAX_STAGES)
    check("reference", content[4].toLong(), 0L until resolutions.size)
    for (at in 5..7) check("reserved bytes", content[at].toLong(), 0..0L)
    check("tolerance", content.u32(8), 1 until MILLION)
    check("confidence", content.u32(12), MILLION / 2 until MILLION)
    check("images", content.u32(16), content[2].toLong() until (1L shl 32))
    val length = HEAD_BYTES + content[3].toLong() * STAGE_BYTES
    check("length", content.size.toLong(), length..length)
    val stages = List(content[3]) { k -> readStage(content, HEAD_BYTES + k * STAGE_BYTES, resolutions) }
    val certificate = Certificate(
        reference = resolutions[content[4]],
        toleranceMillionths = content.u32(8).toInt(),
        confidenceMillionths = content.u32(12).toInt(),
        images = content.u32(16),
        certified = content[2] == 1,
    )
    return Cascade(rule(ScoreKind.entries[content[1]], stages), certificate)
}

private fun readStage(content: Bytes, at: Int, resolutions: List<Int>): Stage {
    check("resolution", content[at].toLong(), 0L until resolutions.size)
    return Stage(resolutions[content[at]], content.u32(at + 1), content.u32(at + 5))
}

private fun rule(score: ScoreKind, stages: List<Stage>): CascadeRule = try {
    CascadeRule(score, stages)
} catch (error: ConfigException) {
    throw refuse("cascade stages", "those of a rule", error.message, cause = error)
}

private fun check(field: String, found: Long, allowed: LongRange) {
    if (found !in allowed) throw refuse("cascade $field", "${allowed.first} to ${allowed.last}", found)
}
