package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.CanonicalTextException
import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.HEX64_RULE
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.json.LARGEST
import patchdeploy.patchkit.json.parseCanonical

/** What this decoder can do; a patch names the least that it needs. */
public const val ENGINE_VERSION: Int = 2

internal const val MIN_HEADER_BYTES = 2
internal const val MAX_HEADER_BYTES = 65_536
internal const val MAX_PAYLOAD_BYTES = 8 shl 20

/** Pixels of the largest self-test: sum of px^2 over the resolutions, times the images. */
internal const val MAX_WORK = 1L shl 24
private const val FORMAT = 1L
private const val MAX_CLASSES = 65_536L
private const val MAX_RESOLUTIONS = 16
private const val MAX_RESOLUTION = 4096L
private const val MAX_RUNTIMES = 8
private const val MAX_INT32 = (1L shl 31) - 1
private val TASK = Regex("[a-z0-9_-]{1,64}")
private val RUNTIME = Regex("[a-z0-9_-]{1,32}")

/** Layouts of a payload, and the least decoder that reads each; "parts-2" has optional parts. */
private val ENCODINGS = mapOf("parts-1" to 1L, "parts-2" to 2L)
private const val REMEDY = "pack the patch again with this version of patchdeploy"
private const val NEWER = "a newer patchdeploy may read it: upgrade patchdeploy in the app, or $REMEDY"
private val KEYS = setOf(
    "base", "classes", "encoding", "engine", "expires", "format", "payload", "resolutions",
    "results", "sequence", "sites", "task",
)

/** A run of slots: [count] from [first] on. */
public data class SlotRun(val first: Int, val count: Int)

/**
 * One task over one base, as the file says.
 *
 * @property task 1 to 64 of a-z, 0-9, underscore and hyphen.
 * @property baseSha256 of the base's coding table.
 * @property baseBytes of the same.
 * @property classes head rows that the task uses.
 * @property engine least [ENGINE_VERSION] that can decode it.
 * @property expires Unix seconds from which on it is not installed; 0: never.
 * @property payloadSha256 of the payload.
 * @property payloadBytes of the payload.
 * @property resolutions sides in pixels; further ones are coded against the first.
 * @property results SHA-256 of the base file with the patch laid over, by runtime and resolution.
 * @property sequence greater for a newer patch of the same task.
 * @property sites runs of slots that it sets; sorted, never touching.
 * @property encoding of the payload.
 */
public class PatchHeader internal constructor(
    public val task: String,
    public val baseSha256: String,
    public val baseBytes: Long,
    public val classes: Int,
    public val engine: Int,
    public val expires: Long,
    public val payloadSha256: String,
    public val payloadBytes: Int,
    public val resolutions: List<Int>,
    public val results: Map<String, Map<Int, String>>,
    public val sequence: Long,
    public val sites: List<SlotRun>,
    public val encoding: String,
) {
    /** Whether the payload has optional parts after those that every patch has. */
    internal val hasOptionalParts: Boolean get() = encoding == "parts-2"

    internal companion object {
        /**
         * Parse a header whose signatures have been verified.
         *
         * @throws PatchRefusedException code "header_text" (not canonical JSON) or "header_field".
         */
        fun fromBytes(data: ByteArray): PatchHeader {
            val document = try {
                parseCanonical(data)
            } catch (error: CanonicalTextException) {
                throw PatchRefusedException(
                    RefusalCode.HEADER_TEXT, "header", error.expected, error.got, REMEDY, error,
                )
            }
            return parse(document)
        }

        private fun parse(document: Any?): PatchHeader {
            if (document is Map<*, *> && "format" in document) {
                integer(document["format"], "header.format", FORMAT, FORMAT, NEWER)
            }
            val fields = objectOf(document, "header", KEYS)
            val base = objectOf(fields["base"], "header.base", setOf("bytes", "sha256"))
            val payload = objectOf(fields["payload"], "header.payload", setOf("bytes", "sha256"))
            val encoding = fields["encoding"]
            val least = ENCODINGS[encoding]
                ?: throw refusal("header.encoding", "one of ${ENCODINGS.keys.joinToString()}", encoding, NEWER)
            val resolutions = resolutions(fields["resolutions"])
            return PatchHeader(
                baseBytes = integer(base["bytes"], "header.base.bytes", 1, LARGEST),
                baseSha256 = text(base["sha256"], "header.base.sha256", HEX64, HEX64_RULE),
                classes = integer(fields["classes"], "header.classes", 2, MAX_CLASSES).toInt(),
                encoding = encoding as String,
                engine = integer(fields["engine"], "header.engine", least, MAX_INT32).toInt(),
                expires = integer(fields["expires"], "header.expires", 0, LARGEST),
                payloadBytes = integer(payload["bytes"], "header.payload.bytes", 1, MAX_PAYLOAD_BYTES.toLong()).toInt(),
                payloadSha256 = text(payload["sha256"], "header.payload.sha256", HEX64, HEX64_RULE),
                resolutions = resolutions,
                results = results(fields["results"], resolutions),
                sequence = integer(fields["sequence"], "header.sequence", 1, LARGEST),
                sites = sites(fields["sites"]),
                task = text(fields["task"], "header.task", TASK, "1 to 64 of a-z, 0-9, underscore and hyphen"),
            )
        }
    }
}

