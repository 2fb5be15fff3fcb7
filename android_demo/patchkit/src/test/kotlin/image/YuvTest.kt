package patchdeploy.patchkit.image

import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.Path
import java.util.Base64
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.Document
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.json.JsonRules
import patchdeploy.patchkit.json.parseJson
import patchdeploy.patchkit.long

class YuvTest {
    private val goldens: List<Document> by lazy {
        val path = Path.of(System.getProperty("patchdeploy.repository"), "tests", "android", "yuv_vectors.json")
        @Suppress("UNCHECKED_CAST")
        parseJson(Files.readAllBytes(path), JsonRules(false, true, 308, 32)) as List<Document>
    }

    private fun Document.integers(key: String) = (getValue(key) as List<*>).map { (it as Long).toInt() }

    /** Planes in direct memory, read-only, as a camera may give them. */
    private fun direct(bytes: ByteArray): ByteBuffer =
        ByteBuffer.allocateDirect(bytes.size).put(bytes).asReadOnlyBuffer()

    @TestFactory
    fun `a golden frame has in Kotlin the bytes that it has in Python`(): List<DynamicTest> =
        goldens.mapIndexed { number, golden ->
            dynamicTest("frame $number") {
                val bytes = golden.base64("planes")
                var end = 0
                val planes = golden.integers("lengths").zip(golden["strides"] as List<*>) { length, strides ->
                    val (row, pixel) = (strides as List<*>).map { (it as Long).toInt() }
                    Plane(direct(bytes.copyOfRange(end, end + length)), row, pixel).also { end += length }
                }
                val (width, height) = listOf("width", "height").map { checkNotNull(golden.long(it)).toInt() }
                val (left, top, wide, high) = golden.integers("crop")
                val found = Yuv420(width, height, planes[0], planes[1], planes[2]).toPixels(
                    Rectangle(left, top, wide, high), checkNotNull(golden.long("rotation")).toInt(), golden["mirrored"] as Boolean,
                )
                assertEquals(golden.integers("size"), listOf(found.width, found.height))
                assertArrayEquals(golden.base64("rgb"), found.rgb)
            }
        }

    /** Samples of one component, and the same again as planes of any layout. */
    private class Samples(val width: Int, val height: Int, random: Random) {
        val bytes: ByteArray = random.nextBytes(width * height)

        fun plane(random: Random): Plane {
            val step = random.nextInt(1, 4)
            val row = (width - 1) * step + 1 + random.nextInt(9)
            val isShort = random.nextBoolean()
            val data = random.nextBytes((height - 1) * row + if (isShort) (width - 1) * step + 1 else row)
            for (y in 0 until height) for (x in 0 until width) data[y * row + x * step] = bytes[y * width + x]
            return Plane(ByteBuffer.wrap(data), row, step)
        }
    }

    private fun frames(work: (width: Int, height: Int, frame: () -> Yuv420, random: Random) -> Unit) {
        val random = Random(3)
        repeat(200) {
            val (width, height) = List(2) { random.nextInt(1, 12) }
            val luma = Samples(width, height, random)
            val chroma = List(2) { Samples((width + 1) / 2, (height + 1) / 2, random) }
            val make = { Yuv420(width, height, luma.plane(random), chroma[0].plane(random), chroma[1].plane(random)) }
            work(width, height, make, random)
        }
    }

    @Test
    fun `strides and what lies between the samples change no pixel`() = frames { _, _, frame, _ ->
        assertArrayEquals(frame().toPixels().rgb, frame().toPixels().rgb)
    }

    @Test
    fun `a crop is that part of the whole frame, where it begins at odd pixels, too`() = frames { width, height, frame, random ->
        val (left, top) = random.nextInt(width) to random.nextInt(height)
        val crop = Rectangle(left, top, random.nextInt(1, width - left + 1), random.nextInt(1, height - top + 1))
        val whole = frame().toPixels().rgb
        val found = frame().toPixels(crop)
        for (y in 0 until crop.height) for (x in 0 until crop.width * 3) {
            assertEquals(whole[((top + y) * width + left) * 3 + x], found.rgb[y * crop.width * 3 + x])
        }
    }

    /** A quarter turn clockwise: (x, y) comes to (height - 1 - y, x). */
    private fun turned(one: Pixels): Pixels {
        val rgb = ByteArray(one.rgb.size)
        for (y in 0 until one.height) for (x in 0 until one.width) for (c in 0 until 3) {
            rgb[(x * one.height + one.height - 1 - y) * 3 + c] = one.rgb[(y * one.width + x) * 3 + c]
        }
        return Pixels(one.height, one.width, rgb)
    }

    private fun mirrored(one: Pixels): Pixels {
        val rgb = ByteArray(one.rgb.size)
        for (y in 0 until one.height) for (x in 0 until one.width) for (c in 0 until 3) {
            rgb[(y * one.width + one.width - 1 - x) * 3 + c] = one.rgb[(y * one.width + x) * 3 + c]
        }
        return Pixels(one.width, one.height, rgb)
    }

