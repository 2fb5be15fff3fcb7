package patchdeploy.patchkit.patchfile

import java.nio.ByteBuffer
import java.util.logging.Logger
import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.sha256Hex

/**
 * The container of a patch file: who signed it, and whether it may be used here, before decoding.
 *
 * In: the bytes of a `.pdp` file and a [Policy]. Out: a [CheckedPatch], or a
 * [PatchRefusedException] with the code of the first check that failed. Nothing is parsed before
 * its signatures verify. docs/patch-format.md has the bytes and the order.
 */

private val MAGIC = "PDPATCH1".toByteArray(Charsets.US_ASCII)
private val CONTEXT = "patchdeploy patch file, version 1\u0000".toByteArray(Charsets.US_ASCII)
private const val PREFIX_BYTES = 16
private const val COUNT_AT = 12
private const val ENTRY_BYTES = 1 + SIGNATURE_BYTES
private const val MAX_SIGNATURES = 4

/** The longest file that can be a patch; a download stops there. */
public const val MAX_FILE_BYTES: Int =
    PREFIX_BYTES + MAX_HEADER_BYTES + MAX_SIGNATURES * ENTRY_BYTES + MAX_PAYLOAD_BYTES

private const val DAMAGED = "the file is damaged or was not made by patchdeploy; fetch or pack it again"
private const val FORGED = "do not use the file; fetch it again, or ask who made it to sign it"
private const val ELSEWHERE = "use a patch that was packed for this app and base"
private val LOGGER: Logger = Logger.getLogger("patchdeploy.patchfile")

/**
 * What a reader demands of a patch file; null: no demand.
 *
 * @property trusted pinned keys; without them no signature counts.
 * @property allowUnsigned take files with no signature, with a warning each time; for development.
 * @property runtime must be among the file's results ("tflite", "onnx").
 * @property task the task that it must be for.
 * @property baseSha256 of the coding table at hand.
 * @property baseBytes of the same.
 * @property resolutions sides in pixels that the base files at hand were made for.
 * @property floor least sequence number.
 * @property now Unix seconds.
 * @property engine version of the decoder at hand.
 */
public data class Policy(
    val trusted: TrustedKeys?,
    val allowUnsigned: Boolean = false,
    val runtime: String? = null,
    val task: String? = null,
    val baseSha256: String? = null,
    val baseBytes: Long? = null,
    val resolutions: Set<Int>? = null,
    val floor: Long = 0,
    val now: Long? = null,
    val engine: Int = ENGINE_VERSION,
)

/**
 * A file that passed checks 1 to 6.
 *
 * @property header parsed.
 * @property payload the bytes whose hash the header gives.
 * @property sha256 of the whole file, its name in a store.
 * @property signedBy indices of the keys; empty for an unsigned file.
 * @property fileBytes its length.
 */
public class CheckedPatch internal constructor(
    public val header: PatchHeader,
    internal val payload: Bytes,
    public val sha256: String,
    public val signedBy: List<Int>,
    public val fileBytes: Int,
)

private class Container(val header: ByteArray, val signatures: List<Pair<Int, ByteArray>>, val payload: Bytes)

/**
 * Checks 1 to 6, in order.
 *
 * @param data the whole file, or one byte more than [MAX_FILE_BYTES] of it; copied, so that what is
 *   checked is what is used.
 * @throws PatchRefusedException with the code of the first check that fails.
 */
public fun checkPatchFile(data: ByteArray, policy: Policy): CheckedPatch {
    checkLength(data.size)
    val own = data.copyOf()
    val container = readContainer(Bytes(own))
    val signedBy = checkSignatures(container, policy)
    val header = PatchHeader.fromBytes(container.header)
    checkPayload(header, container.payload)
    checkPlace(header, policy)
    checkTime(header, policy)
    return CheckedPatch(header, container.payload, sha256Hex(own), signedBy, own.size)
}

/**
 * What a file says about itself, trusted or not.
 *
 * @property header parsed; who signed it was not asked.
 * @property sha256 of the whole file.
 * @property lengthBytes of the whole file.
 * @property keyIndices of the signatures, in the order of the file; none was verified.
 * @property partBytes lengths of the payload's parts as they stand in the file.
 */
