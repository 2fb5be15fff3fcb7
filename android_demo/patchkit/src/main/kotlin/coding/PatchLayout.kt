package patchdeploy.patchkit.coding

import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.json.Field

/**
 * The lengths of a base's flat arrays, and where its head lies in them.
 *
 * @property rows output channels of all convolutions.
 * @property elements int8 values of all patch-owned kernels.
 * @property sites activation sites.
 * @property headRow first of the head's [headCapacity] rows.
 * @property headElement first of the head's kernel elements, [headRowElements] a row.
 * @property headInput activation site of what the head reads.
 * @property headOutput activation site of what the head writes.
 */
public data class PatchLayout(
    val rows: Int,
    val elements: Int,
    val sites: Int,
    val headRow: Int,
    val headCapacity: Int,
    val headElement: Int,
    val headRowElements: Int,
    val headInput: Int,
    val headOutput: Int,
) {
    /** The head's rows from [classes] on, in the flat arrays. */
    internal fun spareRows(classes: Int): IntRange = headRow + classes until headRow + headCapacity

    /** Kernel elements of the whole head. */
    internal val headElements: Int get() = headCapacity * headRowElements

    internal companion object {
        /** @throws FileFormatException naming the field that breaks a rule. */
        fun read(value: Field): PatchLayout {
            val body = value.keys(
                "rows", "elements", "sites", "head_row", "head_capacity", "head_element",
                "head_row_elements", "head_input", "head_output",
            ).mapValues { (_, one) -> one.integer(0, Int.MAX_VALUE) }
            val layout = PatchLayout(
                body.getValue("rows"), body.getValue("elements"), body.getValue("sites"),
                body.getValue("head_row"), body.getValue("head_capacity"), body.getValue("head_element"),
                body.getValue("head_row_elements"), body.getValue("head_input"), body.getValue("head_output"),
            )
            if (!layout.holdsTogether()) value.refuse("a layout whose head lies inside rows, elements and sites")
            return layout
        }
    }

    private fun holdsTogether(): Boolean {
        val rowsEnd = headRow.toLong() + headCapacity
        val elementsEnd = headElement + headCapacity.toLong() * headRowElements
        return headCapacity >= 1 && rowsEnd <= rows && elementsEnd <= elements &&
            maxOf(headInput, headOutput) < sites
    }
}
