package patchdeploy.patchkit.store

import patchdeploy.patchkit.CanonicalTextException
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.HEX64
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.json.LARGEST
import patchdeploy.patchkit.json.encodeCanonical
import patchdeploy.patchkit.json.parseCanonical
import patchdeploy.patchkit.patchfile.TrustedKeys
import patchdeploy.patchkit.sha256Hex

/**
 * The one small record that says what a patch store runs: STATE; docs/patch-format.md, "The store".
 *
 * In: bytes, or a state and what changes. Out: the other one. No disk.
 */

internal const val MAX_STATE_BYTES = 4 shl 20
internal const val MAX_TASKS = 4096
private const val FORMAT = 2L
private const val MAX_FLOORS = 4
private const val MAX_SIGNERS = 4
private const val MAX_KEYS = 256
private const val OWN_HASH = "state_sha256"
private val KEYS = setOf("active", "floors", "format", "previous", "trusted", OWN_HASH)
internal val TASK_NAME = Regex("[a-z0-9_-]{1,64}")

/**
 * The highest patch of a task that was ever active among those that the same keys signed.
 *
 * @property sequence its number, 1 to 2^53 - 1.
 * @property sha256 of its file.
 * @property signers key indices, ascending; none: an unsigned one.
 */
public data class Floor(val sequence: Long, val sha256: String, val signers: List<Int>) : Comparable<Floor> {
    override fun compareTo(other: Floor): Int {
        val first = compareValuesBy(this, other, Floor::sequence, Floor::sha256)
        if (first != 0) return first
        val pairs = signers.zip(other.signers).map { (one, two) -> one.compareTo(two) }
        return pairs.find { it != 0 } ?: signers.size.compareTo(other.signers.size)
    }

    internal fun isSound(): Boolean = sequence in 1..LARGEST && HEX64.matches(sha256) &&
        signers.size <= MAX_SIGNERS && signers.all { it in 0 until MAX_KEYS } &&
        signers == signers.toSortedSet().toList()
}

/**
 * What a store runs.
 *
 * @property active SHA-256 of the patch file that each task runs.
 * @property previous of the one that a revert goes back to; never the active one.
 * @property floors of each task that ever was active, one for each set of signers, ascending.
 * @property trusted the newest list of trusted keys that a writer had.
 * @throws FileFormatException a name, hash or number outside the rules, or parts that do not agree.
 */
