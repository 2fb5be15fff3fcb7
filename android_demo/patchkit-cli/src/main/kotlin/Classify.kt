package patchdeploy.cli

import java.io.ByteArrayInputStream
import java.io.IOException
import javax.imageio.ImageIO
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.engine.Engine
import patchdeploy.patchkit.engine.Prediction
import patchdeploy.patchkit.image.Pixels

private const val TOP = 5

/**
 * What is asked of `classify`.
 *
 * @property resolution null: the base's own, or the largest.
 */
internal class ClassifyOptions(
    val bundle: String,
    val images: List<String>,
    val task: String?,
    val resolution: Int?,
    val cascade: Boolean,
    val runtime: RuntimeName,
    val threads: Int,
)

/**
 * BUNDLE and images, then options.
 *
 * @throws WrongUse an option that is not known or has no value, no image.
 */
internal fun readClassifyOptions(arguments: List<String>): ClassifyOptions {
    val plain = ArrayList<String>()
    val options = HashMap<String, String>()
    val rest = ArrayDeque(arguments)
    while (rest.isNotEmpty()) {
        val argument = rest.removeFirst()
        when {
            argument == "--cascade" -> options[argument] = ""
            argument in setOf("--task", "--resolution", "--runtime", "--threads") ->
                options[argument] = rest.removeFirstOrNull() ?: throw WrongUse("$argument needs a value")
            argument.startsWith("--") -> throw WrongUse("no option '$argument'")
            else -> plain.add(argument)
        }
    }
    if (plain.size < 2) throw WrongUse("classify needs a bundle and an image or more")
    if ("--cascade" in options && "--resolution" in options) {
        throw WrongUse("a cascade chooses the resolution of each image; leave out --resolution or --cascade")
    }
    return ClassifyOptions(
        bundle = plain.first(),
        images = plain.drop(1),
        task = options["--task"],
        resolution = options["--resolution"]?.let { number("--resolution", it) },
        cascade = "--cascade" in options,
        runtime = RuntimeName.of(options["--runtime"] ?: "litert"),
        threads = options["--threads"]?.let { number("--threads", it) } ?: 1,
    )
}

private fun number(option: String, text: String): Int =
    text.toIntOrNull()?.takeIf { it >= 1 } ?: throw WrongUse("$option $text; it must be a whole number from 1 on")

/** Each image's answer; one that cannot be read has its error in the place of it. */
internal fun classify(options: ClassifyOptions): Map<String, Any?> =
    openEngine(options.bundle, options.runtime, options.threads).use { engine ->
        val task = options.task ?: engine.tasks.singleOrNull() ?: throw ConfigException(
            "no task named; the bundle has ${engine.tasks.joinToString().ifEmpty { "none" }}; name one with --task",
        )
        val answers = options.images.map { path -> mapOf("image" to path) + answer(engine, options, task, path) }
        mapOf("runtime" to engine.runtime, "task" to task, "answers" to answers)
    }

private fun answer(engine: Engine, options: ClassifyOptions, task: String, path: String): Map<String, Any?> {
    val pixels = try {
        decode(path)
    } catch (error: IOException) {
        return mapOf("error" to "cannot be read (${error.message}); pass a PNG, JPEG, GIF or BMP file")
    }
    val found = if (options.cascade) {
        engine.classifyByCascade(pixels, task)
    } else {
        engine.classify(pixels, task, options.resolution)
    }
    return described(found)
}

private fun described(found: Prediction): Map<String, Any?> = mapOf(
    "label" to found.label,
    "resolution" to found.resolution,
    "top" to found.top(TOP).map { mapOf("label" to it.label, "probability" to it.probability) },
    "ms" to found.times.run {
        mapOf("pre" to preMs, "swap" to swapMs, "inference" to inferenceMs, "post" to postMs)
    },
)

/**
 * A picture file by the JVM's own decoders, which for JPEG are not those of Python: single pixels
 * differ. Its orientation tag is not looked at.
 *
 * @throws IOException no picture that they read.
 */
private fun decode(path: String): Pixels {
    val image = ImageIO.read(ByteArrayInputStream(read(path))) ?: throw IOException("no picture of a known format")
    val argb = image.getRGB(0, 0, image.width, image.height, null, 0, image.width)
    val rgba = ByteArray(4 * argb.size)
    argb.forEachIndexed { k, pixel ->
        for ((c, shift) in intArrayOf(16, 8, 0, 24).withIndex()) rgba[4 * k + c] = (pixel shr shift).toByte()
    }
    return Pixels.fromRgba(image.width, image.height, rgba)
}
