package patchdeploy.patchkit.slots

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.SlotTableException

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