/**
 * Check H, the length of a header.
 *
 * @throws PatchRefusedException code "header_length".
 */
internal fun checkHeaderLength(lengthBytes: Long, remedy: String) {
    if (lengthBytes !in MIN_HEADER_BYTES..MAX_HEADER_BYTES) {
        throw PatchRefusedException(
            RefusalCode.HEADER_LENGTH, "header length",
            "from $MIN_HEADER_BYTES to $MAX_HEADER_BYTES bytes", "$lengthBytes bytes", remedy,
        )
    }
}

private fun resolutions(value: Any?): List<Int> {
    val field = "header.resolutions"
    val sides = list(value, field, MAX_RESOLUTIONS).mapIndexed { k, px ->
        integer(px, "$field[$k]", 1, MAX_RESOLUTION).toInt()
    }
    if (sides.toSet().size < sides.size) throw refusal(field, "different sides", value)
    val pixels = sides.sumOf { it.toLong() * it }
    if (pixels > MAX_WORK) {
        throw refusal(field, "sides whose squares make at most $MAX_WORK together", "$value, $pixels")
    }
    return sides
}

private fun results(value: Any?, resolutions: List<Int>): Map<String, Map<Int, String>> {
    val field = "header.results"
    if (value !is Map<*, *> || value.size !in 1..MAX_RUNTIMES) {
        throw refusal(field, "an object of 1 to $MAX_RUNTIMES runtimes", value)
    }
    return value.entries.associate { (key, hashes) ->
        val name = text(key, "$field key", RUNTIME, "1 to 32 of a-z, 0-9, underscore and hyphen")
        val own = "$field.$name"
        val found = objectOf(hashes, own, resolutions.map(Int::toString).toSet())
        name to resolutions.associateWith { text(found[it.toString()], "$own.$it", HEX64, HEX64_RULE) }
    }
}

/** Runs of slot indices: each starts after a gap behind the one before. */
private fun sites(value: Any?): List<SlotRun> {
    val field = "header.sites"
    var least = 0L
    return list(value, field, MAX_HEADER_BYTES).mapIndexed { k, pair ->
        val own = "$field[$k]"
        if (pair !is List<*> || pair.size != 2) throw refusal(own, "a list of first and count", pair)
        val first = integer(pair[0], "$own[0]", least, MAX_INT32 - 1)
        val count = integer(pair[1], "$own[1]", 1, MAX_INT32 - first)
        least = first + count + 1
        SlotRun(first.toInt(), count.toInt())
    }
}

private fun integer(value: Any?, field: String, least: Long, most: Long, remedy: String = REMEDY): Long {
    if (value !is Long || value !in least..most) {
        val rule = if (least == most) "the integer $least" else "an integer from $least to $most"
        throw refusal(field, rule, value, remedy)
    }
    return value
}

private fun text(value: Any?, field: String, pattern: Regex, rule: String): String {
    if (value !is String || !pattern.matches(value)) throw refusal(field, rule, value)
    return value
}

private fun list(value: Any?, field: String, most: Int): List<Any?> {
    if (value !is List<*> || value.size !in 1..most) throw refusal(field, "a list of 1 to $most", value)
    return value
}

private fun objectOf(value: Any?, field: String, keys: Set<String>): Map<*, *> {
    if (value !is Map<*, *>) {
        throw refusal(field, "an object with the keys ${keys.sorted().joinToString()}", value)
    }
    for (key in keys.sorted()) if (key !in value) throw refusal("$field.$key", "there", "missing")
    for (key in value.keys) {
        if (key !in keys) throw refusal("$field key", "one of ${keys.sorted().joinToString()}", key, NEWER)
    }
    return value
}

private fun refusal(field: String, expected: String, got: Any?, remedy: String = REMEDY) =
    PatchRefusedException(RefusalCode.HEADER_FIELD, field, expected, got.toString(), remedy)
