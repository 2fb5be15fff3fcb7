package patchdeploy.patchkit.slots

import patchdeploy.patchkit.Bytes

/**
 * Reading a FlatBuffer (https://flatbuffers.dev/internals) as far as its tables.
 *
 * In: bytes of another's making. Out: places in them, or [NotRead] where the bytes hold no such
 * thing. Nothing is read outside of them, and a vector is never longer than they are.
 */
internal class NotRead(message: String) : Exception(message)

internal class FlatBuffer(private val data: Bytes) {
    /** Where the root table is. */
    fun root(identifier: String): Long {
        val found = String(CharArray(4) { k -> if (data.size >= 8) data[4 + k].toChar() else ' ' })
        if (found != identifier) throw NotRead("bytes 4 to 8 are not $identifier")
        return follow(0)
    }

    /** Where the uint32 at [position] points, counted from itself. */
    fun follow(position: Long): Long = position + u32(position)

    fun u32(position: Long): Long = data.u32(place(position, 4))

    /** Where field [index] of a table lies; null where it is left out. */
    fun fieldPlace(table: Long, index: Int): Long? {
        val vtable = table - u32(table).toInt()
        val entry = 4 + 2 * index
        if (vtable < 0 || entry >= u16(vtable)) return null
        val offset = u16(vtable + entry)
        return if (offset == 0) null else table + offset
    }

    /** What field [index] of a table refers to. */
    fun required(table: Long, index: Int): Long =
        follow(fieldPlace(table, index) ?: throw NotRead("field $index of the table at byte $table is missing"))

    /** First byte and end of a vector. */
    fun vector(position: Long, itemBytes: Int): LongRange {
        val end = position + 4 + itemBytes * u32(position)
        if (end > data.size) throw NotRead("a vector ends at byte $end of ${data.size}")
        return position + 4 until end
    }

    /** The tables that the vector at [position] refers to. */
    fun tables(position: Long): List<Long> = (vector(position, 4) step 4).map(::follow)

    fun text(position: Long): String {
        val run = vector(position, 1)
        return String(data.slice(run.first.toInt(), run.last.toInt() + 1).copy(), Charsets.UTF_8)
    }

    private fun u16(position: Long): Int = data.u16(place(position, 2))

    private fun place(position: Long, length: Int): Int {
        if (position < 0 || position > data.size - length) throw NotRead("byte $position of ${data.size}")
        return position.toInt()
    }
}