    @Test
    fun `each rotation is so many quarter turns, and the mirror comes last`() = frames { _, _, frame, _ ->
        var expected = frame().toPixels()
        for (degrees in listOf(0, 90, 180, 270)) {
            val found = frame().toPixels(rotationDegrees = degrees)
            assertEquals(listOf(expected.width, expected.height), listOf(found.width, found.height))
            assertArrayEquals(expected.rgb, found.rgb)
            assertArrayEquals(mirrored(expected).rgb, frame().toPixels(rotationDegrees = degrees, isMirrored = true).rgb)
            expected = turned(expected)
        }
    }

    private fun plane(length: Int, row: Int, pixel: Int = 1) = Plane(ByteBuffer.allocate(length), row, pixel)

    @Test
    fun `a buffer that was read before counts from its start, and stays where it is`() {
        val bytes = ByteBuffer.wrap(byteArrayOf(9, 80, 90, 70)).apply { position(3) }
        val pixels = Yuv420(4, 1, Plane(bytes, 4, 1), plane(2, 2), plane(2, 2)).toPixels()
        assertEquals(3, bytes.position())
        val read = bytes.duplicate().apply { position(0) }
        assertArrayEquals(Yuv420(4, 1, Plane(read, 4, 1), plane(2, 2), plane(2, 2)).toPixels().rgb, pixels.rgb)
    }

    @Test
    fun `what lies beyond a buffer's limit is not read`() {
        val bytes = ByteBuffer.allocate(64).apply { limit(15) }
        assertThrows<ConfigException> { Yuv420(4, 4, Plane(bytes, 4, 1), plane(4, 2), plane(4, 2)) }
        bytes.limit(16)
        Yuv420(4, 4, Plane(bytes, 4, 1), plane(4, 2), plane(4, 2)).toPixels()
    }

    @TestFactory
    fun `planes that no camera has are refused before a byte is read`(): List<DynamicTest> = mapOf(
        "rows that overlap" to { Yuv420(4, 4, plane(64, 3), plane(4, 2), plane(4, 2)) },
        "rows that overlap by their pixel stride" to { Yuv420(4, 4, plane(64, 4), plane(64, 2, 2), plane(4, 2)) },
        "a row stride of 0" to { Yuv420(4, 1, plane(64, 0), plane(4, 2), plane(4, 2)) },
        "a negative row stride" to { Yuv420(4, 4, plane(64, -4), plane(4, 2), plane(4, 2)) },
        "a pixel stride of 0" to { Yuv420(4, 4, plane(64, 4), plane(4, 2), plane(4, 2, 0)) },
        "a negative pixel stride" to { Yuv420(4, 4, plane(64, 4), plane(4, 2, -1), plane(4, 2)) },
        "a product beyond 2^63" to { Yuv420(4, 4, plane(64, Int.MAX_VALUE, Int.MAX_VALUE), plane(4, 2), plane(4, 2)) },
        "a byte too few" to { Yuv420(5, 5, plane(25, 5), plane(9, 3), plane(8, 3)) },
        "no columns" to { Yuv420(0, 4, plane(64, 4), plane(4, 2), plane(4, 2)) },
        "no rows" to { Yuv420(4, 0, plane(64, 4), plane(4, 2), plane(4, 2)) },
        "too many pixels" to { Yuv420(Int.MAX_VALUE, Int.MAX_VALUE, plane(64, 4), plane(4, 2), plane(4, 2)) },
    ).map { (name, make) -> dynamicTest(name) { assertThrows<ConfigException> { make() } } }

    @Test
    fun `a message names the plane, its strides, the rule and the remedy`() {
        val error = assertThrows<ConfigException> { Yuv420(5, 5, plane(25, 5), plane(9, 3), plane(8, 3)) }
        assertEquals(
            "plane V of 3 x 3 samples with row stride 3, pixel stride 1 and 8 bytes; strides must be 1 or more, a row " +
                "must end before the next begins, and the last sample be inside; pass the planes as the camera gives them",
            error.message,
        )
    }

    @Test
    fun `a crop outside of the frame and other rotations are refused`() {
        val frame = Yuv420(4, 2, plane(8, 4), plane(2, 2), plane(2, 2))
        val crops = listOf(
            Rectangle(-1, 0, 2, 1), Rectangle(0, -1, 2, 1), Rectangle(0, 0, 0, 1), Rectangle(0, 0, 1, 0),
            Rectangle(1, 0, 4, 1), Rectangle(0, 1, 1, 2), Rectangle(1, 1, Int.MAX_VALUE, Int.MAX_VALUE),
        )
        for (crop in crops) assertThrows<ConfigException>("$crop") { frame.toPixels(crop) }
        for (degrees in listOf(45, 360, -90)) assertThrows<ConfigException> { frame.toPixels(rotationDegrees = degrees) }
        assertTrue(frame.toPixels(Rectangle(3, 1, 1, 1)).rgb.size == 3)
    }
}
