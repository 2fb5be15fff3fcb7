package patchdeploy.patchkit.store

import java.nio.file.Path
import java.util.logging.Level
import kotlin.random.Random
import org.junit.jupiter.api.AfterAll
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeAll
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.TestFactory
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.StorageException

/**
 * Every operation of the disk fails once, fails for good, or is where the process or the power ends:
 * what each task runs is the old patch or the new one, whole, no floor falls, and what comes next
 * finds a sound folder.
 */
class FaultsTest {
    /** A disk before [operation], and what an undisturbed run makes of it. */
    private class Situation(val name: String, val operation: Operation) {
        private val disk = SimulatedDisk().also { operation.setUp(storeOn(it, operation.shipped), it) }
        val steps = FaultyFiles(disk.copied()).also { operation.act(storeOn(it, operation.shipped)) }.steps
        val old = found(disk)
        val new = found(disk.copied().also { operation.act(storeOn(it, operation.shipped)) })

        fun fresh(): SimulatedDisk = disk.copied()
    }

    /** What happened to an operation that was interrupted. */
    private enum class Outcome { DONE, FAILED, ENDED }

    private fun act(situation: Situation, files: Files): Outcome = try {
        situation.operation.act(storeOn(files, situation.operation.shipped))
        Outcome.DONE
    } catch (_: StorageException) {
        Outcome.FAILED
    } catch (_: Killed) {
        Outcome.ENDED
    }

    /** Tries [situation] with every fault at each operation of the disk; how many states that made. */
    private fun tryAll(situation: Situation): Int {
        val random = Random(situation.name.hashCode())
        var states = 0
        for (fault in Fault.entries) for (at in situation.steps.indices.filter { situation.steps[it] in fault.at }) {
            val disk = situation.fresh()
            val outcome = act(situation, FaultyFiles(disk, fault, at))
            val case = "${situation.name}, $fault at $at"
            val allowed = when {
                outcome == Outcome.DONE -> listOf(situation.new)
                fault == Fault.FAILS_ONCE -> listOf(situation.old)
                else -> listOf(situation.old, situation.new)
            }
            states += powerLosses(situation, disk, outcome, random, case)
            demandSound(situation, disk, allowed, case)
            states++
        }
        val done = situation.fresh()
        assertEquals(Outcome.DONE, act(situation, done))
        return states + powerLosses(situation, done, Outcome.DONE, random, "${situation.name}, done")
    }

    /** What was done stays done; what was not may be either. */
    private fun powerLosses(situation: Situation, disk: SimulatedDisk, outcome: Outcome, random: Random, case: String): Int {
        val allowed = if (outcome == Outcome.DONE) listOf(situation.new) else listOf(situation.old, situation.new)
        repeat(POWER_LOSSES) { demandSound(situation, disk.afterPowerLoss(random), allowed, "$case, then the power") }
        return POWER_LOSSES
    }

    private fun demandSound(situation: Situation, disk: SimulatedDisk, allowed: List<Found>, case: String) {
        val found = found(disk)
        assertTrue(allowed.any { it.active == found.active }) { "$case: ${found.active} of ${allowed.map { it.active }}" }
        for ((task, floor) in situation.old.floors) {
            assertTrue((found.floors[task] ?: 0) >= floor) { "$case: a floor of $floor fell to ${found.floors[task]}" }
        }
        val store = storeOn(disk, situation.operation.shipped)
        if (store.isThere && !situation.operation.isDamagedBefore) {
            val used = store.list().filter { it.status != PatchStatus.INSTALLED }
            assertEquals(emptyList<String?>(), used.mapNotNull { it.problem }, case)
        }
        assertTrue(store.install(patch(9)).changed, case)
        if (!situation.operation.isDamagedBefore) {
            found.active["first"]?.let { assertEquals(it, store.revert("first").sha256, case) }
        }
        store.cleanUp()
        assertEquals(emptyList<String>(), store.cleanUp(), case)
        assertTrue(store.active().getValue("first") in setOf(hashOf(9), found.active["first"]), case)
    }

