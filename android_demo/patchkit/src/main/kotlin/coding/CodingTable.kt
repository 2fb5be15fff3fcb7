package patchdeploy.patchkit.coding

import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.HEX64_RULE
import patchdeploy.patchkit.json.Field
import patchdeploy.patchkit.json.parseDocument
import patchdeploy.patchkit.sha256Hex

/**
 * One convolution, in graph order; its rows follow those of the one before.
 *
 * @property name for people.
 * @property rows output channels.
 * @property taps kernel elements of one row.
 * @property xIndex activation site that it reads.
 * @property yIndex activation site that it writes.
 * @property owned the kernel is the task's: its elements follow those of the owned one before.
 */
public data class CodedConv(
    val name: String,
    val rows: Int,
    val taps: Int,
    val xIndex: Int,
    val yIndex: Int,
    val owned: Boolean,
)

/**
 * What patches of one base are coded against; `base.coding`, docs/patch-format.md.
 *
 * @property sha256 of the file: the name that patches know the base by.
 * @property lengthBytes of the file.
 * @property layout lengths of the flat arrays.
 * @property outputIndex activation site of the scores, as integers.
 * @property convs in graph order.
 */
public class CodingTable private constructor(
    public val sha256: String,
    public val lengthBytes: Int,
    public val layout: PatchLayout,
    public val outputIndex: Int,
    public val convs: List<CodedConv>,
    internal val scale: FloatArray,
    internal val beta: FloatArray,
    internal val slope: FloatArray,
    internal val kernels: ByteArray,
) {
    /** Slots that a patch sets: activation sites, then rows, then owned kernels, by convolution. */
    public val slotCount: Int = layout.sites + convs.size + convs.count { it.owned }

    public companion object {
        private const val FORMAT = 1
        private const val MAX_LEVELS = 3
        private const val MAX_NAME = 4096
        private const val MAX_CONVS = 65_536
        private const val SMALLEST_NORMAL = java.lang.Float.MIN_NORMAL
        private val CONV_FIELDS = listOf("name", "rows", "taps", "x_index", "y_index", "owned")

        /**
         * Parse and check a table.
         *
         * @throws FileFormatException truncated, of another format, or parts that do not fit.
         */
        public fun fromBytes(data: ByteArray): CodingTable {
            val file = readTensors(data, "coding table")
            val notes = parseDocument(file.notes.toByteArray(), "coding table", data.size, MAX_LEVELS)
            val body = notes.keys("format", "reference_sha256", "layout", "output_index", "conv_fields", "convs")
            body.getValue("format").integer(FORMAT, FORMAT)
            body.getValue("reference_sha256").text(HEX64, HEX64_RULE)
            val fields = body.getValue("conv_fields")
            if (fields.value != CONV_FIELDS) fields.refuse("${CONV_FIELDS.joinToString()}, in this order")
            val layout = PatchLayout.read(body.getValue("layout"))
            val table = CodingTable(
                sha256 = sha256Hex(data),
                lengthBytes = data.size,
                layout = layout,
                outputIndex = body.getValue("output_index").integer(0, layout.sites - 1),
                convs = body.getValue("convs").items(MAX_CONVS).map { readConv(it, layout.sites) },
                scale = floats(file.array("scale", "F32", layout.rows)),
                beta = floats(file.array("beta", "F32", layout.rows)),
                slope = floats(file.array("slope", "F32", layout.rows)),
                kernels = file.array("kernels", "I8", layout.elements).let { ByteArray(it.remaining()).also(it::get) },
            )
            if (file.names.size != 4) refuse("has ${file.names.size} arrays", "4")
            table.check()
            return table
        }

        private fun readConv(row: Field, sites: Int): CodedConv {
            val values = row.items(CONV_FIELDS.size, CONV_FIELDS.size)
            return CodedConv(
                name = values[0].shortText(MAX_NAME),
                rows = values[1].integer(1, Int.MAX_VALUE),
                taps = values[2].integer(1, Int.MAX_VALUE),
                xIndex = values[3].integer(0, sites - 1),
                yIndex = values[4].integer(0, sites - 1),
                owned = values[5].flag(),
            )
        }

        private fun floats(data: ByteBuffer): FloatArray {
            val view = data.order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            return FloatArray(view.remaining()).also(view::get)
        }

        private fun refuse(found: String, rule: String): Nothing = throw FileFormatException(
            "coding table $found; it must be $rule; copy the whole base.coding of a bundle again or " +
                "export the base again",
        )
    }

    /** Lengths agree and every reference is a value that decoding can start from. */
    private fun check() {
        var rows = 0L
        var elements = 0L
        var heads = 0
        for (conv in convs) {
            if (conv.owned && isHead(conv, rows, elements)) heads++
            rows += conv.rows
            if (conv.owned) elements += conv.rows.toLong() * conv.taps
            if (rows > layout.rows || elements > layout.elements) break
        }
        if (rows != layout.rows.toLong() || elements != layout.elements.toLong()) {
            refuse("has convolutions of $rows rows and $elements owned elements", "${layout.rows} and ${layout.elements}")
        }
        if (heads == 0) refuse("has no convolution that is the head of its layout", "one of them")
        val finite = beta.all(Float::isFinite) && slope.all(Float::isFinite)
        if (!finite || !scale.all { it.isFinite() && it >= SMALLEST_NORMAL }) {
            refuse("has a reference that is NaN, infinite, or no scale", "finite, scales positive and normal")
        }
    }

    private fun isHead(conv: CodedConv, row: Long, element: Long): Boolean =
        row == layout.headRow.toLong() && conv.rows == layout.headCapacity &&
            element == layout.headElement.toLong() && conv.taps == layout.headRowElements &&
            conv.xIndex == layout.headInput && conv.yIndex == layout.headOutput
}
