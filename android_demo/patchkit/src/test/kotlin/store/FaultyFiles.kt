package patchdeploy.patchkit.store

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.file.Path

/** The process was killed: nothing of it runs on. */
internal class Killed : Error()

/** What the operations of a disk are, as far as faults tell them apart. */
internal enum class Step { CREATE, WRITE, SYNC, OTHER }

private val ALL = Step.entries.toSet()

/**
 * What happens at one operation.
 *
 * @property at the kinds of operations that it can happen at.
 * @property isKill the process ends there.
 * @property lasts later operations of these kinds fail, too.
 * @property written the share of a write's bytes that is written first.
 */
internal enum class Fault(val at: Set<Step>, val isKill: Boolean, val lasts: Boolean, val written: Double) {
    FAILS_ONCE(ALL, isKill = false, lasts = false, written = 0.5),
    FAILS_FOR_GOOD(ALL, isKill = false, lasts = true, written = 0.5),
    DISK_FULL(setOf(Step.CREATE, Step.WRITE), isKill = false, lasts = true, written = 0.9),
    NO_SYNC(setOf(Step.SYNC), isKill = false, lasts = true, written = 0.0),
    KILLED(ALL, isKill = true, lasts = true, written = 0.0),
    KILLED_AFTER_A_BYTE(setOf(Step.WRITE), isKill = true, lasts = true, written = 0.001),
    KILLED_AFTER_HALF(setOf(Step.WRITE), isKill = true, lasts = true, written = 0.5),
    KILLED_BEFORE_THE_LAST_BYTE(setOf(Step.WRITE), isKill = true, lasts = true, written = 0.999),
}

/**
 * [disk] with [fault] at operation [at], counted from 0; no fault: the operations are listed.
 *
 * A write that fails has written a part; a sync that fails has forgotten what it was to write.
 */
internal class FaultyFiles(private val disk: Files, private val fault: Fault? = null, private val at: Int = -1) : Files {
    private var isDead = false

    /** The operations so far. */
    val steps = ArrayList<Step>()

    /** Whether operation [kind] fails now; the process may end instead. */
    private fun fails(kind: Step, beforeIt: (share: Double) -> Unit = {}): Boolean {
        if (isDead) throw Killed()
        steps.add(kind)
        val number = steps.size - 1
        val isHit = fault != null && kind in fault.at && (number == at || fault.lasts && number > at)
        if (fault == null || !isHit) return false
        beforeIt(fault.written)
        if (!fault.isKill) return true
        isDead = true
        throw Killed()
    }

    private fun <T> step(kind: Step, work: () -> T): T =
        if (fails(kind)) throw IOException("no space left on device") else work()

    override fun makeFolder(folder: Path) = step(Step.OTHER) { disk.makeFolder(folder) }

    override fun <T> locked(path: Path, work: () -> T): T = step(Step.OTHER) { disk.locked(path, work) }

    override fun names(folder: Path) = step(Step.OTHER) { disk.names(folder) }

    override fun read(path: Path, limitBytes: Int) = step(Step.OTHER) { disk.read(path, limitBytes) }

    override fun rename(old: Path, new: Path) = step(Step.OTHER) { disk.rename(old, new) }

    override fun unlink(path: Path) = step(Step.OTHER) { disk.unlink(path) }

    override fun syncFolder(folder: Path) = step(Step.SYNC) { disk.syncFolder(folder) }

    override fun create(path: Path): NewFile {
        val file = step(Step.CREATE) { disk.create(path) }
        return object : NewFile {
            override fun write(data: ByteBuffer) {
                val isFailure = fails(Step.WRITE) { share ->
                    val part = ByteArray(Math.ceil(data.remaining() * share).toInt()).also(data::get)
                    if (part.isNotEmpty()) file.write(ByteBuffer.wrap(part))
                }
                if (isFailure) throw IOException("no space left on device")
                file.write(data)
            }

            override fun sync() {
                if (fails(Step.SYNC) { if (disk is SimulatedDisk) disk.forget(path) }) throw IOException("input/output error")
                file.sync()
            }

            override fun close() = if (isDead) file.close() else step(Step.OTHER) { file.close() }
        }
    }
}

/** The real disk without waiting for it: a process that ends loses nothing, and syncs take the longest. */
internal class UnsyncedFiles(private val disk: DiskFiles = DiskFiles()) : Files by disk {
    override fun syncFolder(folder: Path) = Unit

    override fun create(path: Path): NewFile {
        val file = disk.create(path)
        return object : NewFile by file {
            override fun sync() = Unit
        }
    }
}
