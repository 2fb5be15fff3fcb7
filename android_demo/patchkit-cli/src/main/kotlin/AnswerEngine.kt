package patchdeploy.cli

import patchdeploy.patchkit.bundle.Manifest
import patchdeploy.patchkit.engine.Engine
import patchdeploy.patchkit.image.Pixels

/** Engines that compare.py asked for, by bundle, runtime and threads; they end with the process. */
private val engines = HashMap<Triple<String, String, Int>, Engine>()

/** By image, the side that answered and the bits of its scores; the data is images, uint8 RGB of one size. */
internal fun Document.engineAnswers(data: ByteArray): List<List<Any?>> {
    val key = Triple(text("bundle"), text("runtime"), int("threads"))
    val engine = engines.getOrPut(key) { openEngine(key.first, RuntimeName.of(key.second), key.third) }
    val length = int("width") * int("height") * 3
    return data.indices.step(length).map { start ->
        val image = Pixels(int("width"), int("height"), data.copyOfRange(start, start + length))
        val side = long("px")?.toInt()
        val found = if (side == null) engine.classifyByCascade(image, text("task")) else engine.classify(image, text("task"), side)
        listOf(found.resolution, found.scores.map { it.toRawBits() })
    }
}

/** What Python and Kotlin both read off a manifest. */
internal fun manifestFields(data: ByteArray): Map<String, Any?> {
    val manifest = Manifest.fromJson(data)
    return mapOf(
        "code" to "ok",
        "tasks" to manifest.tasks.mapValues { (_, task) -> listOf(task.file, task.labels, task.resolutions) },
        "files" to manifest.files.mapValues { (_, file) -> listOf(file.sha256, file.bytes, file.ships) },
        "converters" to manifest.converters.mapValues { (_, one) -> listOf(one.file, one.slots) },
        "base" to listOf(manifest.baseName, manifest.baseSha256, manifest.coding),
        "trusted" to manifest.trusted?.keys?.map { it?.hex },
        "resolutions" to manifest.resolutions,
        "input_size" to manifest.inputSize,
    )
}
