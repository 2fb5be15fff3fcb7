package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.coding.ByteCodes
import patchdeploy.patchkit.coding.Codes
import patchdeploy.patchkit.coding.CodingSteps
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.coding.PatchCodes
import patchdeploy.patchkit.coding.decodeValues
import patchdeploy.patchkit.json.JsonException
import patchdeploy.patchkit.json.JsonRules
import patchdeploy.patchkit.json.parseJson
import patchdeploy.patchkit.json.utf8

/**
 * The payload of a patch file: what each of its parts holds.
 *
 * In: a payload that checks 1 to 6 passed, and the base's [CodingTable]. Out: a [PatchFile]. Header
 * and table say how long each part may be before a byte is inflated.
 */

private const val MAX_LABEL_BYTES = 1L shl 20
private const val MAX_NOTES_BYTES = 1L shl 18
private const val MAX_NOTES_LEVELS = 32
private const val MAX_PLANES = 5

/** A base with more of one kind, all resolutions together, does not fit in an app's memory. */
private const val MAX_VALUES = 1L shl 28

/** Deeper texts than this are not parsed; levels of a key that comes again do not count. */
private const val PARSED_LEVELS = 900
private val NOTES_RULES = JsonRules(repeatedKeys = true, loneSurrogates = true, Int.MAX_VALUE, PARSED_LEVELS)

/**
 * Checks 7 and 8.
 *
 * @param resolution decode the values of this one alone; by default of all.
 * @throws PatchRefusedException codes "sites", "inflate", "parts", "work", "values".
 * @throws UnknownResolutionException [resolution] is not in it.
 */
internal fun decodePayload(checked: CheckedPatch, table: CodingTable, resolution: Int?): PatchFile {
    val header = checked.header
    if (resolution != null && resolution !in header.resolutions) {
        throw UnknownResolutionException(
            "patch '${header.task}' holds no $resolution px; it has " +
                "${header.resolutions.sorted().joinToString()}; choose one of them or export the task again",
        )
    }
    checkSites(header, table)
    val sides = header.resolutions
    val lengths = Lengths(sides.size, header.classes, table)
    val contents = readParts(checked.payload, lengths.mostBytes(header.results.size), header.hasOptionalParts)
    val labels = readLabels(contents.getValue("labels"), header.classes)
    val notes = readNotes(contents.getValue("notes"))
    val codes = readCodes(contents, header, lengths)
    val golden = readGolden(contents.getValue("golden"), header.results.keys.sorted(), sides, header.classes)
    val cascade = contents["cascade"]?.let { readCascade(it, sides) }
    checkWork(golden?.images ?: 0, sides)
    codes.steps.check()
    val wanted = sides.indices.filter { resolution == null || resolution == sides[it] }
    val values = wanted.associate { sides[it] to decodeValues(codes, table, it) }
    return PatchFile(header.task, labels, header.baseSha256, values, notes, golden, cascade)
}

/** A base file holds no task's values, so a patch must set every slot and no other. */
private fun checkSites(header: PatchHeader, table: CodingTable) {
    if (header.sites != listOf(SlotRun(0, table.slotCount))) {
        throw refuse("sites", "[[0,${table.slotCount}]]", header.sites.take(4), RefusalCode.SITES)
    }
    if (header.classes > table.layout.headCapacity) {
        val rule = "at most ${table.layout.headCapacity}, the head's rows in this base"
        throw refuse("classes", rule, header.classes, RefusalCode.SITES)
    }
}

/** How many values the parts hold, of one resolution; products with the number of [sides] are Long. */
private class Lengths(val sides: Int, val classes: Int, table: CodingTable) {
    private val layout = table.layout
    val convs = table.convs.size
    val rows = layout.rows - layout.headCapacity + classes
    val sites = layout.sites
    val kernels = layout.elements - layout.headCapacity * layout.headRowElements
    val head = classes * layout.headRowElements

    init {
        val longest = maxOf(rows, sites, maxOf(kernels, head)).toLong() * sides
        if (longest > MAX_VALUES) throw refuse("values of one kind", "at most $MAX_VALUES", longest, RefusalCode.SITES)
    }

