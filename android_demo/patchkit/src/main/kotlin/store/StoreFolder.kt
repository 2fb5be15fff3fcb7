package patchdeploy.patchkit.store

import java.io.IOException
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.util.logging.Logger
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.StorageException
import patchdeploy.patchkit.patchfile.MAX_FILE_BYTES
import patchdeploy.patchkit.sha256Hex

internal val LOGGER: Logger = Logger.getLogger("patchdeploy.store")
internal const val MISSING = "missing"
private const val LOCK = "lock"
private const val STATE = "STATE"
private const val COPY = "STATE.copy"
private const val PATCH_SUFFIX = ".pdp"

/** In the order in which they are written: a reader of STATE never sees what may be taken back. */
private val RECORDS = listOf(COPY, STATE)
private val PATCH_NAME = Regex("([0-9a-f]{64})\\.pdp")
private val TEMPORARY_NAME = Regex("[0-9a-f]{16}\\.tmp")

/** The name of the patch file with this hash. */
internal fun patchName(sha256: String): String = sha256 + PATCH_SUFFIX

/**
 * What a folder says of its state.
 *
 * @property state of STATE or, where that is lost or damaged, of its copy; null: both are.
 * @property problem what is wrong with STATE; null: nothing.
 */
internal data class Seen(val state: StoreState?, val problem: String?)

/**
 * The folder of a patch store: its names, what lies under them, and how STATE is replaced;
 * docs/patch-format.md, "The store", has the names.
 *
 * @property path its parent must exist.
 * @property files the disk.
 */
internal class StoreFolder(val path: Path, private val files: Files) {
    /** [work], whose [IOException] becomes a [StorageException] that says what could not be done. */
    fun <T> disk(action: String, work: () -> T): T = try {
        work()
    } catch (error: IOException) {
        throw StorageException(
            "cannot $action in store $path: ${reason(error)}; free space, correct the folder's rights " +
                "or choose another; the state before this stays",
            error,
        )
    }

    /** [work] with the lock held, in the folder, made if need be. */
    fun <T> locked(work: () -> T): T {
        files.makeFolder(path)
        return files.locked(path.resolve(LOCK), work)
    }

    /** Whether the folder is there and has a file in it that only a store makes. */
    fun isStore(): Boolean = names().any { it in RECORDS || PATCH_NAME.matches(it) || TEMPORARY_NAME.matches(it) }

    /** The state as STATE has it, or its copy. */
    fun look(): Seen {
        val problem = try {
            return Seen(readState(STATE), null)
        } catch (error: NotThere) {
            error.message
        }
        return Seen(stateOrNull(COPY), problem)
    }

    /** Whether the copy of STATE is there and holds [state]. */
    fun hasCopyOf(state: StoreState): Boolean = stateOrNull(COPY) == state

    /** A record that cannot be had; the message says why. */
    private class NotThere(message: String?) : Exception(message)

    private fun stateOrNull(name: String): StoreState? = try {
        readState(name)
    } catch (_: NotThere) {
        null
    }

    private fun readState(name: String): StoreState = try {
        StoreState.fromBytes(files.read(path.resolve(name), MAX_STATE_BYTES))
    } catch (_: NoSuchFileException) {
        throw NotThere(MISSING)
    } catch (error: IntegrityException) {
        throw NotThere(error.message)
    } catch (error: FileFormatException) {
        throw NotThere(error.message)
    }

    /** The hashes that files of the folder have as names; none where there is no folder. */
    fun patches(): Set<String> = names().mapNotNull { PATCH_NAME.matchEntire(it)?.groupValues?.get(1) }.toSet()

    /** The names that a writer gave to files it never finished. */
    fun temporaries(): List<String> = names().filter(TEMPORARY_NAME::matches)

    private fun names(): List<String> = try {
        files.names(path)
    } catch (_: NoSuchFileException) {
        emptyList()
    }

    /**
     * The bytes of one patch file, read once and compared with its name.
     *
     * @throws NoSuchFileException it is not there.
     * @throws IntegrityException it is not the one that its name says.
     */
    fun readPatch(sha256: String): ByteArray {
        val file = path.resolve(patchName(sha256))
        val data = files.read(file, MAX_FILE_BYTES)
        val found = sha256Hex(data)
        if (found != sha256) {
            throw IntegrityException(
                "patch file $file has SHA-256 $found; its name is the hash that it must have; install " +
                    "the patch again",
            )
        }
        return data
    }

    /** Whether the patch file with this name is there and is what its name says. */
    fun isWhole(sha256: String): Boolean = try {
        readPatch(sha256)
        true
    } catch (_: NoSuchFileException) {
        false
    } catch (_: IntegrityException) {
        false
    }

    /** A new patch file, on the disk; what had its name stays for those who have it open. */
    fun putPatch(sha256: String, data: ByteArray) {
        publish(files, path, patchName(sha256), data)
        sync()
    }

    /** Remove files and wait until they are gone from the disk; those that are. A folder stays. */
    fun remove(names: List<String>): List<String> {
        val gone = names.filter { name ->
            files.unlink(path.resolve(name)).also { if (!it) LOGGER.warning("$path/$name stays: it is a folder") }
        }
        sync()
        return gone
    }

    fun sync(): Unit = files.syncFolder(path)

    /** Return when the folder itself is on the disk. */
    fun syncParent(): Unit = files.syncFolder(path.toAbsolutePath().parent)

    /**
     * Replace STATE and its copy. The patch files that they name must be on the disk already.
     *
     * @param before what is put back where a part of this is visible and the rest fails.
     * @throws IOException [before] is in force.
     * @throws StorageException it could not be put back: the disk fails for good.
     */
    fun commit(state: StoreState, before: StoreState?) {
        val data = state.toBytes()
        val written = ArrayList<String>()
        try {
            for (name in RECORDS) {
                publish(files, path, name, data)
                written.add(name)
            }
            sync()
        } catch (error: IOException) {
            if (before != null && written.isNotEmpty()) putBack(before, written, error)
            throw error
        }
    }

    private fun putBack(before: StoreState, written: List<String>, cause: IOException) {
        try {
            for (name in written.reversed()) publish(files, path, name, before.toBytes())
        } catch (error: IOException) {
            if (STATE !in written) return // readers see what was before; the next writer sees to the copy
            throw StorageException(
                "cannot write STATE of store $path: ${reason(cause)}, and then ${reason(error)}; the disk " +
                    "must keep what it is given; replace it; the store is whole, in the state before this " +
                    "or after it",
                error,
            )
        }
    }

    private fun reason(error: IOException): String = error.message ?: error.javaClass.simpleName
}