    @TestFactory
    fun `after any fault the old patch or the new one is active`(): List<DynamicTest> {
        val tests = OPERATIONS.map { (name, operation) ->
            dynamicTest(name) {
                val states = tryAll(Situation(name, operation))
                total += states
                assertTrue(states >= 50) { "$states states" }
            }
        }
        return tests + dynamicTest("these are more than 2,000 states") { assertTrue(total > 2000) { "$total" } }
    }

    @Test
    fun `a second fault in what comes after the first one changes nothing of that`() {
        val random = Random(1)
        val situations = OPERATIONS.map { (name, operation) -> Situation(name, operation) }
        repeat(600) { number ->
            val situation = situations[number % situations.size]
            val first = situation.fresh()
            val outcome = act(situation, FaultyFiles(first, Fault.KILLED, random.nextInt(situation.steps.size)))
            assertEquals(Outcome.ENDED, outcome)
            val second = first.afterPowerLoss(random)
            try {
                storeOn(FaultyFiles(second, Fault.entries.random(random), random.nextInt(30))).recover()
            } catch (_: StorageException) {
                // recovery is tried again below
            } catch (_: Killed) {
                // the same
            }
            val allowed = listOf(situation.old, situation.new)
            demandSound(situation, second.afterPowerLoss(random), allowed, "${situation.name}, twice")
            total++
        }
    }

    @Test
    fun `the real disk does as the simulated one`(@TempDir parent: Path) {
        val folder = parent.resolve("store")
        val store = { files: Files -> Store(folder, PatchForge.policy, HOOKS, files, clock = { 100 }) }
        store(UnsyncedFiles()).install(patch(1))
        for (sequence in 2..5) {
            var at = 0
            do {
                val files = FaultyFiles(UnsyncedFiles(), listOf(Fault.FAILS_ONCE, Fault.KILLED)[sequence % 2], at++)
                val isDone = runCatching { store(files).install(patch(sequence)) }.isSuccess
                val active = store(DiskFiles()).active()["first"]
                assertTrue(active in if (isDone) setOf(hashOf(sequence)) else setOf(hashOf(sequence - 1), hashOf(sequence)))
                total++
            } while (!isDone)
            assertTrue(at > 15) { "$at operations" }
        }
        assertTrue(store(DiskFiles()).cleanUp().isNotEmpty())
    }

    @Test
    fun `eight threads install at once and the highest number is active`(@TempDir parent: Path) {
        val store = { Store(parent.resolve("threads"), PatchForge.policy, PatchForge.hooks(), clock = { 100 }) }
        val threads = (1..8).map { k -> Thread { runCatching { store().install(PatchForge.patch(k)) } }.apply { start() } }
        threads.forEach(Thread::join)
        assertEquals(8L, store().read("first").checked.header.sequence)
    }

    companion object {
        private const val POWER_LOSSES = 2
        private var level: Level? = null
        private var total = 0

        /** What a reader finds: by task the active patch, and the highest number that was ever active. */
        private class Found(val active: Map<String, String>, val floors: Map<String, Long>)

        private fun found(disk: SimulatedDisk): Found {
            val folder = StoreFolder(FOLDER, disk)
            val found = findState(folder)
            val kept = if (found.isLost) keepFloors(found, folder) { HOOKS.check(it, PatchForge.policy) } else found
            val floors = kept.state.floors.mapValues { (_, all) -> all.maxOf { it.sequence } }
            return Found(found.state.active, floors)
        }

        @BeforeAll
        @JvmStatic
        fun quiet() {
            level = LOGGER.level
            LOGGER.level = Level.OFF // a damaged STATE is warned of, thousands of times here
        }

        @AfterAll
        @JvmStatic
        fun loud() {
            LOGGER.level = level
            println("store: $total states after a fault, each sound")
        }
    }
}