public data class StoreState(
    val active: Map<String, String> = emptyMap(),
    val previous: Map<String, String> = emptyMap(),
    val floors: Map<String, List<Floor>> = emptyMap(),
    val trusted: TrustedKeys? = null,
) {
    init {
        val hashes = active.entries + previous.entries
        val sound = hashes.all { TASK_NAME.matches(it.key) && HEX64.matches(it.value) } &&
            floors.all { TASK_NAME.matches(it.key) && areFloors(it.value) } &&
            floors.keys.containsAll(active.keys) && previous.none { active[it.key] == it.value }
        if (!sound) throw damaged("names, hashes and numbers that agree", "others")
    }

    /** SHA-256 of every patch file that the store needs. */
    internal val named: Set<String> get() = (active.values + previous.values).toSet()

    /** [named], and the highest of a task that has lost what it had active. */
    internal val kept: Set<String>
        get() = named + (floors - active.keys).values.flatten().map { it.sha256 }

    /** The floor of [task]: the highest of those whose signers still count. */
    internal fun highest(task: String, counts: (List<Int>) -> Boolean): Floor? =
        floors[task].orEmpty().filter { counts(it.signers) }.maxOrNull()

    /**
     * The state in which [task] runs the patch of [floor]; no floor falls by it.
     *
     * @param backTo SHA-256 of the patch that a revert goes back to.
     * @throws ConfigException one task more than a store holds.
     */
    internal fun activated(task: String, floor: Floor, backTo: String?): StoreState {
        if (active[task] == floor.sha256) return this
        if (task !in floors && floors.size >= MAX_TASKS) {
            throw ConfigException(
                "the store holds ${floors.size} tasks and '$task' is one more; a store holds at most " +
                    "$MAX_TASKS; install it into another folder",
            )
        }
        val others = previous - task
        return copy(
            active = active + (task to floor.sha256),
            previous = if (backTo == null || backTo == floor.sha256) others else others + (task to backTo),
            floors = floors + (task to raiseFloor(floors[task].orEmpty(), floor)),
        )
    }

    /** The state in which [task] runs its previous patch; the floors stay. */
    internal fun reverted(task: String): StoreState = copy(
        active = active + (task to previous.getValue(task)),
        previous = previous + (task to active.getValue(task)),
    )

    internal fun toBytes(): ByteArray {
        val document = mapOf(
            "active" to active,
            "floors" to floors.mapValues { (_, all) -> all.map { listOf(it.sequence, it.sha256, it.signers) } },
            "format" to FORMAT,
            "previous" to previous,
            "trusted" to trusted?.toDocument(),
        )
        return encodeCanonical(document + (OWN_HASH to sha256Hex(encodeCanonical(document))))
    }

    internal companion object {
        /** @throws FileFormatException not the bytes that [toBytes] gives. */
        fun fromBytes(data: ByteArray): StoreState {
            val document = try {
                parseCanonical(data, allowNull = true)
            } catch (error: CanonicalTextException) {
                throw damaged(error.expected, error.got)
            }
            if (document !is Map<*, *> || document.keys != KEYS) {
                throw damaged("the keys ${KEYS.sorted().joinToString()}", "others")
            }
            val found = sha256Hex(encodeCanonical(document - OWN_HASH))
            if (document[OWN_HASH] != found) throw damaged("the SHA-256 that it records", found)
            if (document["format"] != FORMAT) throw damaged("format $FORMAT", "another format")
            val floors = document["floors"] as? Map<*, *> ?: throw damaged("three objects", "others")
            return StoreState(
                texts(document["active"]),
                texts(document["previous"]),
                floors.entries.associate { (task, one) -> task as String to parseFloors(one) },
                parseTrusted(document["trusted"]),
            )
        }
    }
}

/** [floors] with [new] for its set of signers, unless a higher one is there. */
internal fun raiseFloor(floors: List<Floor>, new: Floor): List<Floor> {
    val (same, others) = floors.partition { it.signers == new.signers }
    val best = if (same.all { it.sequence <= new.sequence }) new else same.max()
    return (others + best).sorted().takeLast(MAX_FLOORS)
}

/** Whether they are 1 to [MAX_FLOORS], ascending, no two of the same signers. */
private fun areFloors(floors: List<Floor>): Boolean = floors.size in 1..MAX_FLOORS &&
    floors.all(Floor::isSound) && floors.map { it.signers }.toSet().size == floors.size &&
    floors == floors.sorted()

private fun texts(value: Any?): Map<String, String> {
    if (value !is Map<*, *>) throw damaged("three objects", "others")
    return value.entries.associate { (key, one) ->
        key as String to (one as? String ?: throw damaged("names, hashes and numbers that agree", "others"))
    }
}

private fun parseFloors(value: Any?): List<Floor> {
    if (value !is List<*>) throw damaged("lists of floors", "others")
    return value.map { one ->
        val row = (one as? List<*>)?.takeIf { it.size == 3 }
        val sequence = row?.get(0) as? Long
        val sha256 = row?.get(1) as? String
        val signers = (row?.get(2) as? List<*>)?.map { (it as? Long)?.coerceIn(0, MAX_KEYS.toLong())?.toInt() }
        if (sequence == null || sha256 == null || signers == null || null in signers) {
            throw damaged("floors of a number, a hash and a list", "others")
        }
        Floor(sequence, sha256, signers.filterNotNull())
    }
}

private fun parseTrusted(value: Any?): TrustedKeys? = try {
    value?.let(TrustedKeys::fromDocument)
} catch (error: PatchKeyException) {
    throw damaged("a list of trusted keys", "another (${error.message})")
}

private fun damaged(expected: String, got: String) = FileFormatException(
    "STATE of the store has $got; it must have $expected; the store takes its copy, or has the " +
        "patches run that ship with the app",
)
