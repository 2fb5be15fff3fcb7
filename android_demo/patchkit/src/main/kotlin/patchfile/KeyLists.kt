package patchdeploy.patchkit.patchfile

import patchdeploy.patchkit.PatchKeyException

/** Two lists of trusted keys of one reader: an old copy of a list brings no revoked key back. */

/**
 * The keys of both lists, each revoked that either has revoked. The threshold is that of the list
 * which has these keys already; the higher one where both do, or neither.
 *
 * @throws PatchKeyException different keys at one index, or a threshold above the keys that are left.
 */
internal fun joinLists(known: TrustedKeys?, other: TrustedKeys?): TrustedKeys? {
    if (known == null || other == null) return known ?: other
    val keys = List(maxOf(known.keys.size, other.keys.size)) { index ->
        val there = listOf(known, other).filter { index < it.keys.size }.map { it.keys[index] }
        val live = there.filterNotNull().toSet()
        if (live.size > 1) {
            throw PatchKeyException(
                "two lists of trusted keys have different keys at index $index: " +
                    "${live.map { it.hex }.sorted().joinToString()}; one list must come of the other by " +
                    "keys rotate; pass a list that does",
            )
        }
        if (null in there) null else live.single()
    }
    val newest = listOf(known, other).filter { it.keys == keys }.ifEmpty { listOf(known, other) }
    return TrustedKeys(keys, newest.maxOf { it.threshold })
}

/** Whether signatures by these key indices, valid when they were made, are enough today. */
internal fun stillCount(signers: List<Int>, policy: Policy): Boolean {
    if (signers.isEmpty()) return policy.allowUnsigned
    val trusted = policy.trusted ?: return false
    return signers.toSet().size >= trusted.threshold && signers.all { trusted.keys.getOrNull(it) != null }
}
