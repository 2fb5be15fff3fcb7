package patchdeploy.patchkit.slots

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.coding.PatchLayout

private const val TFLITE = "tflite"
private const val ONNX = "onnx"

/**
 * Check what [table] says of the base file [data], whose hash it is bound to: a table decides which
 * bytes of a model a patch sets.
 *
 * @throws SlotTableException a view or a name that is not the file's own.
 * @throws patchdeploy.patchkit.FileFormatException the file cannot be read as far as that.
 */
public fun checkBase(data: ByteArray, table: SlotTable) {
    if (table.runtime == TFLITE) {
        checkViews(Bytes(data), table)
    } else if (table.views.isNotEmpty()) {
        throw SlotTableException(
            "slot table of ${table.runtime} has views; only a .tflite has; export the bundle again",
        )
    }
    if (table.runtime == ONNX) checkNames(Bytes(data), table.slots)
}

/**
 * Check [table], which is to be that of [format], against a bundle's resolutions and layout.
 *
 * @throws SlotTableException naming the first thing that does not fit.
 */
internal fun checkFit(table: SlotTable, format: String, resolutions: List<Int>, layout: PatchLayout) {
    if (table.runtime != format) {
        throw SlotTableException(
            "slot table of $format is for '${table.runtime}'; it must be for the format that the manifest " +
                "names; export the bundle again",
        )
    }
    if (table.resolutions != if (format == TFLITE) resolutions else emptyList()) {
        throw SlotTableException(
            "slot table of $format has resolutions ${table.resolutions}; the bundle has $resolutions, which a " +
                ".tflite must have, and a .onnx free height and width; export the bundle again",
        )
    }
    for (slot in table.slots) {
        val length = when (slot.kind) {
            SlotKind.WEIGHT -> layout.elements
            SlotKind.WEIGHT_SCALE, SlotKind.BIAS, SlotKind.BIAS_SCALE -> layout.rows
            SlotKind.ACTIVATION_SCALE, SlotKind.ACTIVATION_ZERO_POINT -> layout.sites
        }
        if (slot.start.toLong() + slot.count > length || slot.xIndex >= layout.sites) {
            throw SlotTableException(
                "slot '${slot.site.take(80)}' of $format reads ${slot.kind.text} ${slot.start} to " +
                    "${slot.start.toLong() + slot.count} and activation site ${slot.xIndex}; a patch has " +
                    "$length, and ${layout.sites} sites; export the bundle again",
            )
        }
    }
}

/** A runtime may find a slot by its name: that must be the tensor at the slot's offset. */
private fun checkNames(data: Bytes, slots: List<Slot>) {
    val spans = findInitializers(data)
    for (slot in slots) {
        val span = spans[slot.name] ?: Span(-1, -1)
        if (span.start != slot.offsetBytes || span.lengthBytes.toLong() != slot.lengthBytes) {
            throw SlotTableException(
                "slot '${slot.site.take(80)}' of onnx names the initialiser '${slot.name.take(80)}', " +
                    "which lies at bytes ${span.start} to ${span.end}; it must lie at the slot's " +
                    "${slot.offsetBytes} to ${slot.endBytes}; export the bundle again",
            )
        }
    }
}
