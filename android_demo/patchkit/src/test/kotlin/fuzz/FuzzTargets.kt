package patchdeploy.patchkit.fuzz

import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.bundle.Manifest
import patchdeploy.patchkit.json.encodeCanonical
import patchdeploy.patchkit.json.parseCanonical
import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.PARTS
import patchdeploy.patchkit.patchfile.PatchHeader
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.patchfile.checkPatchFile
import patchdeploy.patchkit.patchfile.decodeChecked
import patchdeploy.patchkit.patchfile.inspectPatchFile
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.store.PatchForge
import patchdeploy.patchkit.store.StoreState

/**
 * What Jazzer calls with bytes of its own (`make fuzz`); each takes anything, and throws where a
 * reader does: any exception but the typed one, or a value that is not the bytes that were read.
 * The targets are those of tests/faults/fuzz.py, over the same corpus.
 */
public object HeaderTarget {
    private val policy = Policy(null, allowUnsigned = true, runtime = "onnx", task = "flowers", floor = 3, now = 1000)

    @JvmStatic
    public fun fuzzerTestOneInput(data: ByteArray) {
        ignoring(*RefusalCode.entries.toTypedArray()) { checkPatchFile(data, policy) }
        ignoring(*RefusalCode.entries.toTypedArray()) { inspectPatchFile(data) }
        ignoring(RefusalCode.HEADER_TEXT, RefusalCode.HEADER_FIELD) {
            PatchHeader.fromBytes(data)
            check(encodeCanonical(parseCanonical(data)).contentEquals(data)) { "a header that has two texts" }
        }
    }
}

/** The first byte says which: 0 the whole payload, k the content of part k - 1, stored. */
public object PayloadTarget {
    private val good: CheckedPatch = PatchForge.checked
    private val frames: List<ByteArray> = frames(good.payload)

    @JvmStatic
    public fun fuzzerTestOneInput(data: ByteArray) {
        if (data.size < 2) return
        val content = data.copyOfRange(1, data.size)
        val index = data[0].toInt() - 1
        val payload = if (index in PARTS.indices) {
            frames.mapIndexed { k, frame -> if (k == index) stored(k, content) else frame }.reduce(ByteArray::plus)
        } else {
            content
        }
        val checked = PatchForge.withPayload(Bytes(payload))
        ignoring(RefusalCode.INFLATE, RefusalCode.PARTS, RefusalCode.WORK, RefusalCode.VALUES) {
            val patch = decodeChecked(checked, PatchForge.table)
            check(patch.classes.size == good.header.classes && patch.values.keys == good.header.resolutions.toSet())
            for (values in patch.values.values) {
                check(values.weightScale.all { it.isFinite() && it > 0 } && values.weights.all { it > Byte.MIN_VALUE })
            }
        }
    }

    private fun frames(payload: Bytes): List<ByteArray> {
        var place = 0
        return PARTS.map {
            val end = place + 10 + payload.u32(place + 6).toInt()
            ByteArray(end - place) { k -> payload[place + k].toByte() }.also { place = end }
        }
    }

    private fun stored(number: Int, content: ByteArray): ByteArray =
        ByteBuffer.allocate(10 + content.size).order(ByteOrder.LITTLE_ENDIAN)
            .put(number.toByte()).put(0).putInt(content.size).putInt(content.size).put(content).array()
}

public object TrustedTarget {
    @JvmStatic
    public fun fuzzerTestOneInput(data: ByteArray) {
        val trusted = try {
            TrustedKeys.fromBytes(data)
        } catch (_: PatchKeyException) {
            return
        }
        val text = trusted.toBytes()
        check(text.contentEquals(data) || (text + '\n'.code.toByte()).contentEquals(data)) { "a list that has two texts" }
        val live = trusted.keys.filterNotNull()
        check(trusted.threshold in 1..minOf(4, live.size) && live.toSet().size == live.size)
    }
}

/** The first byte says which: a manifest, a slot table, or the record of a store. */
public object BundleTarget {
    @JvmStatic
    public fun fuzzerTestOneInput(data: ByteArray) {
        if (data.isEmpty()) return
        val content = data.copyOfRange(1, data.size)
        try {
            when ((data[0].toInt() and 255) % 5) {
                0 -> Manifest.fromJson(content)
                3 -> check(StoreState.fromBytes(content).toBytes().contentEquals(content)) { "a record that has two texts" }
                else -> SlotTable.fromJson(content)
            }
        } catch (_: FileFormatException) {
            return
        } catch (_: IntegrityException) {
            return
        }
    }
}

private fun ignoring(vararg codes: RefusalCode, work: () -> Unit) {
    try {
        work()
    } catch (error: PatchRefusedException) {
        if (error.code !in codes) throw error
    }
}