public class InspectedPatch internal constructor(
    public val header: PatchHeader,
    public val sha256: String,
    public val lengthBytes: Int,
    public val keyIndices: List<Int>,
    public val partBytes: Map<String, Int>,
)

/**
 * Checks 1, 3 and 4, and the frames of the parts: for people. Nothing of it is a reason to use the
 * file.
 *
 * @throws PatchRefusedException the file does not hold together.
 */
public fun inspectPatchFile(data: ByteArray): InspectedPatch {
    checkLength(data.size)
    val container = readContainer(Bytes(data))
    val header = PatchHeader.fromBytes(container.header)
    checkPayload(header, container.payload)
    val parts = partLengths(container.payload, header.hasOptionalParts)
    return InspectedPatch(header, sha256Hex(data), data.size, container.signatures.map { it.first }, parts)
}

private fun checkLength(length: Int) {
    if (length > MAX_FILE_BYTES) {
        val more = if (length == MAX_FILE_BYTES + 1) " or more" else ""
        throw PatchRefusedException(
            RefusalCode.TOO_LARGE, "file length", "at most $MAX_FILE_BYTES bytes",
            "$length bytes$more", "do not use the file; no patch is that long",
        )
    }
}

/** Check 1: sizes and fixed bytes, and where the parts lie. */
private fun readContainer(data: Bytes): Container {
    checkReaches(data, PREFIX_BYTES)
    if (!data.slice(0, MAGIC.size).copy().contentEquals(MAGIC)) {
        throw PatchRefusedException(RefusalCode.MAGIC, "bytes 0 to 7", "PDPATCH1", "something else", DAMAGED)
    }
    checkHeaderLength(data.u32(MAGIC.size), DAMAGED)
    val headerEnd = PREFIX_BYTES + data.u32(MAGIC.size).toInt()
    for (at in COUNT_AT + 1 until PREFIX_BYTES) {
        if (data[at] != 0) {
            throw PatchRefusedException(RefusalCode.RESERVED, "bytes 13 to 15", "zero", "${data[at]} at $at", DAMAGED)
        }
    }
    val count = data[COUNT_AT]
    if (count > MAX_SIGNATURES) {
        throw PatchRefusedException(
            RefusalCode.SIGNATURE_COUNT, "signature count", "at most $MAX_SIGNATURES", "$count", DAMAGED,
        )
    }
    val payloadAt = headerEnd + count * ENTRY_BYTES
    checkReaches(data, payloadAt)
    val signatures = (headerEnd until payloadAt step ENTRY_BYTES).map { at ->
        data[at] to data.slice(at + 1, at + ENTRY_BYTES).copy()
    }
    return Container(data.slice(PREFIX_BYTES, headerEnd).copy(), signatures, data.slice(payloadAt, data.size))
}

private fun checkReaches(data: Bytes, end: Int) {
    if (data.size < end) {
        throw PatchRefusedException(
            RefusalCode.TRUNCATED, "file length", "at least $end bytes", "${data.size} bytes", DAMAGED,
        )
    }
}

/** What a signature covers: context, the bytes [0, 12) of the file, the header. */
private fun signedMessage(header: ByteArray): ByteArray {
    val length = header.size
    val start = ByteArray(4) { k -> (length shr (8 * k)).toByte() }
    return CONTEXT + MAGIC + start + header
}

/** Check 2: the indices of the keys that signed. Every signature there must verify. */
private fun checkSignatures(container: Container, policy: Policy): List<Int> {
    if (container.signatures.isEmpty()) {
        checkUnsigned(policy)
        return emptyList()
    }
    val message = signedMessage(container.header)
    val signedBy = ArrayList<Int>()
    for ((index, signature) in container.signatures) {
        val key = policy.trusted?.keys?.getOrNull(index)
            ?: throw PatchRefusedException(
                RefusalCode.KEY_UNKNOWN, "key index", "that of a trusted key", "$index", FORGED,
            )
        if (index in signedBy) {
            throw PatchRefusedException(
                RefusalCode.KEY_REPEATED, "key index", "one that signed once", "$index again", FORGED,
            )
        }
        if (!key.verifies(signature, message)) {
            throw PatchRefusedException(
                RefusalCode.SIGNATURE, "signature of key $index", "valid", "not valid", FORGED,
            )
        }
        signedBy.add(index)
    }
    checkThreshold(signedBy, policy)
    return signedBy
}

