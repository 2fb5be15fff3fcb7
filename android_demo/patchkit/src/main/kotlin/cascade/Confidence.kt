package patchdeploy.patchkit.cascade

/**
 * How sure a head is of its answer, in integers, so that every language takes the same decision.
 *
 * In: int8 scores of a head and one ratio a resolution. Out: a confidence, an integer that is
 * greater where the head is surer. Nothing here calls exp or log: docs/cascades.md has the formulas.
 */

/** What a confidence is; the order is that of the numbers in a patch file. */
public enum class ScoreKind(internal val mostConfidence: Int) {
    /** Best code less the second best, 0 to 255. */
    MARGIN(255),

    /** Softmax probability of the best class in units of 2^-30. */
    PROBABILITY(1 shl 30),

    /** 2^20 less the softmax's entropy in units of 2^-16 bit. */
    ENTROPY(1 shl 20);

    /** As Python and docs/cascades.md write it. */
    public val text: String = name.lowercase()
}

internal const val MAX_RATIO: Long = (1L shl 32) - 1
private const val RATIO_BITS = 32
private const val PROBABILITY_BITS = 30
private const val ENTROPY_BITS = 16
private const val MAX_ENTROPY = 1L shl 20
private const val TABLE_SHIFT = 7
private const val DIFFERENCES = 256

/**
 * How sure the head is of its best class, 0 to 2^30.
 *
 * @param codes int8 scores, two classes or more, at most 65,536.
 * @param ratio of the resolution's exponentials, 1 to 2^32 - 1; a margin does not look at it.
 */
public fun confidence(kind: ScoreKind, codes: ByteArray, ratio: Long): Int {
    require(codes.size >= 2) { "a confidence compares two classes or more" }
    val counts = countDifferences(codes)
    if (kind == ScoreKind.MARGIN) return margin(counts)
    val table = exponentialTable(ratio)
    var total = 0L
    for (d in counts.indices) total += counts[d] * table[d]
    if (kind == ScoreKind.PROBABILITY) return ((table[0] shl PROBABILITY_BITS) / total).toInt()
    return (MAX_ENTROPY - entropy(counts, table, total, ratio)).toInt()
}

/** By d from 0 to 255, how many classes lie d codes below the best. */
private fun countDifferences(codes: ByteArray): IntArray {
    var best = codes[0].toInt()
    for (code in codes) best = maxOf(best, code.toInt())
    val counts = IntArray(DIFFERENCES)
    for (code in codes) counts[best - code]++
    return counts
}

private fun margin(counts: IntArray): Int {
    if (counts[0] > 1) return 0
    var d = 1
    while (counts[d] == 0) d++
    return d
}

/** Units of 2^24 exp(-output_scale * d) for d codes below the best. */
private fun exponentialTable(ratio: Long): LongArray {
    require(ratio in 1..MAX_RATIO) { "ratio $ratio; it must be 1 to $MAX_RATIO" }
    val table = LongArray(DIFFERENCES)
    var entry = (1L shl 31) - 1
    for (d in table.indices) {
        table[d] = entry shr TABLE_SHIFT
        entry = (entry * ratio) shr RATIO_BITS // below 2^63
    }
    return table
}

/** In units of 2^-16 bit, 0 to 2^20. */
private fun entropy(counts: IntArray, table: LongArray, total: Long, ratio: Long): Long {
    val bitsPerCode = (RATIO_BITS.toLong() shl ENTROPY_BITS) - log2Fixed(ratio)
    var moment = 0L
    for (d in counts.indices) moment += d * counts[d] * table[d]
    val spread = bitsPerCode * moment / total
    return (log2Fixed(total) - log2Fixed(table[0]) + spread).coerceIn(0, MAX_ENTROPY)
}

/**
 * 2^16 log2([number]) rounded down but for the last unit, for 1 to 2^62: a mantissa with 30 bits
 * behind the point is squared 16 times, and each square that reaches 2 gives a one bit.
 */
internal fun log2Fixed(number: Long): Long {
    val whole = 63 - number.countLeadingZeroBits()
    var mantissa = if (whole >= 30) number shr (whole - 30) else number shl (30 - whole)
    var result = whole.toLong()
    repeat(ENTROPY_BITS) {
        val square = (mantissa * mantissa) shr 30
        val bit = (square shr 31).toInt()
        mantissa = square shr bit
        result = (result shl 1) or bit.toLong()
    }
    return result
}
