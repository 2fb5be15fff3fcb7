package patchdeploy.patchkit.slots

import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.HEX64_RULE
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.json.Field
import patchdeploy.patchkit.json.parseDocument

/** The JSON of a slot table, read value by value; docs/slots.md. */

private const val FORMAT = 1
private const val MAX_TABLE_BYTES = 16 shl 20
private const val MAX_BASE_BYTES = 1 shl 30
private const val MAX_SLOTS = 65_536
private const val MAX_COUNT = Int.MAX_VALUE
private const val MAX_SIDES = 16
private const val MAX_SIDE_PX = 4096
private const val MAX_EDITS = 64
private const val MAX_NAME = 4096
private const val MAX_LEVELS = 4
private val NAME = Regex("[a-z0-9_-]{1,32}")
private val SIDE = Regex("[1-9][0-9]{0,3}")
private val SLOT_FIELDS = listOf(
    "site", "kind", "resolution", "offset_bytes", "start", "count",
    "dtype", "x_index", "layout", "shape", "name",
)

internal fun parseSlotTable(data: ByteArray): SlotTable {
    val document = parseDocument(data, "slot table", MAX_TABLE_BYTES, MAX_LEVELS) { SlotTableException(it) }
    val body = document.keys(
        "format", "runtime", "base_sha256", "base_bytes", "resolutions", "slot_fields", "slots", "views",
    )
    body.getValue("format").integer(FORMAT, FORMAT)
    val fields = body.getValue("slot_fields")
    if (fields.value != SLOT_FIELDS) fields.refuse("${SLOT_FIELDS.joinToString()}, in this order")
    val length = body.getValue("base_bytes").integer(1, MAX_BASE_BYTES)
    val sides = body.getValue("resolutions").items(MAX_SIDES).map { it.integer(1, MAX_SIDE_PX) }
    return SlotTable(
        runtime = body.getValue("runtime").text(NAME, "1 to 32 of a-z, 0-9, underscore and hyphen"),
        baseSha256 = body.getValue("base_sha256").text(HEX64, HEX64_RULE),
        baseBytes = length,
        resolutions = sides,
        slots = body.getValue("slots").items(MAX_SLOTS).map { parseSlot(it, sides) },
        views = parseViews(body.getValue("views"), length),
    )
}

private fun parseSlot(row: Field, sides: List<Int>): Slot {
    val values = row.items(SLOT_FIELDS.size, SLOT_FIELDS.size)
    val kind = SlotKind.entries.find { it.text == values[1].value } ?: values[1].refuse("a kind of slot")
    val dtype = kind.dtypes.find { it.text == values[6].value } ?: values[6].refuse("a dtype of ${kind.text}")
    val resolution = values[2].value?.let { values[2].integer(1, MAX_SIDE_PX) }
    if (resolution != null && resolution !in sides) values[2].refuse("null or one of ${sides.joinToString()}")
    val start = values[4].integer(0, MAX_COUNT)
    val count = values[5].integer(1, MAX_COUNT - start)
    val layout = parseLayout(kind, values[8])
    return Slot(
        site = values[0].shortText(MAX_NAME),
        kind = kind,
        resolution = resolution,
        offsetBytes = values[3].integer(0, MAX_COUNT),
        start = start,
        count = count,
        dtype = dtype,
        xIndex = if (kind == SlotKind.BIAS_SCALE) values[7].integer(0, MAX_COUNT) else values[7].integer(-1, -1),
        layout = layout,
        shape = parseShape(layout != null, count, values[9]),
        name = values[10].shortText(MAX_NAME),
    )
}

private fun parseLayout(kind: SlotKind, value: Field): WeightLayout? {
    if (kind == SlotKind.WEIGHT) {
        return WeightLayout.entries.find { it.text == value.value } ?: value.refuse("a layout of kernels")
    }
    if (value.value != "") value.refuse("empty: only kernels have a layout")
    return null
}

private fun parseShape(isKernel: Boolean, count: Int, value: Field): List<Int> {
    val sides = if (isKernel) 4 else 0
    val shape = value.items(sides, sides).map { it.integer(1, count) }
    var elements = 1L
    for (side in shape) {
        elements *= side
        if (elements > count) value.refuse("of $count elements")
    }
    if (isKernel && elements != count.toLong()) value.refuse("of $count elements")
    return shape
}

private fun parseViews(document: Field, baseBytes: Int): Map<Int, List<Edit>> =
    document.table(SIDE, "a side in pixels", MAX_SIDES).entries.associate { (px, edits) ->
        px.toInt() to edits.items(MAX_EDITS).map { edit ->
            val (offset, word) = edit.items(2, 2)
            Edit(offset.integer(0, baseBytes - 4), word.integer(0, (1L shl 32) - 1))
        }
    }
