package patchdeploy.patchkit.store

import java.nio.file.Path
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertNull
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.UnknownTaskException
import patchdeploy.patchkit.sha256Hex
import java.nio.file.Files as Disk

class StoreTest {
    @TempDir
    lateinit var parent: Path

    private val folder: Path get() = parent.resolve("store")
    private val one = PatchForge.patch(1)
    private val two = PatchForge.patch(2)
    private val three = PatchForge.patch(3)

    private fun store(
        shipped: ByteArray? = null,
        sequence: Long = 1,
        refused: String = "",
        now: Long = 100,
        revoked: Int? = null,
    ): Store {
        val ours = shipped?.let { mapOf("first" to Shipped(sequence, listOf(0)) { it }) }.orEmpty()
        val trusted = checkNotNull(PatchForge.policy.trusted)
        val keys = trusted.keys.mapIndexed { k, key -> if (k == revoked) null else key }
        val policy = PatchForge.policy.copy(trusted = trusted.copy(keys = keys))
        return Store(folder, policy, PatchForge.hooks(refused), shipped = ours, clock = { now })
    }

    private fun code(work: () -> Unit): RefusalCode = assertThrows<PatchRefusedException> { work() }.code

    @Test
    fun `what was installed is active and is read back`() {
        assertFalse(store().isThere)
        val found = store().install(one)
        assertEquals(listOf(true, "first", 1L), listOf(found.changed, found.task, found.sequence))
        assertEquals(mapOf("first" to sha256Hex(one)), store().active())
        assertEquals(sha256Hex(one), store().read("first").checked.sha256)
        assertFalse(store().install(one).changed)
    }

    @Test
    fun `an older number is refused, also once a newer one was reverted`() {
        store().install(one)
        store().install(three)
        assertEquals(RefusalCode.SEQUENCE, code { store().install(two) })
        assertEquals(sha256Hex(one), store().revert("first").sha256)
        assertEquals(RefusalCode.SEQUENCE, code { store().install(two) })
        assertEquals(sha256Hex(three), store().revert("first").sha256)
    }

    @Test
    fun `with a task's first patch a revert goes back to what ships`() {
        store(shipped = one).install(two)
        assertEquals(sha256Hex(one), store().revert("first").sha256)
    }

    @Test
    fun `what is older than what ships is refused`() {
        assertEquals(RefusalCode.SEQUENCE, code { store(shipped = three, sequence = 3).install(two) })
    }

    @Test
    fun `an expired file is not installed, and runs on where it was`() {
        val short = PatchForge.patch(4, expires = 100)
        assertEquals(RefusalCode.EXPIRED, code { store().install(short) })
        store(now = 99).install(short)
        assertEquals(sha256Hex(short), store(now = 10_000).read("first").checked.sha256)
    }

    @Test
    fun `a failed self-test leaves the state and the folder as they were`() {
        store().install(one)
        assertEquals(RefusalCode.SELF_TEST, code { store(refused = "first").install(two) })
        assertEquals(sha256Hex(one), store().active()["first"])
        assertEquals(1, store().list().size)
    }

    @Test
    fun `a revoked key takes its patch and its floor back, and no older list brings it back`() {
        store().install(PatchForge.patch(9, signer = 1))
        assertEquals(RefusalCode.KEY_UNKNOWN, code { store(revoked = 1).read("first") })
        store(revoked = 1).install(two)
        assertEquals(sha256Hex(two), store().active()["first"])
        assertEquals(RefusalCode.KEY_UNKNOWN, code { store().install(PatchForge.patch(10, signer = 1)) })
        assertNull(store().effectivePolicy().trusted?.keys?.get(1))
    }

    @Test
    fun `where STATE is damaged its copy counts, where both are nothing is active and floors stay`() {
        store().install(one)
        store().install(three)
        Disk.write(folder.resolve("STATE"), byteArrayOf(1))
        assertEquals(sha256Hex(three), store().active()["first"])
        Disk.write(folder.resolve("STATE.copy"), byteArrayOf(1))
        assertEquals(emptyMap<String, String>(), store().active())
        assertEquals(RefusalCode.SEQUENCE, code { store().install(two) })
        assertEquals(sha256Hex(three), store().activate(sha256Hex(three)).sha256)
    }

    @Test
    fun `clean-up removes what is not in use and no more`() {
        for (sequence in 1..4) store().install(PatchForge.patch(sequence))
        Disk.write(folder.resolve("0123456789abcdef.tmp"), byteArrayOf(1))
        Disk.createDirectory(folder.resolve("fedcba9876543210.tmp"))
        assertEquals(3, store().cleanUp().size)
        assertEquals(2, store().list().size)
        assertEquals(sha256Hex(three), store().revert("first").sha256)
    }

    @Test
    fun `a file that is gone or changed is a typed error and can be installed again`() {
        store().install(one)
        val file = folder.resolve(sha256Hex(one) + ".pdp")
        Disk.delete(file)
        assertThrows<IntegrityException> { store().read("first") }
        store().install(one)
        Disk.write(file, byteArrayOf(1))
        assertThrows<IntegrityException> { store().read("first") }
        store().install(one)
        assertEquals(sha256Hex(one), store().read("first").checked.sha256)
    }

    @Test
    fun `the list has what cannot be used, and why, among the others`() {
        store().install(one)
        store().install(two)
        Disk.write(folder.resolve(sha256Hex(one) + ".pdp"), byteArrayOf(1))
        Disk.write(folder.resolve("0".repeat(64) + ".pdp"), byteArrayOf(1))
        val found = store().list()
        assertEquals(listOf(null, 2L, null), found.map { it.sequence })
        assertEquals(listOf(PatchStatus.PREVIOUS, PatchStatus.ACTIVE, PatchStatus.INSTALLED), found.map { it.status })
        assertEquals(listOf(true, false, true), found.map { it.problem != null })
    }

    @Test
    fun `what is not there is said so`() {
        assertThrows<PatchException> { store().revert("first") }
        store().install(one)
        assertThrows<PatchException> { store().revert("first") }
        assertThrows<UnknownTaskException> { store().read("second") }
        assertThrows<PatchException> { store().activate(sha256Hex(two)) }
    }

    @Test
    fun `a link in the place of a file is not followed`() {
        store().install(one)
        val file = folder.resolve(sha256Hex(one) + ".pdp")
        Disk.move(file, parent.resolve("elsewhere"))
        Disk.createSymbolicLink(file, parent.resolve("elsewhere"))
        assertThrows<IntegrityException> { store().read("first") }
    }
}
