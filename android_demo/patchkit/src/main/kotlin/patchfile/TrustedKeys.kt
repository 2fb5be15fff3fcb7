package patchdeploy.patchkit.patchfile

import com.google.crypto.tink.subtle.Ed25519Verify
import java.math.BigInteger
import java.security.GeneralSecurityException
import patchdeploy.patchkit.CanonicalTextException
import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.hex64Bytes
import patchdeploy.patchkit.json.encodeCanonical
import patchdeploy.patchkit.json.parseCanonical
import patchdeploy.patchkit.toHex

/**
 * Keys: whose signatures a reader takes.
 *
 * In: the list of trusted keys that ships with an app. Out: [TrustedKeys], and verdicts on Ed25519
 * signatures (RFC 8032). No private key exists here, and nothing signs.
 */

internal const val KEY_BYTES = 32
internal const val SIGNATURE_BYTES = 64
private const val FORMAT = 1L
private const val MAX_KEYS = 256
private const val MAX_THRESHOLD = 4
private const val MAX_LIST_BYTES = 65_536
private val FIELD_PRIME = BigInteger.ONE.shiftLeft(255) - BigInteger.valueOf(19)
private val ORDER_8_Y = BigInteger("7a03ac9277fdc74ec6cc392cfa53202a0f67100d760b3cba4fd84d3d706a17c7", 16)

/** y of the eight points of order 1, 2, 4 and 8: under such a key anyone can make signatures. */
private val SMALL_ORDER_Y = setOf(
    BigInteger.ZERO, BigInteger.ONE, FIELD_PRIME - BigInteger.ONE, ORDER_8_Y, FIELD_PRIME - ORDER_8_Y,
)

/** An Ed25519 public key: 32 bytes, compared by value. */
public class PublicKey internal constructor(bytes: ByteArray) {
    private val bytes: ByteArray = bytes.copyOf()

    /** 64 lower-case hexadecimal digits. */
    public val hex: String = this.bytes.toHex()

    init {
        checkPublicKey(this.bytes)
    }

    override fun equals(other: Any?): Boolean = other is PublicKey && hex == other.hex
    override fun hashCode(): Int = hex.hashCode()
    override fun toString(): String = hex

    /** Whether [signature] is that of [message] under this key. */
    internal fun verifies(signature: ByteArray, message: ByteArray): Boolean =
        verifySignature(bytes, signature, message)

    public companion object {
        /** @throws PatchKeyException not 64 lower-case hexadecimal digits, or no honest signer's key. */
        public fun fromHex(hex: String): PublicKey {
            if (!HEX64.matches(hex)) {
                throw PatchKeyException(
                    "trusted key '${hex.take(80)}'; it must be 64 lower-case hexadecimal digits, or " +
                        "null for a revoked one; correct the list",
                )
            }
            return PublicKey(hex64Bytes(hex))
        }
    }
}

/**
 * The public keys that a reader pins. A key's index is its position, for good.
 *
 * @property keys null where a key was revoked. Only ever appended to.
 * @property threshold how many different keys must have signed.
 * @throws PatchKeyException a key twice, more than 256, or a threshold that the live keys cannot
 *   reach.
 */
public data class TrustedKeys(val keys: List<PublicKey?>, val threshold: Int) {
    init {
        val live = keys.filterNotNull()
        if (keys.size > MAX_KEYS) {
            throw PatchKeyException(
                "${keys.size} trusted keys; there must be at most $MAX_KEYS, since an index is one " +
                    "byte; start a new list with the keys that live",
            )
        }
        live.groupingBy { it }.eachCount().entries.find { it.value > 1 }?.let {
            throw PatchKeyException(
                "trusted key ${it.key} is there twice; each must be there once, or one person could " +
                    "reach the threshold alone; remove one",
            )
        }
        if (threshold !in 1..minOf(MAX_THRESHOLD, live.size)) {
            throw PatchKeyException(
                "threshold $threshold over ${live.size} live keys; it must be an integer from 1 to " +
                    "$MAX_THRESHOLD and at most the live keys; add keys or lower it",
            )
        }
    }

    /** The list as plain JSON values. */
    internal fun toDocument(): Map<String, Any?> =
        mapOf("format" to FORMAT, "keys" to keys.map { it?.hex }, "threshold" to threshold)

    /** Canonical JSON. */
    public fun toBytes(): ByteArray = encodeCanonical(toDocument())

    public companion object {
        /**
         * Parse a list; one newline may follow.
         *
         * @throws PatchKeyException any other text, or keys that [TrustedKeys] refuses.
         */
        public fun fromBytes(data: ByteArray): TrustedKeys {
            try {
                if (data.size > MAX_LIST_BYTES) {
                    throw CanonicalTextException("at most $MAX_LIST_BYTES bytes", "${data.size} bytes")
                }
                val newline = if (data.lastOrNull() == '\n'.code.toByte()) 1 else 0
                return fromDocument(parseCanonical(data.copyOf(data.size - newline), allowNull = true))
            } catch (error: CanonicalTextException) {
                throw PatchKeyException(
                    "list of trusted keys does not parse: it has ${error.got}; it must be " +
                        "${error.expected}; take the file that patchdeploy keys wrote",
                    error,
                )
            }
        }

        /** @throws PatchKeyException other values, or keys that [TrustedKeys] refuses. */
        internal fun fromDocument(document: Any?): TrustedKeys {
            val fields = document as? Map<*, *>
            val keys = fields?.get("keys") as? List<*>
            val threshold = fields?.get("threshold") as? Long
            if (fields?.keys != setOf("format", "keys", "threshold") || fields["format"] != FORMAT ||
                keys == null || threshold == null
            ) {
                throw PatchKeyException(
                    "list of trusted keys has other parts than it must have: format 1, keys and " +
                        "threshold; take the file that patchdeploy keys wrote, or upgrade patchdeploy",
                )
            }
            val most = threshold.coerceIn(0, MAX_THRESHOLD + 1L).toInt()
            return TrustedKeys(keys.map { one -> one?.let { PublicKey.fromHex(it.toString()) } }, most)
        }
    }
}

/**
 * Refuse bytes that no honest signer's key has: a y that is not below the field's prime, or a point
 * of small order. Bytes that are no point are harmless: under them no signature verifies.
 *
 * @throws PatchKeyException such bytes.
 */
internal fun checkPublicKey(public: ByteArray) {
    val y = BigInteger(1, public.reversedArray()).clearBit(8 * KEY_BYTES - 1)
    if (public.size != KEY_BYTES || y >= FIELD_PRIME || y in SMALL_ORDER_Y) {
        throw PatchKeyException(
            "public key ${public.copyOf(minOf(public.size, 40)).toHex()} of ${public.size} bytes; it " +
                "must be an Ed25519 key of $KEY_BYTES bytes, y below 2^255 - 19 and not of small " +
                "order; make one with patchdeploy keys new",
        )
    }
}

/** Whether [signature] is that of [message] under [public] (32 bytes), by RFC 8032 without cofactor. */
internal fun verifySignature(public: ByteArray, signature: ByteArray, message: ByteArray): Boolean {
    if (signature.size != SIGNATURE_BYTES) return false
    try {
        Ed25519Verify(public).verify(signature, message)
    } catch (error: GeneralSecurityException) {
        return false
    }
    return true
}
