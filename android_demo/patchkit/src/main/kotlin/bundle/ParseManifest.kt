package patchdeploy.patchkit.bundle

import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.HEX64_RULE
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.coding.PatchLayout
import patchdeploy.patchkit.image.Preprocessing
import patchdeploy.patchkit.image.ResizeKind
import patchdeploy.patchkit.json.Field
import patchdeploy.patchkit.json.parseDocument
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.store.TASK_NAME

/** Reading a manifest: every value of its type and in its range, then what they say of each other. */

private const val FORMAT = 2
private const val MAX_LEVELS = 36
private const val MAX_FILES = 65_536
private const val MAX_FILE_BYTES = 1 shl 30
private const val MAX_BUNDLE_BYTES = 16L shl 30
private const val MAX_CONVERTERS = 8
private const val MAX_NAME = 4096
private const val MAX_LABEL = 65_535
private const val MAX_KEYS_BYTES = 65_536
private const val MAX_RESOLUTIONS = 16
private const val MAX_RESOLUTION = 4096
private const val MAX_METRICS = 65_536
private const val TASK_RULE = "1 to 64 of a-z, 0-9, underscore and hyphen"
private val ANY = Regex("(?s).*")
private val PATH = Regex("[A-Za-z0-9._/-]{1,200}")
private val DECIMAL = Regex("[1-9][0-9]{0,9}")
private val CONVERTER = Regex("[a-z0-9_-]{1,32}")
private const val SELF = "manifest_sha256"
private val SELF_LINE = Regex("\n  \"$SELF\": \"([0-9a-f]{64})\",(?=\n)")

internal fun parseManifest(data: ByteArray): Manifest {
    val document = parseDocument(data, "manifest", Manifest.MAX_BYTES, MAX_LEVELS)
    val format = (document.value as? Map<*, *>)?.get("format")
    if (document.value is Map<*, *> && format != FORMAT.toLong()) {
        throw FileFormatException(
            "manifest has format ${format.toString().take(80)}; this version reads format $FORMAT; export " +
                "the bundle again or upgrade patchkit",
        )
    }
    val fields = document.keys(
        "patchdeploy", "base_name", "base_sha256", "coding", "trusted", "source_sha256", "preprocessing",
        "resolutions", "layout", "converters", "tasks", "files", "format", SELF,
    )
    checkOwnHash(data, fields.getValue(SELF))
    return parse(fields).also(::checkFiles)
}

private fun checkOwnHash(data: ByteArray, recorded: Field) {
    val text = String(data, Charsets.ISO_8859_1) // one character a byte, and back
    val line = SELF_LINE.find(text)
    val found = line?.let { sha256Hex(text.removeRange(it.range).toByteArray(Charsets.ISO_8859_1)) }
    if (line == null || found != recorded.value || line.groupValues[1] != found) {
        throw IntegrityException(
            "manifest.json has SHA-256 ${found ?: "in another place"} but records " +
                "${recorded.value.toString().take(80)}; it must be the exact bytes that patchdeploy wrote; " +
                "copy the bundle again",
        )
    }
}

private fun parse(fields: Map<String, Field>): Manifest {
    val resolutions = resolutions(fields.getValue("resolutions"))
    val layout = PatchLayout.read(fields.getValue("layout"))
    val converters = fields.getValue("converters").table(
        CONVERTER, "1 to 32 of a-z, 0-9, underscore and hyphen", MAX_CONVERTERS, 1,
    )
    val tasks = fields.getValue("tasks").table(TASK_NAME, TASK_RULE, MAX_FILES)
    val preprocessing = preprocessing(fields.getValue("preprocessing"))
    fields.getValue("source_sha256").text(HEX64, HEX64_RULE)
    return Manifest(
        patchdeploy = fields.getValue("patchdeploy").shortText(100),
        baseName = fields.getValue("base_name").shortText(MAX_NAME),
        baseSha256 = fields.getValue("base_sha256").text(HEX64, HEX64_RULE),
        coding = path(fields.getValue("coding")),
        trusted = trusted(fields.getValue("trusted")),
        preprocessing = preprocessing.first,
        inputSize = preprocessing.second,
        resolutions = resolutions,
        layout = layout,
        converters = converters.mapValues { (_, value) -> converter(value) },
        tasks = tasks.mapValues { (_, value) -> task(value, layout, resolutions) },
        files = fields.getValue("files").table(ANY, "a path", MAX_FILES).entries
            .associate { (name, value) -> checkPath(name) to file(value) },
    )
}

private fun path(value: Field): String = checkPath(value.text(ANY, "a path"))

private fun converter(value: Field): ConverterEntry {
    val body = value.keys("file", "slots")
    return ConverterEntry(path(body.getValue("file")), path(body.getValue("slots")))
}

