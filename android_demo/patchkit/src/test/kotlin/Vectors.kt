package patchdeploy.patchkit

import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.file.Files
import java.nio.file.Path
import java.util.Base64
import patchdeploy.patchkit.json.JsonRules
import patchdeploy.patchkit.json.parseJson
import patchdeploy.patchkit.patchfile.Policy
import patchdeploy.patchkit.patchfile.PublicKey
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.slots.PatchValues

/** A JSON object of the repository's test vectors, or of the cases that Python made. */
public typealias Document = Map<String, Any?>

private val RULES = JsonRules(repeatedKeys = false, loneSurrogates = true, mostDigits = 308, mostLevels = 64)

@Suppress("UNCHECKED_CAST")
public fun readDocument(path: Path): Document = parseJson(Files.readAllBytes(path), RULES) as Document

/** A file of tests/patchfile. */
public fun readVectors(name: String): Document {
    val root = checkNotNull(System.getProperty("patchdeploy.repository")) { "patchdeploy.repository is not set" }
    return readDocument(Path.of(root, "tests", "patchfile", name))
}

@Suppress("UNCHECKED_CAST")
public fun Document.child(key: String): Document = getValue(key) as Document

@Suppress("UNCHECKED_CAST")
public fun Document.children(key: String): List<Document> = getValue(key) as List<Document>

public fun Document.text(key: String): String = getValue(key) as String

public fun Document.long(key: String): Long? = get(key) as Long?

public fun Document.base64(key: String): ByteArray = Base64.getDecoder().decode(text(key))

/** The reader's demands as vectors.json and its siblings have them; absent and null: no demand. */
public fun policyOf(fields: Document): Policy = Policy(
    trusted = (fields["trusted"] as List<*>?)?.let { keys ->
        val threshold = checkNotNull(fields.long("threshold")).toInt()
        TrustedKeys(keys.map { key -> key?.let { PublicKey.fromHex(it as String) } }, threshold)
    },
    allowUnsigned = fields["allow_unsigned"] as Boolean? ?: false,
    runtime = fields["runtime"] as String?,
    task = fields["task"] as String?,
    baseSha256 = fields["base_sha256"] as String?,
    baseBytes = fields.long("base_bytes"),
    resolutions = (fields["resolutions"] as List<*>?)?.map { (it as Long).toInt() }?.toSet(),
    floor = fields.long("floor") ?: 0,
    now = fields.long("now"),
    engine = fields.long("engine")?.toInt() ?: patchdeploy.patchkit.patchfile.ENGINE_VERSION,
)

/** "ok", or the code of the check that refuses. */
public fun verdict(check: () -> Unit): String = try {
    check()
    "ok"
} catch (error: PatchRefusedException) {
    error.code.text
}

public fun sha256(floats: FloatArray): String {
    val bytes = ByteBuffer.allocate(4 * floats.size).order(ByteOrder.LITTLE_ENDIAN)
    floats.forEach(bytes::putFloat)
    return sha256Hex(bytes.array())
}

public fun sha256(integers: IntArray): String {
    val bytes = ByteBuffer.allocate(4 * integers.size).order(ByteOrder.LITTLE_ENDIAN)
    integers.forEach(bytes::putInt)
    return sha256Hex(bytes.array())
}

/** By array, the SHA-256 of its little-endian bytes. */
public fun hashes(values: PatchValues): Map<String, String> = mapOf(
    "weight_scale" to sha256(values.weightScale),
    "bias" to sha256(values.bias),
    "activation_scale" to sha256(values.activationScale),
    "activation_zero_point" to sha256Hex(values.activationZeroPoint),
    "weights" to sha256Hex(values.weights),
)

/** The JSON text of a parsed document; texts of it hold no character that needs an escape. */
public fun jsonBytes(value: Any?): ByteArray = jsonText(value).toByteArray()

private fun jsonText(value: Any?): String = when (value) {
    is Map<*, *> -> value.entries.joinToString(",", "{", "}") { (key, one) -> "\"$key\":${jsonText(one)}" }
    is List<*> -> value.joinToString(",", "[", "]", transform = ::jsonText)
    is String -> "\"$value\""
    else -> "$value"
}
