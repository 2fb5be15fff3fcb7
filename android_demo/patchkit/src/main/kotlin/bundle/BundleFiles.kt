package patchdeploy.patchkit.bundle

import java.io.ByteArrayOutputStream
import java.io.IOException
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.Path

/**
 * Where the files of a bundle come from: a folder, or the assets of an app.
 *
 * Paths are those of the manifest: relative, with forward slashes.
 */
public interface BundleFiles {
    /** For messages: a folder, or where in an app the bundle lies. */
    public val place: String

    /**
     * The bytes of a file; of a longer one, no more than [most] + 1.
     *
     * @throws IOException it is not there, or cannot be read.
     */
    public fun read(path: String, most: Int): ByteArray

    /**
     * A read-only mapping of a file that nothing can write to while the app runs; null where there
     * is none, and [read] is used.
     *
     * @throws IOException it is not there, or cannot be read.
     */
    public fun map(path: String): ByteBuffer? = null
}

/** A bundle in a folder. It is read, never mapped: a file that is written over changes its mapping. */
public class FolderFiles(private val folder: Path) : BundleFiles {
    override val place: String get() = folder.toString()

    override fun read(path: String, most: Int): ByteArray {
        val file = path.split('/').fold(folder) { place, part -> place.resolve(part) }
        if (!Files.isRegularFile(file, LinkOption.NOFOLLOW_LINKS)) throw IOException("no such file")
        return Files.newInputStream(file).use { readAtMost(it, most) }
    }
}

/**
 * The rest of [source], no more than [most] + 1 bytes.
 *
 * @throws IOException it cannot be read.
 */
public fun readAtMost(source: InputStream, most: Int): ByteArray {
    val found = ByteArrayOutputStream()
    val chunk = ByteArray(1 shl 16)
    while (found.size() <= most) {
        val count = source.read(chunk, 0, minOf(chunk.size.toLong(), most.toLong() + 1 - found.size()).toInt())
        if (count < 0) break
        found.write(chunk, 0, count)
    }
    return found.toByteArray()
}
