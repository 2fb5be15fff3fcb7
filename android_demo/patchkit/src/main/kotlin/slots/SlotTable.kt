package patchdeploy.patchkit.slots

import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.UnknownResolutionException

/** Which values of [PatchValues] a slot's bytes hold, and the dtypes that they may be stored as. */
public enum class SlotKind(internal vararg val dtypes: SlotDtype) {
    WEIGHT(SlotDtype.I8, SlotDtype.U8),
    WEIGHT_SCALE(SlotDtype.F32),
    BIAS(SlotDtype.I32),

    /** activation_scale[x_index] * weight_scale, rounded once to float32. */
    BIAS_SCALE(SlotDtype.F32),
    ACTIVATION_SCALE(SlotDtype.F32),
    ACTIVATION_ZERO_POINT(SlotDtype.I8, SlotDtype.U8, SlotDtype.I32, SlotDtype.I64);

    internal val text: String = name.lowercase()
}

/** How an element is stored, little-endian; a u8 zero point or kernel is the int8 one plus 128. */
public enum class SlotDtype(internal val bytes: Int) {
    F32(4), I32(4), I64(8), I8(1), U8(1);

    internal val text: String = name.lowercase()
}

/** How a kernel's axes [O, kh, kw, I/groups] are ordered in the file. */
public enum class WeightLayout(internal vararg val axes: Int) {
    OHWI(0, 1, 2, 3),
    ONE_HWO(3, 1, 2, 0),
    OIHW(0, 3, 1, 2);

    internal val text: String = name.lowercase().replace("one_", "1")
}

/**
 * One run of bytes in the base file.
 *
 * @property site a convolution's name or an activation site's, for messages.
 * @property resolution the signature that reads it; null where every resolution shares it.
 * @property offsetBytes from the start of the file.
 * @property start of the run of elements in the array that [kind] names.
 * @property count its length.
 * @property xIndex for [SlotKind.BIAS_SCALE] the activation site of the input; else -1.
 * @property layout for [SlotKind.WEIGHT]; else null.
 * @property shape for [SlotKind.WEIGHT] [O, kh, kw, I/groups]; else empty.
 * @property name the runtime's own name, where it overrides by name (an ONNX initialiser).
 */
public class Slot internal constructor(
    public val site: String,
    public val kind: SlotKind,
    public val resolution: Int?,
    public val offsetBytes: Int,
    public val start: Int,
    public val count: Int,
    public val dtype: SlotDtype,
    public val xIndex: Int,
    public val layout: WeightLayout?,
    public val shape: List<Int>,
    public val name: String,
) {
    /** Past 2^31 where a table is hostile; [SlotTable] refuses that. */
    internal val lengthBytes: Long get() = count.toLong() * dtype.bytes
    internal val endBytes: Long get() = offsetBytes + lengthBytes
}

/** A little-endian uint32 to set at an offset. */
public data class Edit(val offsetBytes: Int, val value: Long)

/**
 * Every slot of one base file; docs/slots.md. Its values hold together; whether it fits its base
 * file is for [overlay] (the hash) and [checkBase].
 *
 * @property runtime the converter's name, "tflite" or "onnx".
 * @property baseSha256 of the base file's bytes.
 * @property baseBytes its length.
 * @property resolutions the signatures in the file, ascending; empty where height and width are free.
 * @property slots sorted by offset, inside the file, without overlap.
 * @property views by resolution, edits that leave only that signature reachable.
 */
public class SlotTable internal constructor(
    public val runtime: String,
    public val baseSha256: String,
    public val baseBytes: Int,
    public val resolutions: List<Int>,
    public val slots: List<Slot>,
    public val views: Map<Int, List<Edit>>,
) {
    init {
        checkTable(this)
    }

    /** @throws UnknownResolutionException the file has no signature of [resolution] pixels. */
    internal fun checkResolution(resolution: Int) {
        if (resolutions.isNotEmpty() && resolution !in resolutions) {
            throw UnknownResolutionException(
                "resolution $resolution px is not in this base file, which has " +
                    "${resolutions.joinToString()}; choose one of them or export again",
            )
        }
    }

    public companion object {
        /**
         * Parse and check a slot table.
         *
         * @throws SlotTableException truncated, an unknown key, a value of another type or out of
         *   its range, or slots and views that leave the file or overlap; it names the field.
         */
        public fun fromJson(data: ByteArray): SlotTable = parseSlotTable(data)
    }
}

private fun checkTable(table: SlotTable) {
    if (table.resolutions != table.resolutions.toSortedSet().toList()) {
        throw SlotTableException(
            "slot table has resolutions ${table.resolutions}; they must be ascending, each once; " +
                "export the base again",
        )
    }
    var end = 0L
    for ((index, slot) in table.slots.withIndex()) {
        if (slot.offsetBytes < end || slot.endBytes > table.baseBytes) {
            throw SlotTableException(
                "slot $index ('${slot.site.take(80)}') covers bytes ${slot.offsetBytes} to " +
                    "${slot.endBytes}; slots lie in order, apart, inside the ${table.baseBytes} " +
                    "bytes of the base file; export the base again",
            )
        }
        end = slot.endBytes
    }
    for ((px, edits) in table.views) checkView(table, px, edits)
}

/** A view is of a resolution of the file; its words lie apart from each other and from slots. */
private fun checkView(table: SlotTable, px: Int, edits: List<Edit>) {
    if (px !in table.resolutions) {
        throw SlotTableException(
            "slot table has a view of $px px; its base file has " +
                "${table.resolutions.joinToString().ifEmpty { "none" }}; export the base again",
        )
    }
    val starts = table.slots.map { it.offsetBytes }
    var end = 0L
    for (edit in edits.sortedBy { it.offsetBytes }) {
        val last = edit.offsetBytes + 4L
        val after = starts.binarySearchBy(last) { it.toLong() }.let { if (it < 0) -it - 1 else it }
        val overlaps = after > 0 && table.slots[after - 1].endBytes > edit.offsetBytes
        if (edit.offsetBytes < end || last > table.baseBytes || overlaps) {
            throw SlotTableException(
                "a view of $px px edits bytes ${edit.offsetBytes} to $last; its words must lie " +
                    "apart, outside of slots, inside the ${table.baseBytes} bytes of the base file; " +
                    "export the base again",
            )
        }
        end = last
    }
}
