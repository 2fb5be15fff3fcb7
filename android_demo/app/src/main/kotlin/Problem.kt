package patchdeploy.demo

import android.content.Context
import java.io.FileNotFoundException
import java.io.IOException
import java.net.MalformedURLException
import java.text.DateFormat
import java.util.Date
import java.util.logging.Level
import java.util.logging.Logger
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.FileFormatException
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.PatchException
import patchdeploy.patchkit.PatchKeyException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.StorageException
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.UnknownTaskException

/** A text of the resources with what belongs into it. */
class Words(val text: Int, vararg val arguments: Any) {
    fun say(context: Context): String = context.getString(text, *arguments)
}

/**
 * What went wrong, in words for the user.
 *
 * @property cause for the log; its message has the value, the rule and the remedy.
 */
class Problem(val words: Words, val cause: Throwable? = null) {
    fun say(context: Context): String = words.say(context)

    override fun toString(): String = "Problem($cause)"
}

private val LOGGER: Logger = Logger.getLogger("patchdeploy.demo")

/** Anything that the engine, the disk or the network threw, in words. */
fun problemOf(error: Throwable): Problem {
    LOGGER.log(Level.WARNING, "said to the user in words", error)
    return Problem(wordsOf(error), error)
}

private fun wordsOf(error: Throwable): Words = when (error) {
    is PatchRefusedException -> refusalWords(error)
    is PatchkitException -> patchkitWords(error)
    is OutOfMemoryError -> Words(R.string.problem_memory)
    is TooLongException -> Words(R.string.problem_too_long, error.mostBytes)
    is HttpException -> Words(R.string.problem_http, error.status)
    is SecurityException -> Words(R.string.problem_permission)
    is MalformedURLException -> Words(R.string.problem_address)
    is FileNotFoundException -> Words(R.string.problem_gone)
    is IOException -> if (isFull(error)) Words(R.string.problem_space) else Words(R.string.problem_network)
    else -> Words(R.string.problem_other, error.message ?: error.javaClass.simpleName)
}

private fun patchkitWords(error: PatchkitException): Words = when (error) {
    is StorageException -> if (isFull(error)) Words(R.string.problem_space) else Words(R.string.problem_storage)
    is IntegrityException -> Words(R.string.problem_integrity)
    is FileFormatException -> Words(R.string.problem_format)
    is PatchKeyException -> Words(R.string.problem_keys)
    is RuntimeBackendException -> Words(R.string.problem_runtime)
    is PatchException -> Words(R.string.problem_nothing_before)
    is UnknownTaskException, is UnknownResolutionException -> Words(R.string.problem_unknown)
    is ConfigException, is PatchRefusedException -> Words(R.string.problem_other, error.message ?: "")
}

/** The check that failed; the file itself says nothing here, since nothing of it is trusted. */
private fun refusalWords(error: PatchRefusedException): Words = when (error.code) {
    RefusalCode.TOO_LARGE, RefusalCode.MAGIC -> Words(R.string.refused_no_patch)
    RefusalCode.TRUNCATED, RefusalCode.HEADER_LENGTH, RefusalCode.RESERVED, RefusalCode.SIGNATURE_COUNT,
    RefusalCode.LENGTH, RefusalCode.PAYLOAD_HASH,
    -> Words(R.string.refused_damaged)
    RefusalCode.UNSIGNED, RefusalCode.THRESHOLD -> Words(R.string.refused_unsigned)
    RefusalCode.KEY_UNKNOWN, RefusalCode.KEY_REPEATED -> Words(R.string.refused_key)
    RefusalCode.SIGNATURE -> Words(R.string.refused_signature)
    RefusalCode.HEADER_TEXT, RefusalCode.HEADER_FIELD, RefusalCode.ENGINE -> Words(R.string.refused_newer_format)
    RefusalCode.RUNTIME, RefusalCode.RESOLUTION, RefusalCode.TASK -> Words(R.string.refused_not_for_app)
    RefusalCode.BASE -> Words(R.string.refused_base)
    RefusalCode.SEQUENCE -> Words(R.string.refused_older)
    RefusalCode.EXPIRED -> Words(R.string.refused_expired, today())
    RefusalCode.SITES, RefusalCode.INFLATE, RefusalCode.PARTS, RefusalCode.WORK, RefusalCode.VALUES ->
        Words(R.string.refused_content)
    RefusalCode.RESULT -> Words(R.string.refused_result)
    RefusalCode.LOAD -> Words(R.string.refused_load)
    RefusalCode.SELF_TEST -> Words(R.string.refused_self_test)
    RefusalCode.COMMIT -> if (isFull(error)) Words(R.string.problem_space) else Words(R.string.problem_storage)
}

/** By this phone's clock, so that a wrong clock shows. */
private fun today(): String = DateFormat.getDateInstance(DateFormat.LONG).format(Date())

private fun isFull(error: Throwable): Boolean =
    generateSequence(error) { it.cause }.take(MOST_CAUSES).any { FULL in (it.message ?: "") }

/** ENOSPC in the words of libc, on Android as on Linux. */
private const val FULL = "No space left"
private const val MOST_CAUSES = 8
