package patchdeploy.patchkit.image

private const val PRECISION_BITS = 32 - 8 - 2
private const val HALF = 1 shl (PRECISION_BITS - 1)
private const val SUPPORT = 1.0

/**
 * For each output pixel of an axis, the input pixels that it is made of and their weights.
 *
 * @property first by output pixel, its first input pixel.
 * @property weights by output pixel, integers in units of 2^-22.
 */
internal class AxisWeights private constructor(val first: IntArray, val weights: Array<IntArray>) {
    val size: Int get() = first.size

    /** Past the last input pixel that is used. */
    val end: Int get() = first.last() + weights.last().size

    companion object {
        /**
         * @param length pixels of the input's axis, of which [from, to) is resized to [resized] pixels.
         * @param skipped output pixels that are left out before the [size] that are wanted.
         */
        fun make(length: Int, from: Float, to: Float, resized: Int, skipped: Int, size: Int): AxisWeights {
            val scale = (to - from).toDouble() / resized
            val filterScale = maxOf(scale, 1.0)
            val first = IntArray(size)
            val weights = Array(size) { k ->
                val center = from + (skipped + k + 0.5) * scale
                val support = SUPPORT * filterScale
                first[k] = maxOf((center - support + 0.5).toInt(), 0)
                val end = minOf((center + support + 0.5).toInt(), length)
                fixed(DoubleArray(end - first[k]) { triangle((it + first[k] - center + 0.5) * (1.0 / filterScale)) })
            }
            return AxisWeights(first, weights)
        }

        private fun triangle(x: Double): Double = maxOf(0.0, 1.0 - Math.abs(x))

        private fun fixed(shares: DoubleArray): IntArray {
            var sum = 0.0
            for (share in shares) sum += share
            return IntArray(shares.size) { k ->
                val share = if (sum != 0.0) shares[k] / sum else shares[k]
                (0.5 + share * (1 shl PRECISION_BITS)).toInt()
            }
        }
    }
}

/**
 * uint8 [down.size, across.size, 3] of [image].
 *
 * @param downFirst make the columns shorter first, then the rows; the first pass rounds to 8 bits,
 *   so the order shows.
 */
internal fun resample(image: Pixels, across: AxisWeights, down: AxisWeights, downFirst: Boolean): ByteArray {
    val stride = image.width * 3
    if (downFirst) {
        val left = across.first.first()
        val width = across.end - left
        val columns = mixRows(image.rgb, stride, left * 3, width * 3, down, 0)
        return mixColumns(columns, width * 3, 0, down.size, across, left)
    }
    val top = down.first.first()
    val rows = mixColumns(image.rgb, stride, top, down.end - top, across, 0)
    return mixRows(rows, across.size * 3, 0, across.size * 3, down, top)
}

/** uint8 [down.size, bytes]: of each row of [source] the [bytes] from byte [from] on; it begins at row [top]. */
private fun mixRows(source: ByteArray, stride: Int, from: Int, bytes: Int, down: AxisWeights, top: Int): ByteArray {
    val mixed = ByteArray(down.size * bytes)
    val sums = IntArray(bytes)
    for (y in 0 until down.size) {
        sums.fill(HALF)
        var start = (down.first[y] - top) * stride + from
        for (weight in down.weights[y]) {
            for (x in 0 until bytes) sums[x] += (source[start + x].toInt() and 255) * weight
            start += stride
        }
        for (x in 0 until bytes) mixed[y * bytes + x] = clip(sums[x])
    }
    return mixed
}

/** uint8 [rows, across.size, 3]: of the [rows] of [source] from [top] on; they begin at column [left]. */
private fun mixColumns(source: ByteArray, stride: Int, top: Int, rows: Int, across: AxisWeights, left: Int): ByteArray {
    val mixed = ByteArray(rows * across.size * 3)
    var at = 0
    for (y in top until top + rows) for (x in 0 until across.size) {
        var red = HALF
        var green = HALF
        var blue = HALF
        var from = y * stride + (across.first[x] - left) * 3
        for (weight in across.weights[x]) {
            red += (source[from].toInt() and 255) * weight
            green += (source[from + 1].toInt() and 255) * weight
            blue += (source[from + 2].toInt() and 255) * weight
            from += 3
        }
        mixed[at++] = clip(red)
        mixed[at++] = clip(green)
        mixed[at++] = clip(blue)
    }
    return mixed
}

private fun clip(sum: Int): Byte = (sum shr PRECISION_BITS).coerceIn(0, 255).toByte()