    /** Of all resolutions together. */
    fun all(count: Int): Int = sides * count

    fun mostBytes(runtimes: Int): Map<String, Long> = mapOf(
        "labels" to MAX_LABEL_BYTES + 2L * classes,
        "notes" to MAX_NOTES_BYTES,
        "steps" to 2L * convs,
        "activations" to 1 + (1L + MAX_PLANES) * sides * sites,
        "scales" to 1 + 1L * MAX_PLANES * sides * rows,
        "biases" to 1 + 1L * MAX_PLANES * sides * rows,
        "kernels" to 1L * sides * kernels,
        "head" to 1L * sides * head,
        "golden" to goldenLength(MAX_IMAGES, 1L * runtimes * sides, classes),
        "cascade" to MAX_CASCADE_BYTES.toLong(),
    )
}

private fun readCodes(contents: Map<String, Bytes>, header: PatchHeader, lengths: Lengths): PatchCodes {
    val steps = readSteps(contents.getValue("steps"), lengths.convs)
    val activations = contents.getValue("activations")
    val allSites = lengths.all(lengths.sites)
    if (activations.size < allSites) throw refuse("activations length", "at least $allSites bytes", activations.size)
    fun planes(name: String, place: Int, count: Int) =
        Codes(readPlanes(name, contents.getValue(name), place, lengths.all(count)), count)
    fun bytes(name: String, count: Int): ByteCodes {
        val content = contents.getValue(name)
        if (content.size != lengths.all(count)) {
            throw refuse("$name length", "${lengths.all(count)} bytes over this base", content.size)
        }
        return ByteCodes(content, count)
    }
    return PatchCodes(
        steps = steps,
        classes = header.classes,
        sides = header.resolutions,
        zeroPoints = ByteCodes(activations.slice(0, allSites), lengths.sites),
        activationScales = planes("activations", allSites, lengths.sites),
        scales = planes("scales", 0, lengths.rows),
        biases = planes("biases", 0, lengths.rows),
        kernels = bytes("kernels", lengths.kernels),
        head = bytes("head", lengths.head),
    )
}

/** Steps of any value; [CodingSteps.check] looks at them later. */
private fun readSteps(content: Bytes, convs: Int): CodingSteps {
    if (content.size != 2 * convs) throw refuse("steps length", "${2 * convs} bytes over this base", content.size)
    return CodingSteps(
        IntArray(convs) { content[it] },
        IntArray(convs) { content.signed(convs + it).toInt() },
    )
}

private fun readLabels(content: Bytes, count: Int): List<String> {
    val labels = ArrayList<String>()
    var place = 0
    while (content.size - place >= 2 && labels.size < count) {
        val end = place + 2 + content.u16(place)
        if (end > content.size) throw refuse("labels", "$count whole labels", "one that is cut")
        labels.add(readText("labels", content.slice(place + 2, end)))
        place = end
    }
    if (place != content.size || labels.size != count || labels.toSet().size != count) {
        throw refuse("labels", "$count labels, each once", "${labels.size}, ${labels.toSet().size} of them different")
    }
    return labels
}

private fun readNotes(content: Bytes): Map<String, Any?> {
    val notes = try {
        parseJson(content.copy(), NOTES_RULES)
    } catch (error: JsonException) {
        throw refuse("notes", "JSON", error.message, cause = error)
    }
    if (notes !is Map<*, *>) throw refuse("notes", "a JSON object", "another value")
    val levels = levels(notes)
    if (levels > MAX_NOTES_LEVELS) throw refuse("notes", "at most $MAX_NOTES_LEVELS levels deep", levels)
    @Suppress("UNCHECKED_CAST") // an object of JSON
    return notes as Map<String, Any?>
}

/** Objects and lists inside each other. */
private fun levels(value: Any?): Int = when (value) {
    is Map<*, *> -> 1 + (value.values.maxOfOrNull(::levels) ?: 0)
    is List<*> -> 1 + (value.maxOfOrNull(::levels) ?: 0)
    else -> 0
}

private fun readText(name: String, content: Bytes): String = try {
    utf8(content.copy())
} catch (error: JsonException) {
    throw refuse(name, "UTF-8", error.message, cause = error)
}
