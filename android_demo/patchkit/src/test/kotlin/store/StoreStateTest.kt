package patchdeploy.patchkit.store

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.assertThrows
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.json.encodeCanonical
import patchdeploy.patchkit.json.parseCanonical
import patchdeploy.patchkit.sha256Hex

class StoreStateTest {
    private fun hash(k: Int): String = "$k".padStart(64, '0')

    private val full = StoreState(
        active = mapOf("first" to hash(3), "second" to hash(4)),
        previous = mapOf("first" to hash(2)),
        floors = mapOf(
            "first" to listOf(Floor(3, hash(3), listOf(0)), Floor(4, hash(5), listOf(0, 1)), Floor(4, hash(6), listOf(1))),
            "second" to listOf(Floor(1, hash(4), emptyList())),
            "gone" to listOf(Floor(9, hash(9), listOf(2))),
        ),
        trusted = PatchForge.policy.trusted,
    )

    @Suppress("UNCHECKED_CAST")
    private val document = parseCanonical(full.toBytes(), allowNull = true) as Map<String, Any?>

    /** The record with [changes] and a right hash of its own. */
    private fun record(changes: Map<String, Any?>): ByteArray {
        val rest = document - "state_sha256" + changes
        return encodeCanonical(rest + ("state_sha256" to sha256Hex(encodeCanonical(rest))))
    }

    @Test
    fun `a record is read as it was written`() {
        assertEquals(full, StoreState.fromBytes(full.toBytes()))
        assertArrayEquals(full.toBytes(), record(emptyMap()))
        assertEquals(StoreState(), StoreState.fromBytes(StoreState().toBytes()))
        assertEquals(setOf(hash(3), hash(4), hash(2), hash(9)), full.kept)
    }

    @TestFactory
    fun `a record with one thing wrong is refused`(): List<DynamicTest> {
        val one = listOf(1L, hash(1), listOf(0L))
        val floors = document.getValue("floors") as Map<*, *>
        val wrong: Map<String, Map<String, Any?>> = mapOf(
            "active is a list" to mapOf("active" to listOf("first")),
            "active has a number" to mapOf("active" to mapOf("first" to 3L)),
            "a task with a capital" to mapOf("active" to mapOf("First" to hash(3))),
            "a hash too short" to mapOf("active" to mapOf("first" to "0")),
            "previous is null" to mapOf("previous" to null),
            "the active patch is the previous one" to mapOf("previous" to mapOf("first" to hash(3))),
            "an active task without a floor" to mapOf("floors" to floors - "second"),
            "floors are a list" to mapOf("floors" to listOf(one)),
            "a task's floors are a number" to mapOf("floors" to floors + ("gone" to 1L)),
            "a task without any floor" to mapOf("floors" to floors + ("gone" to emptyList<Any>())),
            "a floor is a text" to mapOf("floors" to floors + ("gone" to listOf("x"))),
            "a floor of two parts" to mapOf("floors" to floors + ("gone" to listOf(one.take(2)))),
            "a floor whose number is a text" to mapOf("floors" to floors + ("gone" to listOf(listOf("1", hash(1), listOf(0L))))),
            "a floor of number 0" to mapOf("floors" to floors + ("gone" to listOf(listOf(0L, hash(1), listOf(0L))))),
            "a floor whose hash is a number" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, 1L, listOf(0L))))),
            "a floor whose hash is short" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, "1", listOf(0L))))),
            "a floor whose signers are a number" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, hash(1), 0L)))),
            "a floor whose signer is a text" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, hash(1), listOf("0"))))),
            "a signer past the last key" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, hash(1), listOf(256L))))),
            "five signers" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, hash(1), listOf(0L, 1L, 2L, 3L, 4L))))),
            "signers in another order" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, hash(1), listOf(1L, 0L))))),
            "a signer twice" to mapOf("floors" to floors + ("gone" to listOf(listOf(1L, hash(1), listOf(1L, 1L))))),
            "two floors of the same signers" to mapOf("floors" to floors + ("gone" to listOf(one, listOf(2L, hash(2), listOf(0L))))),
            "floors that fall" to mapOf("floors" to floors + ("gone" to listOf(listOf(2L, hash(1), listOf(1L)), one))),
            "five floors" to mapOf("floors" to floors + ("gone" to (0L..4L).map { listOf(it + 1, hash(1), listOf(it)) })),
            "a floor of a task with a space" to mapOf("floors" to floors + ("a b" to listOf(one))),
            "another format" to mapOf("format" to 3L),
            "a key more" to mapOf("more" to 1L),
            "trusted keys that are none" to mapOf("trusted" to mapOf("format" to 1L)),
        )
        return wrong.map { (name, changes) ->
            dynamicTest(name) { assertThrows<FileFormatException> { StoreState.fromBytes(record(changes)) } }
        } + listOf(
            dynamicTest("no text") { assertThrows<FileFormatException> { StoreState.fromBytes(byteArrayOf(1)) } },
            dynamicTest("a list") { assertThrows<FileFormatException> { StoreState.fromBytes("[]".toByteArray()) } },
            dynamicTest("another hash") {
                val changed = encodeCanonical(document + ("state_sha256" to hash(0)))
                assertThrows<FileFormatException> { StoreState.fromBytes(changed) }
            },
        )
    }

    @Test
    fun `floors are ordered by number, hash and signers`() {
        val floors = listOf(
            Floor(1, hash(9), listOf(5)), Floor(2, hash(1), listOf(0)), Floor(2, hash(2), emptyList()),
            Floor(2, hash(2), listOf(0)), Floor(2, hash(2), listOf(0, 1)), Floor(2, hash(2), listOf(1)),
        )
        assertEquals(floors, floors.shuffled().sorted())
        assertEquals(0, floors[3].compareTo(floors[3].copy()))
    }

    @Test
    fun `of a set of signers the higher floor is kept, and of five sets the four highest`() {
        val low = Floor(3, hash(3), listOf(0))
        val high = Floor(5, hash(5), listOf(0))
        assertEquals(listOf(high), raiseFloor(listOf(high), low))
        assertEquals(listOf(high), raiseFloor(listOf(low), high))
        val others = (1..4).map { Floor(it.toLong(), hash(it), listOf(it)) }
        assertEquals(others.drop(1) + high, raiseFloor(others, high))
        assertEquals(high, StoreState(floors = mapOf("first" to listOf(low.copy(signers = listOf(1)), high))).highest("first") { true })
    }

    @Test
    fun `one task more than a store holds is refused, another patch of the same task is not`() {
        val many = (0 until MAX_TASKS).associate { "t$it" to listOf(Floor(1, hash(1), listOf(0))) }
        val state = StoreState(floors = many)
        assertThrows<ConfigException> { state.activated("one-more", Floor(1, hash(2), listOf(0)), null) }
        assertEquals(hash(2), state.activated("t5", Floor(2, hash(2), listOf(0)), null).active["t5"])
    }

    @Test
    fun `what is active already stays as it is, and no patch is its own previous one`() {
        val floor = Floor(3, hash(3), listOf(0))
        val state = StoreState().activated("first", floor, null)
        assertTrue(state === state.activated("first", floor, hash(1)))
        assertEquals(emptyMap<String, String>(), state.activated("first", Floor(4, hash(4), listOf(0)), hash(4)).previous)
        assertEquals(mapOf("first" to hash(3)), state.activated("first", Floor(4, hash(4), listOf(0)), hash(3)).previous)
    }
}
