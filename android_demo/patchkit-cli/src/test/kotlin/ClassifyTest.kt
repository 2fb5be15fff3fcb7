package patchdeploy.cli

import java.awt.image.BufferedImage
import java.nio.file.Files
import java.nio.file.Path
import javax.imageio.ImageIO
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeEach
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.bundle.BundleVectors
import patchdeploy.patchkit.image.Pixels

class ClassifyTest {
    @TempDir
    lateinit var folder: Path

    private val bundle: String get() = folder.resolve("bundle").toString()

    @BeforeEach
    fun write() {
        for ((path, data) in BundleVectors.files) {
            val place = folder.resolve("bundle").resolve(path)
            Files.createDirectories(place.parent)
            Files.write(place, data)
        }
    }

    private fun png(image: Pixels, name: String): String {
        val picture = BufferedImage(image.width, image.height, BufferedImage.TYPE_INT_RGB)
        for (k in 0 until image.width * image.height) {
            val (red, green, blue) = List(3) { image.rgb[3 * k + it].toInt() and 255 }
            picture.setRGB(k % image.width, k / image.width, red shl 16 or (green shl 8) or blue)
        }
        return folder.resolve(name).toString().also { ImageIO.write(picture, "png", java.io.File(it)) }
    }

    private fun answers(vararg arguments: String): List<Map<*, *>> =
        (classify(readClassifyOptions(arguments.toList()))["answers"] as List<*>).map { it as Map<*, *> }

    @Test
    fun `picture files get the labels that the scores of the vectors give, from either runtime`() {
        val paths = BundleVectors.images.mapIndexed { k, image -> png(image, "$k.png") }.toTypedArray()
        for (runtime in RuntimeName.entries) {
            val name = runtime.name.lowercase()
            val expected = BundleVectors.scores(runtime.format, "second", 16)
                .map { scores -> "class ${scores.indices.maxBy { scores[it] }}" }
            val found = answers(bundle, *paths, "--task", "second", "--resolution", "16", "--runtime", name)
            assertEquals(expected, found.map { it["label"] })
            val cascade = answers(bundle, *paths, "--task", "first", "--cascade", "--runtime", name, "--threads", "2")
            assertEquals(BundleVectors.stages(runtime.format), cascade.map { it["resolution"] })
        }
    }

    @Test
    fun `an image that cannot be read has its error in the place of an answer`() {
        val text = Files.write(folder.resolve("a.png"), "text".toByteArray()).toString()
        val good = png(BundleVectors.images[0], "b.png")
        val found = answers(bundle, text, folder.resolve("none.png").toString(), good, "--task", "first")
        assertEquals(listOf(true, true, false), found.map { "error" in it })
        assertTrue("label" in found[2])
    }

    @Test
    fun `what is asked wrongly is said`() {
        for (wrong in listOf(
            listOf(bundle),
            listOf(bundle, "a.png", "--task"),
            listOf(bundle, "a.png", "--px", "3"),
            listOf(bundle, "a.png", "--resolution", "0"),
            listOf(bundle, "a.png", "--resolution", "16", "--cascade"),
        )) {
            assertThrows<WrongUse>("$wrong") { readClassifyOptions(wrong) }
        }
        assertThrows<ConfigException> { readClassifyOptions(listOf(bundle, "a.png", "--runtime", "coreml")) }
        assertThrows<ConfigException> { answers(bundle, "a.png") } // two tasks, none named
    }
}