private fun file(value: Field): FileEntry {
    val body = value.keys("sha256", "bytes", "ships")
    return FileEntry(
        body.getValue("sha256").text(HEX64, HEX64_RULE),
        body.getValue("bytes").integer(0, MAX_FILE_BYTES),
        body.getValue("ships").flag(),
    )
}

private fun trusted(value: Field): TrustedKeys? {
    if (value.value == null) return null
    try {
        return TrustedKeys.fromBytes(value.shortText(MAX_KEYS_BYTES).toByteArray())
    } catch (error: PatchKeyException) {
        throw FileFormatException("${value.name}: ${error.message}", error)
    }
}

/** What patchkit uses of it, and the side that the network was trained at; the rest is inside the network. */
private fun preprocessing(value: Field): Pair<Preprocessing, Int> {
    val body = value.keys("mean", "std", "input_size", "channel_order", "resize", "crop_fraction")
    body.getValue("mean").items(3, 3).forEach { it.number(-Double.MAX_VALUE, Double.MAX_VALUE) }
    body.getValue("std").items(3, 3).forEach { it.number(java.lang.Double.MIN_VALUE, Double.MAX_VALUE) }
    body.getValue("channel_order").text(Regex("RGB|BGR"), "RGB or BGR")
    val kind = when (body.getValue("resize").text(Regex("squash|crop"), "squash or crop")) {
        "crop" -> ResizeKind.CROP
        else -> ResizeKind.SQUASH
    }
    val fraction = body.getValue("crop_fraction").number(Preprocessing.LEAST_CROP_FRACTION, 1.0)
    return Preprocessing(kind, fraction) to body.getValue("input_size").integer(1, MAX_RESOLUTION)
}

private fun task(value: Field, layout: PatchLayout, exported: List<Int>): TaskEntry {
    val body = value.keys("file", "classes", "resolutions", "metrics", "float_files")
    val labels = body.getValue("classes").items(layout.headCapacity, 2).map { it.shortText(MAX_LABEL) }
    if (labels.toSet().size < labels.size) body.getValue("classes").refuse("labels of which each comes once")
    val resolutions = resolutions(body.getValue("resolutions"))
    if (!exported.containsAll(resolutions)) {
        body.getValue("resolutions").refuse("among the bundle's, ${exported.joinToString()}")
    }
    body.getValue("metrics").table(ANY, "any text", MAX_METRICS)
    val floats = body.getValue("float_files").table(DECIMAL, "a side in pixels", resolutions.size)
    for ((px, place) in floats) {
        if (px.toLong() !in resolutions.map(Int::toLong)) place.refuse("absent, as the task has no $px px")
        path(place)
    }
    return TaskEntry(path(body.getValue("file")), labels, resolutions, floats.values.map { it.value as String })
}

private fun resolutions(value: Field): List<Int> {
    val found = value.items(MAX_RESOLUTIONS, 1).map { it.integer(1, MAX_RESOLUTION) }
    if (found != found.toSortedSet().toList()) value.refuse("ascending, each once")
    return found
}

/** Each file is recorded, has one use, and ships where an app needs it. */
private fun checkFiles(manifest: Manifest) {
    val needed = listOf(manifest.coding) + manifest.converters.values.flatMap { listOf(it.file, it.slots) } +
        manifest.tasks.values.map { it.file }
    val uses = (needed + manifest.tasks.values.flatMap { it.floatFiles }).groupingBy { it }.eachCount()
    for ((path, count) in uses) {
        if (path !in manifest.files) {
            throw FileFormatException(
                "the manifest names '$path' but records no hash of it; every file must be under files; " +
                    "export the bundle again",
            )
        }
        if (count > 1) {
            throw FileFormatException(
                "the manifest names '$path' $count times; a file must have one use; export the bundle again",
            )
        }
    }
    needed.find { !manifest.files.getValue(it).ships }?.let {
        throw FileFormatException(
            "manifest: files.$it has ships false; an app needs this file, so it must be true; export the " +
                "bundle again",
        )
    }
    val total = manifest.files.values.sumOf { it.bytes.toLong() }
    if (total > MAX_BUNDLE_BYTES) {
        throw FileFormatException(
            "manifest: files has $total bytes in all; a bundle must have at most $MAX_BUNDLE_BYTES; export " +
                "it with fewer tasks or without float files",
        )
    }
}

/** [path], which is relative, normal, inside the bundle and nothing that a writer hides. */
private fun checkPath(path: String): String {
    val hidden = path.split('/').any { it.isEmpty() || it.startsWith('.') }
    if (hidden || path == Manifest.NAME || !PATH.matches(path)) {
        throw FileFormatException(
            "path '${path.take(200)}' in the manifest; a path must be relative, of letters, digits, dot, " +
                "hyphen and underscore, no part beginning with a dot, and stay inside the bundle; do not " +
                "use this bundle",
        )
    }
    return path
}
