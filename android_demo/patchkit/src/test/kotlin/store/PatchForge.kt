package patchdeploy.patchkit.store

import com.google.crypto.tink.subtle.Ed25519Sign
import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.child
import patchdeploy.patchkit.children
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.json.encodeCanonical
import patchdeploy.patchkit.json.parseCanonical
import patchdeploy.patchkit.patchfile.CheckedPatch
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.checkPatchFile
import patchdeploy.patchkit.patchfile.decodeChecked
import patchdeploy.patchkit.policyOf
import patchdeploy.patchkit.readVectors

/** Patches of any number and task, signed with the test keys whose seeds are public. */
internal object PatchForge {
    private val payloads = readVectors("payload_vectors.json")
    private val seeds = readVectors("vectors.json").getValue("test_key_seeds") as List<*>
    private val good = payloads.children("cases").first().base64("file")
    private val header = headerOf(good)
    private val payload = good.copyOfRange(16 + header.size + 65, good.size)
    val table: CodingTable = CodingTable.fromBytes(payloads.base64("coding_table"))

    /** Whoever signs with the test keys, for this base; nothing else is demanded. */
    val policy: Policy = policyOf(payloads.child("policy")).copy(runtime = null, task = null)

    /** A good file after checks 1 to 6. */
    val checked: CheckedPatch by lazy { checkPatchFile(good, policy) }

    /** The same with another payload, which its header no longer fits. */
    fun withPayload(payload: Bytes): CheckedPatch =
        CheckedPatch(checked.header, payload, checked.sha256, checked.signedBy, checked.fileBytes)

    /** Check 9 passes but for the tasks that [refused] names. */
    fun hooks(vararg refused: String) = Hooks(::checkPatchFile, { decodeChecked(it, table) }) { checked, _ ->
        if (checked.header.task in refused) {
            throw patchdeploy.patchkit.PatchRefusedException(
                patchdeploy.patchkit.RefusalCode.SELF_TEST, "task", "another", checked.header.task, "none",
            )
        }
    }

    fun patch(sequence: Int, task: String = "first", signer: Int = 0, expires: Long = 0): ByteArray {
        val fields = (parseCanonical(header) as Map<*, *>) +
            mapOf("sequence" to sequence, "task" to task, "expires" to expires)
        val text = encodeCanonical(fields)
        val start = "PDPATCH1".toByteArray() + little(text.size)
        val message = "patchdeploy patch file, version 1\u0000".toByteArray() + start + text
        val seed = (seeds[signer] as String).chunked(2).map { it.toInt(16).toByte() }.toByteArray()
        return start + byteArrayOf(1, 0, 0, 0) + text + signer.toByte() + Ed25519Sign(seed).sign(message) + payload
    }

    private fun headerOf(file: ByteArray): ByteArray {
        val length = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN).getInt(8)
        return file.copyOfRange(16, 16 + length)
    }

    private fun little(number: Int): ByteArray =
        ByteBuffer.allocate(4).order(ByteOrder.LITTLE_ENDIAN).putInt(number).array()
}
