package patchdeploy.patchkit.store

import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.file.FileAlreadyExistsException
import java.nio.file.NoSuchFileException
import java.nio.file.Path
import java.util.IdentityHashMap
import java.util.TreeSet
import kotlin.random.Random

internal val FOLDER: Path = Path.of("/disk/store")

/** Of what a loss of power can tear: some of them may be on the disk and others not. */
private const val SECTOR_BYTES = 64

/** A write takes no more, so that a file takes several and each can fail. */
private const val LARGEST_WRITE_BYTES = 300

/**
 * A disk that forgets what it was not told to keep: what programs see, and what survives the power.
 * The rules are those of tests/store/simulated_disk.py: bytes survive after their file's sync, names
 * after their folder's; before that any sector and any change of a name may have happened or not.
 */
internal class SimulatedDisk : Files {
    private class Inode(var seen: ByteArray, var durable: ByteArray, val dirty: TreeSet<Int> = TreeSet())

    /** A name gets a file, and another name goes away with that. */
    private class NameStep(val name: String?, val inode: Inode?, val gone: String?)

    private var seen = LinkedHashMap<String, Inode>()
    private var durable = LinkedHashMap<String, Inode>()
    private val pending = ArrayList<NameStep>()
    private var isFolderSeen = false
    private var isFolderDurable = false

    /** The same disk, apart, on which all that is seen is durable. */
    fun copied(): SimulatedDisk = rebuilt(seen, isFolderSeen) { it.seen }

    /** What is there when the power comes back; one of the many ways it can be. */
    fun afterPowerLoss(random: Random): SimulatedDisk {
        if (!isFolderDurable && !(isFolderSeen && random.nextBoolean())) return SimulatedDisk()
        val names = LinkedHashMap(durable)
        val share = share(random)
        for (step in pending) if (random.nextDouble() < share) apply(step, names)
        return rebuilt(names, isFolder = true) { surviving(it, random) }
    }

    private fun rebuilt(names: Map<String, Inode>, isFolder: Boolean, content: (Inode) -> ByteArray): SimulatedDisk {
        val other = SimulatedDisk()
        val inodes = IdentityHashMap<Inode, Inode>()
        for ((name, inode) in names) {
            other.seen[name] = inodes.getOrPut(inode) { content(inode).let { Inode(it.copyOf(), it.copyOf()) } }
        }
        other.durable = LinkedHashMap(other.seen)
        other.isFolderSeen = isFolder
        other.isFolderDurable = isFolder
        return other
    }

    /** None, some or all. */
    private fun share(random: Random): Double = listOf(0.0, random.nextDouble(), 1.0).random(random)

    private fun surviving(inode: Inode, random: Random): ByteArray {
        if (inode.dirty.isEmpty()) return inode.durable
        val share = share(random)
        val kept = inode.dirty.filter { random.nextDouble() < share }
        val lengths = listOf(inode.durable.size, inode.seen.size, random.nextInt(inode.seen.size + 1))
        return withSectors(inode, kept, maxOf(inode.durable.size, lengths.random(random)))
    }

    /** The durable bytes with [sectors] written, cut or filled with zeros to [length]. */
    private fun withSectors(inode: Inode, sectors: Collection<Int>, length: Int): ByteArray {
        val data = inode.durable.copyOf(length)
        for (sector in sectors) {
            val start = sector * SECTOR_BYTES
            val end = minOf(start + SECTOR_BYTES, length)
            if (start < end) inode.seen.copyInto(data, start, start, end)
        }
        return data
    }

    private fun apply(step: NameStep, names: MutableMap<String, Inode>) {
        step.gone?.let(names::remove)
        if (step.name != null && step.inode != null) names[step.name] = step.inode
    }

    private fun step(step: NameStep) {
        apply(step, seen)
        pending.add(step)
    }

    /** What a sync that fails leaves: the kernel forgets what it could not write, and the next one succeeds. */
    fun forget(path: Path) {
        seen[path.fileName.toString()]?.dirty?.clear()
    }

    /** [data] under [name] behind the store's back, for good. */
    fun put(name: String, data: ByteArray) {
        val inode = Inode(data.copyOf(), data.copyOf())
        seen[name] = inode
        durable[name] = inode
    }

    fun lose(name: String) {
        seen.remove(name)
        durable.remove(name)
    }

    fun bytes(name: String): ByteArray = seen.getValue(name).seen

    override fun makeFolder(folder: Path) {
        isFolderSeen = true
    }

    override fun <T> locked(path: Path, work: () -> T): T = work()

    override fun names(folder: Path): List<String> {
        if (!isFolderSeen) throw NoSuchFileException("$folder")
        return seen.keys.toList()
    }

    override fun read(path: Path, limitBytes: Int): ByteArray {
        val inode = seen[path.fileName.toString()] ?: throw NoSuchFileException("$path")
        check(inode.seen.size <= limitBytes)
        return inode.seen.copyOf()
    }

    override fun create(path: Path): NewFile {
        val name = path.fileName.toString()
        if (name in seen) throw FileAlreadyExistsException(name)
        val inode = Inode(ByteArray(0), ByteArray(0))
        step(NameStep(name, inode, null))
        return object : NewFile {
            override fun write(data: ByteBuffer) {
                val part = ByteArray(minOf(data.remaining(), LARGEST_WRITE_BYTES)).also(data::get)
                val first = inode.seen.size / SECTOR_BYTES
                inode.seen += part
                inode.dirty.addAll(first..(inode.seen.size - 1) / SECTOR_BYTES)
            }

            override fun sync() {
                inode.durable = withSectors(inode, inode.dirty, inode.seen.size)
                inode.dirty.clear()
            }

            override fun close() = Unit
        }
    }

    override fun rename(old: Path, new: Path) {
        val inode = seen[old.fileName.toString()] ?: throw FileNotFoundException("$old")
        step(NameStep(new.fileName.toString(), inode, old.fileName.toString()))
    }

    override fun unlink(path: Path): Boolean {
        if (path.fileName.toString() !in seen) throw NoSuchFileException("$path")
        step(NameStep(null, null, path.fileName.toString()))
        return true
    }

    override fun syncFolder(folder: Path) {
        if (folder == FOLDER.parent) {
            isFolderDurable = isFolderSeen
        } else {
            durable = LinkedHashMap(seen)
            pending.clear()
        }
    }
}
