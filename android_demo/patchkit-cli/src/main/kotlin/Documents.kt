package patchdeploy.cli

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.Base64
import patchdeploy.patchkit.json.JsonRules
import patchdeploy.patchkit.json.parseJson
import patchdeploy.patchkit.patchfile.ENGINE_VERSION
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.PublicKey
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.PatchValues

/** A JSON object of test vectors, or of a question; its reader knows the keys. */
internal typealias Document = Map<String, Any?>

private val RULES = JsonRules(repeatedKeys = false, loneSurrogates = true, mostDigits = 308, mostLevels = 64)

@Suppress("UNCHECKED_CAST")
internal fun readDocument(data: ByteArray): Document = parseJson(data, RULES) as Document

@Suppress("UNCHECKED_CAST")
internal fun Document.child(key: String): Document = getValue(key) as Document

@Suppress("UNCHECKED_CAST")
internal fun Document.children(key: String): List<Document> = getValue(key) as List<Document>

internal fun Document.text(key: String): String = getValue(key) as String

internal fun Document.long(key: String): Long? = get(key) as Long?

internal fun Document.int(key: String): Int = (getValue(key) as Long).toInt()

internal fun Document.base64(key: String): ByteArray = Base64.getDecoder().decode(text(key))

/** A reader's demands as the vectors have them; absent and null: no demand. */
internal fun policyOf(fields: Document): Policy = Policy(
    trusted = (fields["trusted"] as List<*>?)?.let { keys ->
        TrustedKeys(keys.map { key -> key?.let { PublicKey.fromHex(it as String) } }, fields.int("threshold"))
    },
    allowUnsigned = fields["allow_unsigned"] as Boolean? ?: false,
    runtime = fields["runtime"] as String?,
    task = fields["task"] as String?,
    baseSha256 = fields["base_sha256"] as String?,
    baseBytes = fields.long("base_bytes"),
    resolutions = (fields["resolutions"] as List<*>?)?.map { (it as Long).toInt() }?.toSet(),
    floor = fields.long("floor") ?: 0,
    now = fields.long("now"),
    engine = fields.long("engine")?.toInt() ?: ENGINE_VERSION,
)

/** By array of [values], the SHA-256 of its little-endian bytes. */
internal fun hashes(values: PatchValues): Map<String, String> = mapOf(
    "weight_scale" to hash(values.weightScale),
    "bias" to sha256Hex(little(values.bias.size).also { values.bias.forEach(it::putInt) }.array()),
    "activation_scale" to hash(values.activationScale),
    "activation_zero_point" to sha256Hex(values.activationZeroPoint),
    "weights" to sha256Hex(values.weights),
)

private fun hash(floats: FloatArray): String =
    sha256Hex(little(floats.size).also { floats.forEach(it::putFloat) }.array())

private fun little(elements: Int): ByteBuffer = ByteBuffer.allocate(4 * elements).order(ByteOrder.LITTLE_ENDIAN)
