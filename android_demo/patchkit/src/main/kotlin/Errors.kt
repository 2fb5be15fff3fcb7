package patchdeploy.patchkit

/**
 * The exceptions of patchkit, one tree; messages give value, rule and remedy.
 *
 *     PatchkitException
 *     +-- ConfigException             an argument that no rule allows
 *     +-- UnknownResolutionException  a side in pixels that is not there
 *     +-- UnknownTaskException        a task that is not there
 *     +-- PatchException              a patch that is not there, or nothing to go back to
 *     +-- RuntimeBackendException     a runtime that refuses a model or fails
 *     +-- StorageException            a disk or a lock that failed; the state before it stays
 *     +-- FileFormatException         bytes that are not what they should be
 *     |   +-- CanonicalTextException  JSON that is not in canonical form
 *     |   +-- SlotTableException      a slot table, or values that do not fit it
 *     +-- PatchKeyException           a public key, or a list of trusted keys
 *     +-- IntegrityException          a file whose SHA-256 is another
 *     +-- PatchRefusedException       a patch file that failed a check of docs/patch-format.md
 */
public sealed class PatchkitException(message: String, cause: Throwable? = null) :
    RuntimeException(message, cause)

public class ConfigException(message: String) : PatchkitException(message)

public class UnknownResolutionException(message: String) : PatchkitException(message)

public class UnknownTaskException internal constructor(message: String) : PatchkitException(message)

public class PatchException internal constructor(message: String, cause: Throwable? = null) :
    PatchkitException(message, cause)

public class RuntimeBackendException(message: String, cause: Throwable? = null) :
    PatchkitException(message, cause)

public class StorageException(message: String, cause: Throwable? = null) : PatchkitException(message, cause)

public open class FileFormatException internal constructor(message: String, cause: Throwable? = null) :
    PatchkitException(message, cause)

/**
 * @property expected the rule.
 * @property got what was found, and where.
 */
public class CanonicalTextException internal constructor(
    public val expected: String,
    public val got: String,
) : FileFormatException("text is not canonical: it has $got; it must be $expected")

public class SlotTableException internal constructor(message: String, cause: Throwable? = null) :
    FileFormatException(message, cause)

public class PatchKeyException internal constructor(message: String, cause: Throwable? = null) :
    PatchkitException(message, cause)

public class IntegrityException internal constructor(message: String, cause: Throwable? = null) :
    PatchkitException(message, cause)

/**
 * A patch file that failed one of the checks of docs/patch-format.md.
 *
 * @property code of the check, the same in every language.
 * @property field what was checked.
 * @property expected the rule.
 * @property got the value that was found; untrusted, so cut short.
 * @property remedy what to do about it.
 */
public class PatchRefusedException(
    public val code: RefusalCode,
    public val field: String,
    public val expected: String,
    got: String,
    public val remedy: String,
    cause: Throwable? = null,
) : PatchkitException(
    "patch refused (${code.text}): $field is ${shown(got)}; it must be $expected; $remedy",
    cause,
) {
    public val got: String = shown(got)
}

/** The codes of docs/patch-format.md, in the order of its checks. */
public enum class RefusalCode {
    TOO_LARGE, TRUNCATED, MAGIC, HEADER_LENGTH, RESERVED, SIGNATURE_COUNT,
    UNSIGNED, KEY_UNKNOWN, KEY_REPEATED, SIGNATURE, THRESHOLD,
    HEADER_TEXT, HEADER_FIELD,
    LENGTH, PAYLOAD_HASH,
    RUNTIME, ENGINE, BASE, TASK, RESOLUTION,
    SEQUENCE, EXPIRED,
    SITES, INFLATE, PARTS, WORK, VALUES,
    RESULT, LOAD, SELF_TEST,
    COMMIT;

    /** As the page and Python write it. */
    public val text: String = name.lowercase()
}

private const val MOST_SHOWN = 200

private fun shown(got: String): String =
    if (got.length <= MOST_SHOWN) got else got.take(MOST_SHOWN - 3) + "..."
