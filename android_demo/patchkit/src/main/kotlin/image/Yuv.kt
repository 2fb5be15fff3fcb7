package patchdeploy.patchkit.image

import java.nio.Buffer
import java.nio.ByteBuffer
import patchdeploy.patchkit.ConfigException

/**
 * A frame of the camera made into [Pixels].
 *
 * In: Android's YUV_420_888, three planes of bytes with strides. Out: uint8 RGB, cropped, upright,
 * mirrored where the app wants it. Whole numbers throughout (docs/images.md, "Frames of a camera"),
 * so that every device makes the same pixels of the same frame; tests/android/yuv_frames.py is the
 * same in Python.
 */

/**
 * The samples of one component: (x, y) is at byte `y * rowStride + x * pixelStride`.
 *
 * @property bytes counted from 0 to its limit; its position is neither used nor moved. The padding
 *   behind the last sample of the last row may be missing, as it is in Android's buffers.
 */
public class Plane(public val bytes: ByteBuffer, public val rowStride: Int, public val pixelStride: Int)

/** A part of a picture; [left] and [top] count from its upper left corner. All in pixels. */
public data class Rectangle(val left: Int, val top: Int, val width: Int, val height: Int)

/**
 * Full-range BT.601, as JPEG and Android's camera have it; chroma has half of the luma's samples on
 * either axis, rounded up.
 *
 * @param y luma; [u] is Cb, [v] Cr.
 * @throws ConfigException a stride below 1, rows that overlap, or a buffer that ends too early.
 */
public class Yuv420(
    public val width: Int,
    public val height: Int,
    private val y: Plane,
    private val u: Plane,
    private val v: Plane,
) {
    init {
        checkPixelCount(width, height)
        checkPlane("Y", y, width, height)
        checkPlane("U", u, half(width), half(height))
        checkPlane("V", v, half(width), half(height))
    }

    /**
     * Crops, then turns, then mirrors.
     *
     * @param crop in the frame as the sensor has it; it may begin and end at odd pixels.
     * @param rotationDegrees clockwise, until the picture is upright: 0, 90, 180 or 270.
     * @param isMirrored left and right change places, as in a front camera's preview.
     * @throws ConfigException the crop lies outside of the frame, or another rotation.
     */
    public fun toPixels(
        crop: Rectangle = Rectangle(0, 0, width, height),
        rotationDegrees: Int = 0,
        isMirrored: Boolean = false,
    ): Pixels {
        checkCrop(crop)
        val turn = Turn(crop.width, crop.height, rotationDegrees, isMirrored)
        val rgb = ByteArray(crop.width * crop.height * 3)
        val chroma = half(crop.left + crop.width) - crop.left / 2
        val luma = Row(y, crop.left, crop.width)
        val blue = Row(u, crop.left / 2, chroma)
        val red = Row(v, crop.left / 2, chroma)
        for (row in 0 until crop.height) {
            luma.read(crop.top + row)
            blue.read((crop.top + row) / 2)
            red.read((crop.top + row) / 2)
            writeRow(luma, blue, red, crop.left % 2, rgb, 3 * turn.place(0, row), 3 * turn.across)
        }
        return Pixels(turn.width, turn.height, rgb)
    }

    private fun checkCrop(crop: Rectangle) {
        val right = crop.left.toLong() + crop.width
        val bottom = crop.top.toLong() + crop.height
        if (crop.left < 0 || crop.top < 0 || crop.width < 1 || crop.height < 1 || right > width || bottom > height) {
            throw ConfigException(
                "a crop of ${crop.width} x ${crop.height} px at (${crop.left}, ${crop.top}); it must have 1 px or " +
                    "more and lie inside of the frame's $width x $height px; pass the frame's own crop rectangle",
            )
        }
    }
}

