package patchdeploy.cli

/** Maps, lists, text, numbers, Booleans and null as one line of JSON in ASCII. */
internal fun toJson(value: Any?): String = StringBuilder().also { write(value, it) }.toString()

private fun write(value: Any?, text: StringBuilder) {
    when (value) {
        is Map<*, *> -> join(value.entries, '{', '}', text) { (key, one) ->
            writeText(key.toString(), text)
            text.append(':')
            write(one, text)
        }
        is Collection<*> -> join(value, '[', ']', text) { write(it, text) }
        is String -> writeText(value, text)
        null, is Number, is Boolean -> text.append(value)
        else -> error("JSON holds no ${value::class}")
    }
}

private fun <T> join(values: Collection<T>, start: Char, end: Char, text: StringBuilder, each: (T) -> Unit) {
    text.append(start)
    values.forEachIndexed { k, one ->
        if (k > 0) text.append(',')
        each(one)
    }
    text.append(end)
}

private fun writeText(value: String, text: StringBuilder) {
    text.append('"')
    for (one in value) {
        when {
            one == '"' || one == '\\' -> text.append('\\').append(one)
            one in ' '..'~' -> text.append(one)
            else -> text.append("\\u").append(one.code.toString(16).padStart(4, '0'))
        }
    }
    text.append('"')
}