private fun checkUnsigned(policy: Policy) {
    if (!policy.allowUnsigned) {
        throw PatchRefusedException(
            RefusalCode.UNSIGNED, "signature count", "at least 1", "0",
            "sign the patch; unsigned files are for development alone and must be allowed there",
        )
    }
    LOGGER.warning("UNSIGNED patch file taken: anyone can have made it; never ship this setting")
}

private fun checkThreshold(signedBy: List<Int>, policy: Policy) {
    val threshold = policy.trusted?.threshold ?: return
    if (signedBy.size < threshold) {
        throw PatchRefusedException(
            RefusalCode.THRESHOLD, "number of keys that signed", "at least $threshold", "${signedBy.size}",
            "have the patch signed with more of the trusted keys",
        )
    }
}

/** Check 4: nothing is missing, nothing follows, and it is what was signed. */
private fun checkPayload(header: PatchHeader, payload: Bytes) {
    if (payload.size != header.payloadBytes) {
        throw PatchRefusedException(
            RefusalCode.LENGTH, "payload length", "${header.payloadBytes} bytes", "${payload.size} bytes", DAMAGED,
        )
    }
    val found = payload.within { array, start, length -> sha256Hex(ByteBuffer.wrap(array, start, length)) }
    if (found != header.payloadSha256) {
        throw PatchRefusedException(
            RefusalCode.PAYLOAD_HASH, "payload SHA-256", header.payloadSha256, found, DAMAGED,
        )
    }
}

/** Check 5: runtime, engine, base, task, resolutions. */
private fun checkPlace(header: PatchHeader, policy: Policy) {
    if (policy.runtime != null && policy.runtime !in header.results) {
        throw PatchRefusedException(
            RefusalCode.RUNTIME, "runtime at hand", "one of ${header.results.keys.sorted().joinToString()}",
            policy.runtime, ELSEWHERE,
        )
    }
    if (header.engine > policy.engine) {
        throw PatchRefusedException(
            RefusalCode.ENGINE, "engine version that the patch needs", "at most ${policy.engine}",
            "${header.engine}", "upgrade patchdeploy in the app",
        )
    }
    checkSame(RefusalCode.BASE, "base length", header.baseBytes, policy.baseBytes)
    checkSame(RefusalCode.BASE, "base SHA-256", header.baseSha256, policy.baseSha256)
    checkSame(RefusalCode.TASK, "task", header.task, policy.task)
    val held = policy.resolutions ?: return
    val stranger = header.resolutions.find { it !in held } ?: return
    throw PatchRefusedException(
        RefusalCode.RESOLUTION, "resolution",
        "one of ${held.sorted().joinToString()} px, which the base files at hand were made for",
        "$stranger px", ELSEWHERE,
    )
}

private fun checkSame(code: RefusalCode, field: String, found: Any, demanded: Any?) {
    if (demanded != null && found != demanded) {
        throw PatchRefusedException(code, field, "$demanded", "$found", ELSEWHERE)
    }
}

/** Check 6: not older than the floor, not expired. */
private fun checkTime(header: PatchHeader, policy: Policy) {
    if (header.sequence < policy.floor) {
        throw PatchRefusedException(
            RefusalCode.SEQUENCE, "sequence", "at least ${policy.floor}", "${header.sequence}",
            "fetch a newer patch; an older one may hold mistakes that were corrected since",
        )
    }
    if (policy.now != null && header.expires in 1..policy.now) {
        throw PatchRefusedException(
            RefusalCode.EXPIRED, "time of expiry", "after ${policy.now}", "${header.expires}",
            "fetch a newer patch; if the clock is wrong, set it",
        )
    }
}
