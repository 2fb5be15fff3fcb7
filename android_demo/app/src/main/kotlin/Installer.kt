package patchdeploy.demo

import java.io.IOException
import java.io.InputStream
import java.net.MalformedURLException
import java.util.concurrent.Executors
import patchdeploy.patchkit.bundle.readAtMost
import patchdeploy.patchkit.patchfile.MAX_FILE_BYTES

/** Patches into the store: from a file, a link or an address. A failure leaves all as it was. */
internal class Installer(private val platform: Platform, private val demo: Demo) {
    private val network = Executors.newSingleThreadExecutor { Thread(it, "download") }

    /** @param open of a file that the user chose; it is read once, away from the main thread. */
    fun install(open: () -> InputStream): Unit = demo.change { session ->
        val data = open().use { readAtMost(it, MAX_FILE_BYTES) }
        if (data.size > MAX_FILE_BYTES) throw TooLongException(MAX_FILE_BYTES)
        install(session, data)
    }

    /** Download, or go on with a download that was cut short; then install. */
    fun install(url: String) {
        demo.update { it.copy(transfer = Transfer(url, 0, null)) }
        network.execute {
            try {
                val data = Download(url, platform.downloads) { bytes, total ->
                    demo.update { it.copy(transfer = Transfer(url, bytes, total)) }
                }.fetch()
                demo.update { it.copy(transfer = null) }
                demo.change { session -> install(session, data) }
            } catch (error: IOException) {
                fail(url, error)
            }
        }
    }

    /** A download that cannot be resumed is no transfer any more, but a notice. */
    private fun fail(url: String, error: IOException) {
        val problem = problemOf(error)
        val isFinal = error is HttpException || error is TooLongException || error is MalformedURLException
        demo.update { ready ->
            val before = ready.transfer ?: Transfer(url, 0, null)
            if (isFinal) ready.copy(transfer = null, notice = Notice.Failed(problem)) else ready.copy(transfer = before.copy(failure = problem))
        }
    }

    fun dismiss(): Unit = demo.update { it.copy(transfer = null) }

    private fun install(session: Session, data: ByteArray) {
        val done = session.install(data)
        val words = when {
            !done.changed -> Words(R.string.installed_before, done.task, done.sequence)
            done.lostResolutions.isNotEmpty() ->
                Words(R.string.installed_without, done.task, done.sequence, done.lostResolutions.joinToString())
            else -> Words(R.string.installed, done.task, done.sequence)
        }
        demo.afterChange(session, words)
    }
}
