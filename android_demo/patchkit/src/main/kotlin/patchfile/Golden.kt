package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode

/**
 * The self-test that a patch carries: small pictures, and the scores that they must get.
 *
 * In: the golden part of a payload. Out: thumbnails enlarged to a resolution, and the verdict on the
 * scores that a runtime gives them, so that a patch that loads but misbehaves is found before it is
 * committed.
 */

private const val SIDE = 8
private const val THUMBNAIL_BYTES = SIDE * SIDE * 3
internal const val MAX_IMAGES = 8

/**
 * @property images 1 to 8.
 * @property toleranceLsb largest difference that a runtime may show, 0 to 255.
 */
public class Golden internal constructor(
    private val content: Bytes,
    private val runtimes: List<String>,
    private val resolutions: List<Int>,
    private val classes: Int,
) {
    public val images: Int get() = content[0]
    public val toleranceLsb: Int get() = content[1]

    /** uint8 RGB [8, 8, 3] of one image. */
    public fun thumbnail(image: Int): ByteArray {
        require(image in 0 until images) { "image $image of $images" }
        val start = 2 + image * THUMBNAIL_BYTES
        return content.slice(start, start + THUMBNAIL_BYTES).copy()
    }

    /** int8 [classes]: the scores of [image] as integers, or null where the patch names no such runtime or side. */
    public fun scores(runtime: String, resolution: Int, image: Int): ByteArray? {
        require(image in 0 until images) { "image $image of $images" }
        val run = runtimes.indexOf(runtime)
        val side = resolutions.indexOf(resolution)
        if (run < 0 || side < 0) return null
        val start = 2 + images * THUMBNAIL_BYTES + ((run * resolutions.size + side) * images + image) * classes
        return content.slice(start, start + classes).copy()
    }

    /**
     * Compare what a runtime gave for [image] with what the patch says.
     *
     * @param measured int8 [classes], the scores as integers.
     * @param subject what was measured, for the message.
     * @return the largest difference in LSB of the scores.
     * @throws PatchRefusedException code "self_test": beyond the tolerance, or of another shape.
     */
    public fun check(runtime: String, resolution: Int, image: Int, measured: ByteArray, subject: String): Int {
        val expected = scores(runtime, resolution, image)
        if (expected == null || expected.size != measured.size) {
            throw failed(subject, resolution, "a score for each of $classes classes", "${measured.size}")
        }
        var worst = 0
        for (k in expected.indices) worst = maxOf(worst, Math.abs(expected[k] - measured[k]))
        if (worst > toleranceLsb) {
            val rule = "within $toleranceLsb LSB of the scores that travel with the patch"
            throw failed(subject, resolution, rule, "$worst LSB away")
        }
        return worst
    }

    private fun failed(subject: String, resolution: Int, expected: String, got: String) = PatchRefusedException(
        RefusalCode.SELF_TEST, "$subject at $resolution px", expected, got,
        "keep the patch that is active and pack this task again",
    )
}

/**
 * uint8 [8, 8, 3] -> uint8 [px, px, 3], bilinear with aligned corners, in integers; the formula is
 * in docs/patch-format.md, "Self-test".
 */
public fun enlarge(thumbnail: ByteArray, resolution: Int): ByteArray {
    require(thumbnail.size == THUMBNAIL_BYTES) { "a thumbnail has $THUMBNAIL_BYTES bytes" }
    val last = maxOf(resolution - 1, 1)
    val low = IntArray(resolution) { it * (SIDE - 1) / last }
    val part = IntArray(resolution) { it * (SIDE - 1) % last * 256 / last }
    val pixels = ByteArray(resolution * resolution * 3)
    val row = IntArray(SIDE * 3)
    var at = 0
    for (y in 0 until resolution) {
        blendRows(thumbnail, low[y], part[y], row)
        for (x in 0 until resolution) {
            val left = 3 * low[x]
            val right = 3 * minOf(low[x] + 1, SIDE - 1)
            val f = part[x]
            for (c in 0 until 3) {
                pixels[at++] = ((row[left + c] * (256 - f) + row[right + c] * f + 32768) shr 16).toByte()
            }
        }
    }
    return pixels
}

private fun blendRows(thumbnail: ByteArray, low: Int, f: Int, row: IntArray) {
    val up = low * SIDE * 3
    val down = minOf(low + 1, SIDE - 1) * SIDE * 3
    for (k in row.indices) {
        row[k] = (thumbnail[up + k].toInt() and 255) * (256 - f) + (thumbnail[down + k].toInt() and 255) * f
    }
}

/**
 * The int8 that a float score stands for: rint(score / scale) + zero point of the output, in
 * float64, limited to int8.
 */
public fun scoreCode(score: Float, scale: Float, zeroPoint: Byte): Byte =
    (Math.rint(score.toDouble() / scale.toDouble()) + zeroPoint).coerceIn(-128.0, 127.0).toInt().toByte()

/** Bytes of a self-test whose images run [runs] times, by runtime and resolution. */
internal fun goldenLength(images: Int, runs: Long, classes: Int): Long =
    2 + images * (THUMBNAIL_BYTES + runs * classes)

/**
 * The self-test in [content]; null where a patch carries none.
 *
 * @param runtimes of the header's results, sorted by name.
 * @throws PatchRefusedException code "parts".
 */
internal fun readGolden(content: Bytes, runtimes: List<String>, resolutions: List<Int>, classes: Int): Golden? {
    val count = if (content.size > 0) content[0] else MAX_IMAGES + 1
    val length = goldenLength(count, runtimes.size.toLong() * resolutions.size, classes)
    if (count > MAX_IMAGES || content.size.toLong() != length || (count == 0 && content[1] != 0)) {
        throw refuse(
            "golden",
            "0 to $MAX_IMAGES thumbnails with a score for each runtime, resolution and class",
            "$count in ${content.size} bytes",
        )
    }
    return if (count == 0) null else Golden(content, runtimes, resolutions, classes)
}

/**
 * Check what a self-test asks of a device, before any model of it is loaded.
 *
 * @throws PatchRefusedException code "work".
 */
internal fun checkWork(images: Int, resolutions: List<Int>) {
    val pixels = images * resolutions.sumOf { it.toLong() * it }
    if (pixels > MAX_WORK) {
        throw PatchRefusedException(
            RefusalCode.WORK, "self-test", "of at most $MAX_WORK pixels: images times the sum of px^2",
            "of $pixels: $images images at ${resolutions.joinToString()} px",
            "pack the task again with fewer images in its self-test",
        )
    }
}
