package patchdeploy.demo

import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.URL
import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardOpenOption.APPEND
import java.nio.file.StandardOpenOption.CREATE
import java.nio.file.StandardOpenOption.TRUNCATE_EXISTING
import java.nio.file.StandardOpenOption.WRITE
import java.security.MessageDigest
import patchdeploy.patchkit.patchfile.MAX_FILE_BYTES

private const val CONNECT_MS = 10_000
private const val READ_MS = 20_000
private const val CHUNK_BYTES = 16_384
private val STRONG_ETAG = Regex("\"[\\x21\\x23-\\x7e]{1,200}\"")
private val CONTENT_RANGE = Regex("bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")

/** The server's answer is no file. */
class HttpException(val status: Int) : IOException("HTTP status $status")

/** More bytes than any patch has. */
class TooLongException(val mostBytes: Int) : IOException("more than $mostBytes bytes")

/**
 * A patch file from a server that may be broken or hostile; what comes is trusted by nobody yet.
 *
 * What arrived of a download that was cut short lies in [folder], and the next one of the same
 * address asks for the rest alone, where the server says by a strong ETag that the file is the same.
 * Two files of an address, as Python's downloads have in one: the ETag, and the bytes so far.
 *
 * @param folder is made.
 * @param progress bytes so far, and of how many (null: the server does not say).
 */
class Download(private val url: String, folder: Path, private val progress: (Long, Long?) -> Unit) {
    private val name = MessageDigest.getInstance("SHA-256").digest(url.toByteArray())
        .joinToString("") { "%02x".format(it) }.take(NAME_DIGITS)
    private val part = Files.createDirectories(folder).resolve("$name.part")
    private val tag = folder.resolve("$name.etag")

    /**
     * The whole file; nothing of it stays in the folder.
     *
     * @throws IOException no connection, a connection that broke, or no space: what arrived stays.
     * @throws HttpException, TooLongException the server's answer is of no use: nothing stays.
     */
    fun fetch(): ByteArray {
        val connection = URL(url).openConnection() as? HttpURLConnection ?: throw HttpException(0)
        try {
            val etag = if (Files.exists(tag) && Files.exists(part)) String(Files.readAllBytes(tag)) else null
            ask(connection, etag)
            receive(connection, etag)
        } catch (error: HttpException) {
            forget()
            throw error
        } catch (error: TooLongException) {
            forget()
            throw error
        } finally {
            connection.disconnect()
        }
        return Files.readAllBytes(part).also { forget() }
    }

    /** Nothing inflates: the bytes are those that were signed. */
    private fun ask(connection: HttpURLConnection, etag: String?) {
        connection.connectTimeout = CONNECT_MS
        connection.readTimeout = READ_MS
        connection.instanceFollowRedirects = false
        connection.setRequestProperty("Accept-Encoding", "identity")
        if (etag != null) {
            connection.setRequestProperty("Range", "bytes=${Files.size(part)}-")
            connection.setRequestProperty("If-Range", etag)
        }
    }

    private fun receive(connection: HttpURLConnection, etag: String?) {
        val status = connection.responseCode
        val here = if (status == HttpURLConnection.HTTP_PARTIAL && etag != null) Files.size(part) else 0L
        val total = when (status) {
            HttpURLConnection.HTTP_OK -> connection.contentLengthLong.takeIf { it >= 0 }
            HttpURLConnection.HTTP_PARTIAL -> totalOf(connection, here)
            else -> throw HttpException(status)
        }
        if ((total ?: 0) > MAX_FILE_BYTES) throw TooLongException(MAX_FILE_BYTES)
        if (here == 0L) keepTag(connection.getHeaderField("ETag"))
        connection.inputStream.use { copy(it, here, total) }
        if (total != null && Files.size(part) != total) throw IOException("the connection ended early")
    }

    /** @throws HttpException a part that was not asked for. */
    private fun totalOf(connection: HttpURLConnection, here: Long): Long {
        val found = CONTENT_RANGE.matchEntire(connection.getHeaderField("Content-Range") ?: "")?.groupValues
        if (found == null || found[1].toLong() != here) throw HttpException(HttpURLConnection.HTTP_PARTIAL)
        return found[2].toLong()
    }

    private fun keepTag(etag: String?) {
        Files.deleteIfExists(tag)
        Files.deleteIfExists(part)
        if (etag != null && STRONG_ETAG.matches(etag)) Files.write(tag, etag.toByteArray())
    }

    private fun copy(source: InputStream, here: Long, total: Long?) {
        val options = if (here == 0L) arrayOf(CREATE, WRITE, TRUNCATE_EXISTING) else arrayOf(WRITE, APPEND)
        Files.newOutputStream(part, *options).use { target ->
            val chunk = ByteArray(CHUNK_BYTES)
            var bytes = here
            while (true) {
                val count = source.read(chunk)
                if (count < 0) break
                bytes += count
                if (bytes > MAX_FILE_BYTES) throw TooLongException(MAX_FILE_BYTES)
                target.write(chunk, 0, count)
                progress(bytes, total)
            }
        }
    }

    private fun forget() {
        Files.deleteIfExists(part)
        Files.deleteIfExists(tag)
    }

    private companion object {
        const val NAME_DIGITS = 32
    }
}
