package patchdeploy.demo

import android.content.ContentResolver
import android.content.res.AssetManager
import android.graphics.Bitmap
import android.graphics.BitmapFactory
import android.graphics.Matrix
import android.media.ExifInterface
import android.net.Uri
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import patchdeploy.patchkit.image.Pixels

/** Longest side of a picture in memory; a network's input is far smaller. */
private const val MOST_PX = 1600
private const val FOLDER = "pictures"

/** Pictures that ship, and those that the user picks: upright bitmaps. */
class Pictures(private val assets: AssetManager, private val content: ContentResolver) {
    /** File names of what ships, sorted: `<task>-<number>-<label>.png`. */
    val samples: List<String> = assets.list(FOLDER).orEmpty().sorted()

    /** @throws IOException it is not there or is no picture. */
    fun sample(name: String): Bitmap = decode { assets.open("$FOLDER/$name") }

    /** @throws IOException it is not there, may not be read, or is no picture. */
    fun picked(uri: String): Bitmap = decode {
        content.openInputStream(Uri.parse(uri)) ?: throw FileNotFoundException(uri)
    }

    private fun decode(open: () -> InputStream): Bitmap {
        val bounds = BitmapFactory.Options().apply { inJustDecodeBounds = true }
        open().use { BitmapFactory.decodeStream(it, null, bounds) }
        val longest = maxOf(bounds.outWidth, bounds.outHeight)
        val options = BitmapFactory.Options().apply {
            inSampleSize = generateSequence(1) { it * 2 }.first { longest / it <= MOST_PX }
            inScaled = false
        }
        val decoded = open().use { BitmapFactory.decodeStream(it, null, options) } ?: throw NoPictureException()
        return turn(decoded, open().use { ExifInterface(it).getAttributeInt(ExifInterface.TAG_ORIENTATION, 1) })
    }
}

/** Bytes that are no picture of a kind that Android reads. */
class NoPictureException : IOException("no picture")

/** [orientation] is EXIF's, 1 to 8. */
private fun turn(bitmap: Bitmap, orientation: Int): Bitmap {
    val matrix = Matrix()
    if (orientation in listOf(2, 4, 5, 7)) matrix.postScale(-1f, 1f)
    val degrees = when (orientation) {
        3, 4 -> 180f
        5, 8 -> 270f
        6, 7 -> 90f
        else -> 0f
    }
    matrix.postRotate(degrees)
    return if (matrix.isIdentity) bitmap else Bitmap.createBitmap(bitmap, 0, 0, bitmap.width, bitmap.height, matrix, false)
}

/** What the engine takes; transparent parts lie over white. */
fun Bitmap.toPixels(): Pixels {
    val colours = IntArray(width * height)
    getPixels(colours, 0, width, 0, 0, width, height)
    val rgba = ByteArray(colours.size * 4)
    for (k in colours.indices) {
        rgba[4 * k] = (colours[k] shr 16).toByte()
        rgba[4 * k + 1] = (colours[k] shr 8).toByte()
        rgba[4 * k + 2] = colours[k].toByte()
        rgba[4 * k + 3] = (colours[k] ushr 24).toByte()
    }
    return Pixels.fromRgba(width, height, rgba)
}

/** For the screen: the very pixels that the engine saw. */
fun Pixels.toBitmap(): Bitmap {
    val colours = IntArray(width * height) {
        val at = 3 * it
        (255 shl 24) or (rgb[at].toInt() and 255 shl 16) or (rgb[at + 1].toInt() and 255 shl 8) or (rgb[at + 2].toInt() and 255)
    }
    return Bitmap.createBitmap(colours, width, height, Bitmap.Config.ARGB_8888)
}