/** Where the pixels of a picture of [from] x [down] pixels go. */
private class Turn(private val from: Int, private val down: Int, private val degrees: Int, private val isMirrored: Boolean) {
    init {
        if (degrees !in setOf(0, 90, 180, 270)) {
            throw ConfigException(
                "a rotation of $degrees degrees; it must be 0, 90, 180 or 270; pass the sensor's orientation " +
                    "less the display's",
            )
        }
    }

    private val isUpright = degrees % 180 == 0
    val width: Int = if (isUpright) from else down
    val height: Int = if (isUpright) down else from

    /** From the place of a pixel to that of its right neighbour, which is the same everywhere. */
    val across: Int = place(1, 0) - place(0, 0)

    /** The number of pixel (x, y) in the turned picture, row by row. */
    fun place(x: Int, y: Int): Int {
        val column = when (degrees) {
            0 -> x
            90 -> down - 1 - y
            180 -> from - 1 - x
            else -> y
        }
        val row = when (degrees) {
            0 -> y
            90 -> x
            180 -> down - 1 - y
            else -> from - 1 - x
        }
        return row * width + if (isMirrored) width - 1 - column else column
    }
}

/** Samples [first] to `first + count - 1` of the row of a plane that was read last. */
private class Row(private val plane: Plane, first: Int, val count: Int) {
    private val bytes = plane.bytes.duplicate()
    private val start = first * plane.pixelStride
    private var last = -1

    /** At `k * step` sample k. */
    val samples = ByteArray((count - 1) * plane.pixelStride + 1)
    val step: Int get() = plane.pixelStride

    fun read(row: Int) {
        if (row == last) return
        val buffer: Buffer = bytes // Android 8's ByteBuffer has no position of its own
        buffer.position(row * plane.rowStride + start)
        bytes.get(samples)
        last = row
    }
}

/** One row of pixels, each [step] bytes behind the one before it; [odd] 1: the first has the chroma of the one before. */
private fun writeRow(luma: Row, blue: Row, red: Row, odd: Int, rgb: ByteArray, start: Int, step: Int) {
    var to = start
    for (x in 0 until luma.count) {
        val pair = (x + odd) shr 1
        val y = ((luma.samples[x * luma.step].toInt() and 255) shl BITS) + HALF
        val cb = (blue.samples[pair * blue.step].toInt() and 255) - 128
        val cr = (red.samples[pair * red.step].toInt() and 255) - 128
        rgb[to] = clip(y + RED_OF_CR * cr)
        rgb[to + 1] = clip(y - GREEN_OF_CB * cb - GREEN_OF_CR * cr)
        rgb[to + 2] = clip(y + BLUE_OF_CB * cb)
        to += step
    }
}

/** BT.601's factors 1.402, 0.344136, 0.714136 and 1.772 in units of 2^-16, as libjpeg rounds them. */
private const val BITS = 16
private const val HALF = 1 shl (BITS - 1)
private const val RED_OF_CR = 91_881
private const val GREEN_OF_CB = 22_554
private const val GREEN_OF_CR = 46_802
private const val BLUE_OF_CB = 116_130

private fun clip(sum: Int): Byte = (sum shr BITS).coerceIn(0, 255).toByte()

private fun half(side: Int): Int = (side + 1) / 2

private fun checkPlane(name: String, plane: Plane, columns: Int, rows: Int) {
    val row = (columns - 1L) * plane.pixelStride + 1
    val needed = (rows - 1L) * plane.rowStride + row
    val overlap = rows > 1 && plane.rowStride < row
    if (plane.pixelStride < 1 || plane.rowStride < 1 || overlap || needed > plane.bytes.limit()) {
        throw ConfigException(
            "plane $name of $columns x $rows samples with row stride ${plane.rowStride}, pixel stride " +
                "${plane.pixelStride} and ${plane.bytes.limit()} bytes; strides must be 1 or more, a row must end " +
                "before the next begins, and the last sample be inside; pass the planes as the camera gives them",
        )
    }
}
