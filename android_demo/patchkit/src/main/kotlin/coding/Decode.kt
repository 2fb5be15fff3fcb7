package patchdeploy.patchkit.coding

import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.slots.PatchValues

/**
 * Whole numbers of steps -> slot values, the very same bits in every language.
 *
 * In: [PatchCodes] and a [CodingTable]. Out: slot values, every one inside what runtimes take. The
 * formulas are those of docs/patch-format.md, "Values": float64 operations, each rounded by itself
 * in the order written there; neither the JVM nor ART fuses a product and a sum. Products with
 * powers of two are exact here: nothing comes near float64's ends.
 */

private const val ACTIVATION_BITS = 0x3D000000L
private const val MASKED_BIAS = -131072
private const val SMALLEST_NORMAL = java.lang.Float.MIN_NORMAL
private const val MULTIPLIER_MIN = 1.0 / 4294967296.0
private const val MULTIPLIER_MAX = 256.0
private const val INT32_MAX = 2147483647.0
private const val MOST_OCTAVES = 400L

/** 2^(2^b / 256) for b = 0..7, each the nearest float64. */
private val ROOTS = longArrayOf(
    0x3FF00B1AFA5ABCBF, 0x3FF0163DA9FB3335, 0x3FF02C9A3E778061, 0x3FF059B0D3158574,
    0x3FF0B5586CF9890F, 0x3FF172B83C7D517B, 0x3FF306FE0A31B715, 0x3FF6A09E667F3BCD,
)

/** T[0] = 1; T[i] = T[i - 2^b] * root[b] with b the highest bit of i, rounded each time. */
private val RATIOS = DoubleArray(256).also { table ->
    table[0] = 1.0
    for (i in 1..255) {
        val bit = i.takeHighestOneBit()
        table[i] = table[i - bit] * Double.fromBits(ROOTS[bit.countTrailingZeroBits()])
    }
}

/**
 * The slot values of the resolution at position [side].
 *
 * @throws PatchRefusedException code "values", naming the resolution and the first bad value.
 */
internal fun decodeValues(codes: PatchCodes, table: CodingTable, side: Int): PatchValues =
    SideDecoder(codes, table, side).decode()

private class SideDecoder(
    private val codes: PatchCodes,
    private val table: CodingTable,
    private val side: Int,
) {
    private val layout = table.layout
    private val spare = layout.spareRows(codes.classes)
    private val weightScale = FloatArray(layout.rows)
    private val bias = IntArray(layout.rows)
    private val activationScale = FloatArray(layout.sites)

    fun decode(): PatchValues {
        for (k in 0 until layout.sites) {
            activationScale[k] = scaleOfBits(ACTIVATION_BITS + codes.activationScales.at(side, k))
            checkScale("activation_scale", k, activationScale[k])
        }
        decodeRows()
        fillSpareRows()
        return PatchValues(weightScale, bias, activationScale, zeroPoints(), weights())
    }

    private fun decodeRows() {
        var row = 0
        var at = 0
        for ((index, conv) in table.convs.withIndex()) {
            val end = row + conv.rows
            while (row < end) {
                if (row == spare.first && !spare.isEmpty()) row = spare.last + 1
                if (row >= end) break
                decodeRow(row++, at++, index, conv)
            }
        }
    }

    private fun decodeRow(row: Int, at: Int, index: Int, conv: CodedConv) {
        val scale = rowScale(row, codes.scales.at(side, at), codes.steps.scale[index])
        checkScale("weight_scale", row, scale)
        weightScale[row] = scale
        val x = activationScale[conv.xIndex].toDouble()
        val unit = x * scale.toDouble()
        val multiplier = unit / activationScale[conv.yIndex].toDouble()
        if (multiplier < MULTIPLIER_MIN || multiplier >= MULTIPLIER_MAX) {
            refuse("x_scale * weight_scale[$row] / y_scale", "in [2^-32, 2^8)", multiplier)
        }
        val units = rowBias(row, codes.biases.at(side, at), codes.steps.bias[index], scale, unit)
        if (Math.abs(units) > INT32_MAX) refuse("bias[$row]", "an integer of at most 31 bits", units)
        bias[row] = units.toInt()
    }

    private fun rowScale(row: Int, n: Long, t: Int): Float {
        if (t == EXACT_SCALES) return scaleOfBits(table.scale[row].toRawBits() + n)
        val units = n shl t
        val octaves = (units shr 8).coerceIn(-MOST_OCTAVES, MOST_OCTAVES)
        return (table.scale[row].toDouble() * RATIOS[(units and 255).toInt()] * powerOfTwo(octaves)).toFloat()
    }

    private fun rowBias(row: Int, m: Long, e: Int, scale: Float, unit: Double): Double {
        if (e == EXACT_BIASES) return m.toDouble()
        val beta = table.beta[row].toDouble() + m.toDouble() * powerOfTwo(e.toLong())
        val product = table.slope[row].toDouble() * scale.toDouble()
        return Math.rint((beta + product) / unit)
    }

    /** Rows that the task does not use: their output saturates to -128 in every runtime. */
    private fun fillSpareRows() {
        if (spare.isEmpty()) return
        val ratio = activationScale[layout.headOutput] / activationScale[layout.headInput]
        val scale = ratio / 256f
        checkScale("weight_scale", spare.first, scale)
        for (row in spare) {
            weightScale[row] = scale
            bias[row] = MASKED_BIAS
        }
    }

    private fun zeroPoints(): ByteArray = ByteArray(layout.sites) { k -> (codes.zeroPoints.at(side, k) + 128).toByte() }

    private fun weights(): ByteArray {
        val weights = ByteArray(layout.elements)
        val first = layout.headElement
        val headEnd = first + layout.headElements
        for (k in 0 until first) weights[k] = kernel(k, k)
        for (k in headEnd until layout.elements) weights[k] = kernel(k, k - layout.headElements)
        for (k in 0 until codes.classes * layout.headRowElements) {
            weights[first + k] = checked(first + k, codes.head.at(side, k))
        }
        return weights
    }

    private fun kernel(element: Int, at: Int): Byte =
        checked(element, codes.kernels.at(side, at) + table.kernels[element])

    private fun checked(element: Int, code: Int): Byte {
        val value = code.toByte()
        if (value == Byte.MIN_VALUE) refuse("weights[$element]", "an int8 in [-127, 127]", value)
        return value
    }

    private fun checkScale(name: String, index: Int, scale: Float) {
        if (!(scale >= SMALLEST_NORMAL && scale < Float.POSITIVE_INFINITY)) {
            refuse("$name[$index]", "a finite, positive, normal float32", scale)
        }
    }

    private fun refuse(field: String, expected: String, got: Any): Nothing = throw PatchRefusedException(
        RefusalCode.VALUES, "${codes.sides[side]} px $field", expected, got.toString(),
        "pack the task again with its base",
    )
}

/** The float32 of a bit pattern; NaN, which every check refuses, outside of 0..2^31 - 1. */
private fun scaleOfBits(bits: Long): Float =
    if (bits in 0..Int.MAX_VALUE) Float.fromBits(bits.toInt()) else Float.NaN

/** 2^[exponent] for -1022 to 1023. */
private fun powerOfTwo(exponent: Long): Double = Double.fromBits((exponent + 1023) shl 52)
