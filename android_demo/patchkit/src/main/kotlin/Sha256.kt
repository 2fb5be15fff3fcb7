package patchdeploy.patchkit

import java.nio.ByteBuffer
import java.security.MessageDigest

/** SHA-256 of [data] as 64 lower-case hexadecimal digits. */
public fun sha256Hex(data: ByteArray): String = sha256Hex(ByteBuffer.wrap(data))

/** SHA-256 of what remains in [data], whose position is left where it was. */
public fun sha256Hex(data: ByteBuffer): String {
    val digest = MessageDigest.getInstance("SHA-256")
    digest.update(data.duplicate())
    return digest.digest().toHex()
}

private const val HEX_DIGITS = "0123456789abcdef"

internal fun ByteArray.toHex(): String {
    val text = StringBuilder(2 * size)
    for (byte in this) text.append(HEX_DIGITS[byte.toInt() shr 4 and 15]).append(HEX_DIGITS[byte.toInt() and 15])
    return text.toString()
}

internal val HEX64: Regex = Regex("[0-9a-f]{64}")
internal const val HEX64_RULE: String = "64 lower-case hexadecimal digits"

/** The 32 bytes of a text that matches [HEX64]. */
internal fun hex64Bytes(text: String): ByteArray =
    ByteArray(32) { k -> text.substring(2 * k, 2 * k + 2).toInt(16).toByte() }
