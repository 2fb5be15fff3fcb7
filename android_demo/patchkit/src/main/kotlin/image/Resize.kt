package patchdeploy.patchkit.image

import patchdeploy.patchkit.ConfigException

/**
 * A picture made into the network's input: Pillow's antialiased bilinear filter, to the byte.
 *
 * In: [Pixels] of any size. Out: uint8 [px, px, 3] RGB, the same as training and calibration saw;
 * mean and deviation are inside the network. The filter is that of Pillow's Resample.c: weights in
 * float64, rounded to 22 bits behind the point; one axis after the other, each rounded to 8 bits.
 * Which comes first is as in Pillow 13; up to Pillow 12 it was always the rows.
 */

/** Ignore the aspect ratio, or resize the shorter side and keep the centre. */
public enum class ResizeKind { SQUASH, CROP }

/**
 * @property resize how the sides are made equal.
 * @property cropFraction of the resized shorter side that the centre crop keeps, 0.1 to 1.
 */
public data class Preprocessing(val resize: ResizeKind, val cropFraction: Double = 1.0) {
    init {
        if (!(cropFraction in LEAST_CROP_FRACTION..1.0)) {
            throw ConfigException("crop_fraction $cropFraction; it must be in [$LEAST_CROP_FRACTION, 1]; correct it")
        }
    }

    internal companion object {
        const val LEAST_CROP_FRACTION = 0.1
    }
}

private const val MOST_SIDE_PX = 4096

/** A crop that would resize to more than so many times the result's pixels resizes its centre alone. */
private const val MOST_STRETCH = 16

/**
 * uint8 [sizePx, sizePx, 3] of [image].
 *
 * @throws ConfigException [sizePx] is not 1 to 4096.
 */
public fun resizeImage(image: Pixels, sizePx: Int, preprocessing: Preprocessing): ByteArray {
    if (sizePx !in 1..MOST_SIDE_PX) {
        throw ConfigException("an input of $sizePx px; it must be 1 to $MOST_SIDE_PX; choose a resolution of the task")
    }
    if (preprocessing.resize == ResizeKind.SQUASH) {
        val across = whole(image.width, sizePx, sizePx, 0)
        return resample(image, across, whole(image.height, sizePx, sizePx, 0), isDownFirst(image, sizePx, sizePx))
    }
    val shorter = maxOf(sizePx, Math.rint(sizePx / preprocessing.cropFraction).toInt())
    val scale = shorter.toDouble() / minOf(image.width, image.height)
    val wide = maxOf(shorter.toLong(), (image.width * scale).toLong())
    val high = maxOf(shorter.toLong(), (image.height * scale).toLong())
    val left = (wide - sizePx) / 2
    val top = (high - sizePx) / 2
    if (wide.toDouble() * high > MOST_STRETCH.toDouble() * sizePx * sizePx) {
        val across = centre(image.width, wide, left, sizePx)
        val down = centre(image.height, high, top, sizePx)
        return resample(image, across, down, isDownFirst(image, sizePx, sizePx))
    }
    val across = whole(image.width, wide.toInt(), sizePx, left.toInt())
    val down = whole(image.height, high.toInt(), sizePx, top.toInt())
    return resample(image, across, down, isDownFirst(image, wide.toInt(), high.toInt()))
}

/** Pillow 13's rule: the height shrinks, and by more than twice as many pixels as the width. */
private fun isDownFirst(image: Pixels, width: Int, height: Int): Boolean =
    image.height > height && image.height - height > 2 * (image.width - width)

/** Of an axis of [length] pixels resized to [resized], the [size] from [first] on. */
private fun whole(length: Int, resized: Int, size: Int, first: Int): AxisWeights =
    AxisWeights.make(length, 0f, length.toFloat(), resized, first, size)

/** The same from the part of the axis that they come from alone; Pillow takes its ends as float32. */
private fun centre(length: Int, resized: Long, first: Long, size: Int): AxisWeights {
    val step = length.toDouble() / resized
    return AxisWeights.make(length, (first * step).toFloat(), ((first + size) * step).toFloat(), size, 0, size)
}
