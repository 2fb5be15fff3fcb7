package patchdeploy.packager

import java.io.File
import java.nio.file.Path

/** A command line that no rule allows. */
public class UsageException(message: String) : RuntimeException(message)

/**
 * `--name value` pairs of a command; each name must be one of [known].
 *
 * @throws UsageException another name, a name twice, or a name without its value.
 */
public class Options(arguments: List<String>, private val known: Set<String>) {
    private val values = HashMap<String, String>()

    init {
        for (pair in arguments.chunked(2)) {
            val name = pair.first().removePrefix("--")
            if (name !in known) throw UsageException("option ${pair.first()}; there are ${known.joinToString { "--$it" }}")
            if (pair.size < 2) throw UsageException("option --$name has no value; give it one")
            if (values.put(name, pair.last()) != null) throw UsageException("option --$name twice; give it once")
        }
    }

    /** @throws UsageException it is not there. */
    public fun text(name: String): String {
        require(name in known) { "option $name is not declared" }
        return values[name] ?: throw UsageException("option --$name is missing; give it")
    }

    /** @throws UsageException it is not there. */
    public fun path(name: String): Path = Path.of(text(name))

    /**
     * Paths as in a class path.
     *
     * @throws UsageException it is not there.
     */
    public fun paths(name: String): List<Path> = text(name).split(File.pathSeparator).filter(String::isNotBlank).map(Path::of)

    /** @throws UsageException it is not there, or no number. */
    public fun number(name: String): Int =
        text(name).toIntOrNull() ?: throw UsageException("option --$name is '${text(name)}'; it must be a whole number")
}
