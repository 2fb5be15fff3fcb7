package patchdeploy.patchkit.image

import patchdeploy.patchkit.ConfigException

/**
 * A picture as the network's input is made from it.
 *
 * @property width, height in pixels, at least 1.
 * @property rgb uint8 [height, width, 3], row-major.
 * @throws ConfigException sides and bytes that do not go together.
 */
public class Pixels(public val width: Int, public val height: Int, public val rgb: ByteArray) {
    init {
        checkSize(width, height, 3, rgb.size)
    }

    public companion object {
        /** From uint8 [height, width, 4], not premultiplied, laid over white. */
        public fun fromRgba(width: Int, height: Int, rgba: ByteArray): Pixels {
            checkSize(width, height, 4, rgba.size)
            val rgb = ByteArray(width * height * 3)
            var to = 0
            for (from in rgba.indices step 4) {
                val alpha = rgba[from + 3].toInt() and 255
                for (c in 0 until 3) rgb[to++] = overWhite(rgba[from + c].toInt() and 255, alpha).toByte()
            }
            return Pixels(width, height, rgb)
        }

        /** From uint8 [height, width]. */
        public fun fromGrey(width: Int, height: Int, grey: ByteArray): Pixels {
            checkSize(width, height, 1, grey.size)
            return Pixels(width, height, ByteArray(width * height * 3) { grey[it / 3] })
        }
    }
}

/** Pillow's alpha_composite over opaque white: 7 bits of precision, divisions by 255 rounded. */
private fun overWhite(value: Int, alpha: Int): Int {
    val wide = ((value * alpha + 255 * (255 - alpha)) shl PRECISION) + (128 shl PRECISION)
    return (((wide shr 8) + wide) shr 8) shr PRECISION
}

private const val PRECISION = 7

/** The largest picture, as in Python. */
private const val MOST_PIXELS = 89_478_485L

/** @throws ConfigException a side below 1, or more pixels than any picture may have. */
internal fun checkPixelCount(width: Int, height: Int) {
    if (width < 1 || height < 1 || width.toLong() * height > MOST_PIXELS) {
        throw ConfigException("a picture of $width x $height px; it must have 1 to $MOST_PIXELS px; make it smaller")
    }
}

private fun checkSize(width: Int, height: Int, channels: Int, length: Int) {
    checkPixelCount(width, height)
    if (width.toLong() * height * channels != length.toLong()) {
        throw ConfigException(
            "a picture of $width x $height px with $length bytes; it must have $channels bytes for each; " +
                "pass the decoded pixels without padding",
        )
    }
}
