package patchdeploy.cli

import java.io.DataInputStream
import java.io.InputStream
import java.io.PrintStream
import java.nio.ByteBuffer
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.cascade.CascadeRule
import patchdeploy.patchkit.cascade.ScoreKind
import patchdeploy.patchkit.cascade.Stage
import patchdeploy.patchkit.cascade.confidence
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.image.Preprocessing
import patchdeploy.patchkit.image.Plane
import patchdeploy.patchkit.image.Rectangle
import patchdeploy.patchkit.image.ResizeKind
import patchdeploy.patchkit.image.Yuv420
import patchdeploy.patchkit.image.resizeImage
import patchdeploy.patchkit.patchfile.enlarge
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.slots.checkBase
import patchdeploy.patchkit.slots.overlay

/**
 * Questions of tests/android/compare.py, one JVM for all of them.
 *
 * In: for each a line of JSON, `ask` and what it needs, then `bytes` bytes. Out: a line of JSON.
 */
internal fun answerQuestions(input: InputStream, output: PrintStream) {
    val source = DataInputStream(input.buffered(1 shl 16))
    val answers = output.bufferedWriter()
    while (true) {
        val line = readLine(source) ?: break
        val question = readDocument(line)
        val data = ByteArray((question.long("bytes") ?: 0).toInt()).also(source::readFully)
        answers.write(toJson(answer(question, data)))
        answers.newLine()
        if (source.available() == 0) answers.flush()
    }
    answers.flush()
}

private fun readLine(source: InputStream): ByteArray? {
    val line = java.io.ByteArrayOutputStream()
    while (true) {
        when (val byte = source.read()) {
            -1 -> return null
            '\n'.code -> return line.toByteArray()
            else -> line.write(byte)
        }
    }
}

private fun answer(question: Document, data: ByteArray): Map<String, Any?> = try {
    when (val ask = question.text("ask")) {
        "patch" -> judgePatch(question, data)
        "engine" -> mapOf("found" to question.engineAnswers(data))
        "manifest" -> manifestFields(data)
        "overlay" -> overlayAll(question, data)
        "confidence" -> mapOf("confidence" to question.confidences(data))
        "route" -> mapOf("stages" to question.routes(data))
        "resize" -> mapOf("sha256" to sha256Hex(question.resized(data)))
        "yuv" -> question.frame(data).let { mapOf("size" to listOf(it.width, it.height), "sha256" to sha256Hex(it.rgb)) }
        "enlarge" -> mapOf("sha256" to sha256Hex(enlarge(data, question.int("px"))))
        "store" -> mapOf("found" to question.useStore(data))
        "slots" -> mapOf("code" to "ok").also { SlotTable.fromJson(data) }
        else -> error("no question '$ask'")
    }
} catch (error: PatchRefusedException) {
    mapOf("code" to error.code.text)
} catch (error: PatchkitException) {
    mapOf("code" to error::class.simpleName)
} catch (error: RuntimeException) { // a fault of ours; compare.py shows it beside what Python says
    mapOf("code" to "raw $error")
}

private val tables = HashMap<String, CodingTable>()

internal fun tableAt(path: String): CodingTable = tables.getOrPut(path) { CodingTable.fromBytes(read(path)) }

/** Checks 1 to 8 of a file, and hashes of all that comes of it. */
private fun judgePatch(question: Document, data: ByteArray): Map<String, Any?> {
    val patch = openPatch(data, policyOf(question.child("policy")), tableAt(question.text("table"))).patch
    val golden = patch.golden
    return mapOf(
        "code" to "ok",
        "labels" to patch.classes,
        "values" to patch.values.mapValues { sha256Hex(hashes(it.value).values.joinToString("").toByteArray()) },
        "golden" to golden?.let { listOf(it.images, it.toleranceLsb) },
        "cascade" to patch.cascade?.let(::cascadeOf),
    )
}

/** SHA-256 of a base file with each resolution of a patch laid over it. */
private fun overlayAll(question: Document, data: ByteArray): Map<String, Any?> {
    val opened = openPatch(data, policyOf(question.child("policy")), tableAt(question.text("table")))
    val base = read(question.text("base"))
    val slots = SlotTable.fromJson(read(question.text("slots")))
    checkBase(base, slots)
    val found = opened.patch.values.mapValues { (px, values) -> sha256Hex(overlay(base, slots, px, values)) }
    return mapOf("found" to found, "signed" to opened.checked.header.results[slots.runtime])
}

/** int8 [images, classes] of the data, image by image. */
private fun Document.images(data: ByteArray): List<ByteArray> {
    val classes = int("classes")
    return data.indices.step(classes).map { data.copyOfRange(it, it + classes) }
}

private fun Document.kind(): ScoreKind = ScoreKind.entries.first { it.text == text("kind") }

private fun Document.confidences(data: ByteArray): List<Int> =
    images(data).map { confidence(kind(), it, getValue("ratio") as Long) }

/** The data holds the scores of all images for the first stage, then for the second, and so on. */
private fun Document.routes(data: ByteArray): List<Int> {
    val stages = (getValue("stages") as List<*>).map { row ->
        val (px, threshold, ratio) = (row as List<*>).map { it as Long }
        Stage(px.toInt(), threshold, ratio)
    }
    val rule = CascadeRule(kind(), stages)
    val all = images(data)
    val count = all.size / (stages.size - 1)
    return (0 until count).map { image ->
        rule.route { px -> all[stages.indexOfFirst { it.resolution == px } * count + image] }
    }
}

private fun Document.resized(data: ByteArray): ByteArray {
    val width = int("width")
    val height = int("height")
    val pixels = when (int("channels")) {
        1 -> Pixels.fromGrey(width, height, data)
        3 -> Pixels(width, height, data)
        else -> Pixels.fromRgba(width, height, data)
    }
    val kind = if (text("resize") == "crop") ResizeKind.CROP else ResizeKind.SQUASH
    return resizeImage(pixels, int("px"), Preprocessing(kind, text("crop_fraction").toDouble()))
}

/** A frame of a camera; the data is its three planes in turn. */
private fun Document.frame(data: ByteArray): Pixels {
    var end = 0
    val planes = integers("lengths").zip(getValue("strides") as List<*>) { length, strides ->
        val (row, pixel) = (strides as List<*>).map { (it as Long).toInt() }
        Plane(ByteBuffer.wrap(data.copyOfRange(end, end + length)), row, pixel).also { end += length }
    }
    val (left, top, width, height) = integers("crop")
    val frame = Yuv420(int("width"), int("height"), planes[0], planes[1], planes[2])
    return frame.toPixels(Rectangle(left, top, width, height), int("rotation"), get("mirrored") as Boolean)
}

private fun Document.integers(key: String): List<Int> = (getValue(key) as List<*>).map { (it as Long).toInt() }
