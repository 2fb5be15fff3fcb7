package patchdeploy.patchkit.store

import java.io.IOException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import java.nio.channels.OverlappingFileLockException
import java.nio.file.FileAlreadyExistsException
import java.nio.file.LinkOption.NOFOLLOW_LINKS
import java.nio.file.Path
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.nio.file.StandardOpenOption.CREATE
import java.nio.file.StandardOpenOption.CREATE_NEW
import java.nio.file.StandardOpenOption.READ
import java.nio.file.StandardOpenOption.WRITE
import java.nio.file.attribute.BasicFileAttributes
import java.nio.file.attribute.PosixFilePermissions
import java.security.SecureRandom
import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.TimeUnit
import java.util.concurrent.locks.ReentrantLock
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.StorageException
import patchdeploy.patchkit.toHex

internal const val TEMPORARY_SUFFIX = ".tmp"

/**
 * The few file operations that a patch store is built from. Each may throw [IOException].
 *
 * [DiskFiles] is the real disk; tests put one in its place that fails or ends at the k-th operation.
 */
public interface Files {
    /** Make [folder] unless it is there; its parent must exist. */
    public fun makeFolder(folder: Path)

    /**
     * Wait until no other process or thread holds [path], then hold it while [work] runs.
     *
     * @throws StorageException another one held it for too long.
     */
    public fun <T> locked(path: Path, work: () -> T): T

    /** The names in [folder], in any order. */
    public fun names(folder: Path): List<String>

    /**
     * The whole of a regular file of at most [limitBytes].
     *
     * @throws java.nio.file.NoSuchFileException there is none.
     * @throws IntegrityException a link, another kind of file, or a longer one.
     */
    public fun read(path: Path, limitBytes: Int): ByteArray

    /** Make a new file to write into; the name must be free. */
    public fun create(path: Path): NewFile

    /** Give [old] the name [new]; the file that had that name loses it, in one step. */
    public fun rename(old: Path, new: Path)

    /** Remove a name; false: it is a folder's and stays. */
    public fun unlink(path: Path): Boolean

    /** Return when the names in [folder] are on the disk. */
    public fun syncFolder(folder: Path)
}

/** A file that is being written. Each operation may throw [IOException]. */
public interface NewFile {
    /** Write some of what remains in [data], at least one byte. */
    public fun write(data: ByteBuffer)

    /** Return when what was written is on the disk. */
    public fun sync()

    public fun close()
}

/**
 * The real disk. The lock is a record lock (fcntl) of the whole file, which Python takes, too, after its
 * flock; reading needs no lock.
 *
 * @property lockSeconds how long a writer waits for another one.
 */
public class DiskFiles(private val lockSeconds: Long = 60) : Files {
    override fun makeFolder(folder: Path) {
        try {
            java.nio.file.Files.createDirectory(folder)
        } catch (error: FileAlreadyExistsException) {
            if (!java.nio.file.Files.isDirectory(folder)) throw error
        }
    }

    override fun <T> locked(path: Path, work: () -> T): T {
        val threads = THREADS.getOrPut(path.parent.toRealPath().resolve(path.fileName)) { ReentrantLock() }
        if (!threads.tryLock(lockSeconds, TimeUnit.SECONDS)) throw held(path)
        try {
            open(path).use { channel ->
                hold(channel, path)
                return work()
            }
        } finally {
            threads.unlock()
        }
    }

    private fun open(path: Path): FileChannel {
        val owner = PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------"))
        return FileChannel.open(path, setOf(READ, WRITE, CREATE, NOFOLLOW_LINKS), owner)
    }

    private fun hold(channel: FileChannel, path: Path) {
        val end = System.nanoTime() + TimeUnit.SECONDS.toNanos(lockSeconds)
        while (true) {
            val lock = try {
                channel.tryLock()
            } catch (error: OverlappingFileLockException) {
                null // of another copy of this class
            }
            if (lock != null) return
            if (System.nanoTime() >= end) throw held(path)
            Thread.sleep(LOOK_MS)
        }
    }

    private fun held(path: Path) = StorageException(
        "another process has held $path for $lockSeconds seconds; one at a time writes there; let it " +
            "end, and try again; nothing was written",
    )

    override fun names(folder: Path): List<String> =
        java.nio.file.Files.newDirectoryStream(folder).use { all -> all.map { it.fileName.toString() } }

    override fun read(path: Path, limitBytes: Int): ByteArray {
        val about = java.nio.file.Files.readAttributes(path, BasicFileAttributes::class.java, NOFOLLOW_LINKS)
        if (!about.isRegularFile) throw irregular(path, "no regular file")
        if (about.size() > limitBytes) throw irregular(path, "longer than $limitBytes bytes")
        FileChannel.open(path, setOf(READ, NOFOLLOW_LINKS)).use { channel ->
            val data = ByteBuffer.allocate(about.size().toInt() + 1)
            do { val more = channel.read(data) } while (more > 0)
            if (!data.hasRemaining()) throw irregular(path, "being written to")
            return data.array().copyOf(data.position())
        }
    }

    private fun irregular(path: Path, found: String) = IntegrityException(
        "$path is $found; a store holds regular files that patchdeploy wrote; remove it and install " +
            "the patch again",
    )

    override fun create(path: Path): NewFile = object : NewFile {
        private val channel = FileChannel.open(path, CREATE_NEW, WRITE)

        override fun write(data: ByteBuffer) {
            channel.write(data)
        }

        override fun sync() = channel.force(true)

        override fun close() = channel.close()
    }

    override fun rename(old: Path, new: Path) {
        java.nio.file.Files.move(old, new, ATOMIC_MOVE)
    }

    override fun unlink(path: Path): Boolean {
        if (java.nio.file.Files.isDirectory(path, NOFOLLOW_LINKS)) return false
        java.nio.file.Files.delete(path)
        return true
    }

    override fun syncFolder(folder: Path): Unit = FileChannel.open(folder, READ).use { it.force(true) }

    private companion object {
        const val LOOK_MS = 20L

        /**
         * A record lock belongs to the process: threads need another, and whoever closed the file after
         * waiting in vain would free it. So by the real path: Android has /data/data as a link.
         */
        val THREADS = ConcurrentHashMap<Path, ReentrantLock>()
    }
}

/**
 * Put [data] under [name]: a new file, synced, then renamed in one step. The new name is on the disk
 * only after the next [Files.syncFolder]. A sync that fails is not tried again.
 *
 * @throws IOException nothing changed under [name].
 */
internal fun publish(files: Files, folder: Path, name: String, data: ByteArray) {
    val random = ByteArray(8).also(SecureRandom()::nextBytes)
    val temporary = folder.resolve(random.toHex() + TEMPORARY_SUFFIX)
    try {
        writeNew(files, temporary, data)
        files.rename(temporary, folder.resolve(name))
    } catch (error: IOException) {
        try {
            files.unlink(temporary)
        } catch (_: IOException) {
            // it may never have been made; cleanUp removes what stays
        }
        throw error
    }
}

private fun writeNew(files: Files, path: Path, data: ByteArray) {
    val file = files.create(path)
    try {
        val rest = ByteBuffer.wrap(data)
        while (rest.hasRemaining()) file.write(rest)
        file.sync()
    } finally {
        file.close()
    }
}
