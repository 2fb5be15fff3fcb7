package patchdeploy.patchkit.store

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.file.Path

/** The process was killed: nothing of it runs on. */
internal class Killed : Error()

/** What happens at the k-th operation. */
internal enum class Fault {
    /** It fails; later ones do not. */
    ONCE,

    /** It and all later ones fail. */
    FOR_GOOD,

    /** The process ends before it. */
    KILLED,

    /** The process ends after a write that came half; any other operation is not done. */
    TORN,
}

/**
 * The real disk, with a fault at operation [at], counted from 1; 0: none. Syncs are counted and not
 * done: a process that ends loses nothing by it, and they take the longest.
 */
internal class FailingFiles(private val fault: Fault, private val at: Int) : Files {
    private val disk = DiskFiles()
    private var dead = false

    /** Operations so far. */
    var count: Int = 0
        private set

    private fun <T> step(work: () -> T): T {
        if (dead) throw Killed()
        count++
        if (count == at && fault in setOf(Fault.KILLED, Fault.TORN)) {
            dead = true
            throw Killed()
        }
        if (count == at || (count > at && fault == Fault.FOR_GOOD)) throw IOException("no space left on device")
        return work()
    }

    override fun makeFolder(folder: Path) = step { disk.makeFolder(folder) }

    override fun <T> locked(path: Path, work: () -> T): T = step { disk.locked(path, work) }

    override fun names(folder: Path) = step { disk.names(folder) }

    override fun read(path: Path, limitBytes: Int) = step { disk.read(path, limitBytes) }

    override fun rename(old: Path, new: Path) = step { disk.rename(old, new) }

    override fun unlink(path: Path) = step { disk.unlink(path) }

    override fun syncFolder(folder: Path) = step { }

    override fun create(path: Path): NewFile {
        val file = step { disk.create(path) }
        return object : NewFile {
            override fun write(data: ByteBuffer) {
                if (fault == Fault.TORN && count + 1 == at) {
                    val half = ByteArray(data.remaining() / 2).also(data::get)
                    file.write(ByteBuffer.wrap(half))
                }
                step { file.write(data) }
            }

            override fun sync() = step { }

            override fun close() = if (dead) file.close() else step { file.close() }
        }
    }
}
