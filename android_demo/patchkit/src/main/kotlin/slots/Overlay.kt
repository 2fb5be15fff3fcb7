package patchdeploy.patchkit.slots

import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.select
import patchdeploy.patchkit.sha256Hex

/**
 * Laying a patch over a base file.
 *
 * In: a base file, its slot table, the values of a task at a resolution. Out: the patched file,
 * byte-identical to exporting the task by itself. What no slot covers cannot change.
 */

/**
 * A copy of [baseFile] with the slots that [resolution] reads set to [values].
 *
 * @throws IntegrityException the base file is not the one that [table] is bound to.
 * @throws patchdeploy.patchkit.UnknownResolutionException the file has no such signature.
 * @throws SlotTableException an array is shorter than the slots that it fills.
 */
public fun overlay(baseFile: ByteArray, table: SlotTable, resolution: Int, values: PatchValues): ByteArray {
    checkHash(baseFile, table)
    val copy = baseFile.copyOf()
    setSlots(ByteBuffer.wrap(copy), table, resolution, values)
    return copy
}

/** @throws IntegrityException [baseFile] is not the one that [table] is bound to. */
internal fun checkHash(baseFile: ByteArray, table: SlotTable) {
    val digest = sha256Hex(baseFile)
    if (digest != table.baseSha256) {
        throw IntegrityException(
            "base file has SHA-256 $digest; its slot table is bound to ${table.baseSha256}; restore " +
                "the base file that the table was exported with",
        )
    }
}

/**
 * Set the slots that [resolution] reads in [target], a copy of a base file whose hash was checked,
 * from byte 0 on; position and order of [target] are left as they were.
 *
 * @throws patchdeploy.patchkit.UnknownResolutionException the file has no such signature.
 * @throws SlotTableException an array is shorter than the slots that it fills; nothing is set then.
 */
public fun setSlots(target: ByteBuffer, table: SlotTable, resolution: Int, values: PatchValues) {
    table.checkResolution(resolution)
    val slots = table.slots.filter { it.resolution == null || it.resolution == resolution }
    slots.forEach { checkCounts(it, values) }
    val bytes = target.duplicate().order(ByteOrder.LITTLE_ENDIAN)
    select(bytes, 0, bytes.capacity())
    if (bytes.capacity() != table.baseBytes) {
        throw SlotTableException(
            "a copy of the base file has ${bytes.capacity()} bytes; its slot table is of one with " +
                "${table.baseBytes}; copy the whole file",
        )
    }
    for (slot in slots) setSlot(bytes, slot, values)
}

/** Leave only the signature of [resolution] reachable in [target], after its slots are set. */
public fun selectView(target: ByteBuffer, table: SlotTable, resolution: Int) {
    table.checkResolution(resolution)
    val bytes = target.duplicate().order(ByteOrder.LITTLE_ENDIAN)
    select(bytes, 0, bytes.capacity())
    for (edit in table.views[resolution].orEmpty()) bytes.putInt(edit.offsetBytes, edit.value.toInt())
}

private fun checkCounts(slot: Slot, values: PatchValues) {
    val (name, found) = when (slot.kind) {
        SlotKind.WEIGHT -> "weights" to values.weights.size
        SlotKind.WEIGHT_SCALE, SlotKind.BIAS_SCALE -> "weight_scale" to values.weightScale.size
        SlotKind.BIAS -> "bias" to values.bias.size
        SlotKind.ACTIVATION_SCALE -> "activation_scale" to values.activationScale.size
        SlotKind.ACTIVATION_ZERO_POINT -> "activation_zero_point" to values.activationZeroPoint.size
    }
    if (slot.start + slot.count > found || slot.xIndex >= values.activationScale.size) {
        throw SlotTableException(
            "the slot table sets ${slot.start + slot.count} elements of $name; the values have " +
                "$found; use the slot table and the patch of one bundle",
        )
    }
}

private fun setSlot(bytes: ByteBuffer, slot: Slot, values: PatchValues) {
    select(bytes, slot.offsetBytes, slot.endBytes.toInt())
    when (slot.kind) {
        SlotKind.WEIGHT -> putKernel(bytes, slot, values.weights)
        SlotKind.WEIGHT_SCALE -> bytes.asFloatBuffer().put(values.weightScale, slot.start, slot.count)
        SlotKind.BIAS -> bytes.asIntBuffer().put(values.bias, slot.start, slot.count)
        SlotKind.BIAS_SCALE -> {
            val x = values.activationScale[slot.xIndex]
            for (k in slot.start until slot.start + slot.count) bytes.putFloat(x * values.weightScale[k])
        }
        SlotKind.ACTIVATION_SCALE -> bytes.asFloatBuffer().put(values.activationScale, slot.start, slot.count)
        SlotKind.ACTIVATION_ZERO_POINT ->
            for (k in slot.start until slot.start + slot.count) putCode(bytes, slot.dtype, values.activationZeroPoint[k])
    }
}

private fun putCode(bytes: ByteBuffer, dtype: SlotDtype, code: Byte) {
    when (dtype) {
        SlotDtype.I8 -> bytes.put(code)
        SlotDtype.U8 -> bytes.put((code + 128).toByte())
        SlotDtype.I32 -> bytes.putInt(code.toInt())
        SlotDtype.I64 -> bytes.putLong(code.toLong())
        SlotDtype.F32 -> error("no code is stored as f32")
    }
}

/** The kernel [O, kh, kw, I/groups] with its axes in the order of the slot's layout, row-major. */
private fun putKernel(bytes: ByteBuffer, slot: Slot, weights: ByteArray) {
    val layout = checkNotNull(slot.layout)
    if (layout == WeightLayout.OHWI && slot.dtype == SlotDtype.I8) {
        bytes.put(weights, slot.start, slot.count)
        return
    }
    val sides = slot.shape
    val strides = intArrayOf(sides[1] * sides[2] * sides[3], sides[2] * sides[3], sides[3], 1)
    val (a, b, c, d) = layout.axes.map { sides[it] to strides[it] }
    val flip = if (slot.dtype == SlotDtype.U8) 128 else 0
    for (i in 0 until a.first) for (j in 0 until b.first) for (k in 0 until c.first) {
        var at = slot.start + i * a.second + j * b.second + k * c.second
        repeat(d.first) {
            bytes.put((weights[at].toInt() xor flip).toByte())
            at += d.second
        }
    }
}
