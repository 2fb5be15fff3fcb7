package patchdeploy.patchkit.store

import java.nio.file.Path
import java.util.logging.Level
import org.junit.jupiter.api.AfterAll
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.BeforeAll
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.StorageException
import patchdeploy.patchkit.sha256Hex

/** Every operation of the disk fails once, fails for good, or is where the process ends. */
class FaultsTest {
    @TempDir
    lateinit var parent: Path
    private val patches = (1..4).map { PatchForge.patch(it) }
    private val hashes = patches.map(::sha256Hex)
    private var folders = 0

    private fun store(folder: Path, files: Files = FailingFiles(Fault.ONCE, 0)): Store =
        Store(folder, PatchForge.policy, PatchForge.hooks(), files, clock = { 100 })

    /** A store whose task went from 1 to 2, with 4 installed beside them. */
    private fun prepared(): Path = parent.resolve("store${folders++}").also { folder ->
        java.nio.file.Files.createDirectory(folder)
        for (name in DiskFiles().names(template)) java.nio.file.Files.copy(template.resolve(name), folder.resolve(name))
    }

    private val template: Path by lazy {
        parent.resolve("template").also { folder ->
            store(folder).install(patches[0])
            store(folder).install(patches[1])
            store(folder).install(patches[3], activate = false)
        }
    }

    /** Tries [work] with a fault at each operation; [old] and [new] are what may be active. */
    private fun tryAll(old: String?, new: String?, make: () -> Path = ::prepared, work: (Store) -> Unit): Int {
        var states = 0
        for (fault in Fault.entries) {
            var at = 1
            while (tryOne(fault, at, old, new, make, work)) {
                at++
                states++
            }
        }
        total += states
        return states
    }

    /** Whether there was an operation [at]. */
    private fun tryOne(fault: Fault, at: Int, old: String?, new: String?, make: () -> Path, work: (Store) -> Unit): Boolean {
        val folder = make()
        val files = FailingFiles(fault, at)
        val failure = try {
            work(store(folder, files))
            null
        } catch (error: StorageException) {
            error
        } catch (error: Killed) {
            error
        }
        val active = store(folder).active()["first"]
        val allowed = if (failure == null) listOf(new) else listOf(old, new)
        assertTrue(active in allowed) { "$fault at $at: $active of $allowed" }
        val whole = store(folder).run { if (isThere) list().filter { it.status != PatchStatus.INSTALLED } else emptyList() }
        assertEquals(emptyList<String?>(), whole.mapNotNull { it.problem }, "$fault at $at")
        store(folder).install(PatchForge.patch(9)) // what comes next finds a sound folder
        store(folder).cleanUp()
        assertEquals(emptyList<String>(), store(folder).cleanUp(), "$fault at $at")
        return files.count >= at
    }

    @Test
    fun `a first install is none or whole`() {
        val states = tryAll(null, hashes[0], { parent.resolve("store${folders++}") }) { it.install(patches[0]) }
        assertTrue(states >= 60) { "$states states" }
    }

    @Test
    fun `install leaves the old patch or the new one`() {
        val states = tryAll(hashes[1], hashes[2]) { it.install(patches[2]) }
        assertTrue(states >= 80) { "$states states" }
    }

    @Test
    fun `activate leaves the old patch or the new one`() {
        val states = tryAll(hashes[1], hashes[3]) { it.activate(hashes[3]) }
        assertTrue(states >= 60) { "$states states" }
    }

    @Test
    fun `revert leaves the old patch or the new one`() {
        val states = tryAll(hashes[1], hashes[0]) { it.revert("first") }
        assertTrue(states >= 60) { "$states states" }
    }

    @Test
    fun `clean-up and recovery change nothing that is active`() {
        val states = tryAll(hashes[1], hashes[1]) { it.cleanUp() } + tryAll(hashes[1], hashes[1], ::damaged) { it.recover() }
        assertTrue(states >= 60) { "$states states" }
    }

    private fun damaged(): Path = prepared().also { java.nio.file.Files.write(it.resolve("STATE"), byteArrayOf(1)) }

    @Test
    fun `eight threads install at once and the highest number is active`() {
        val folder = parent.resolve("threads")
        val threads = (1..8).map { k ->
            Thread { runCatching { store(folder).install(PatchForge.patch(k)) } }.apply { start() }
        }
        threads.forEach(Thread::join)
        assertEquals(8L, store(folder).read("first").checked.header.sequence)
    }

    companion object {
        private var level: Level? = null
        private var total = 0

        @BeforeAll
        @JvmStatic
        fun quiet() {
            level = LOGGER.level
            LOGGER.level = Level.OFF // a damaged STATE is warned of, a hundred times here
        }

        @AfterAll
        @JvmStatic
        fun loud() {
            LOGGER.level = level
            println("store: $total states after a fault, each sound")
        }
    }
}
