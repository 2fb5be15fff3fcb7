package patchdeploy.patchkit

/**
 * A run of bytes of an array that is not copied; little-endian reads.
 *
 * In: an array and where the run lies. Out: unsigned numbers. Reading outside of the run throws
 * [IndexOutOfBoundsException], so a reader compares lengths first.
 */
internal class Bytes(private val array: ByteArray, private val start: Int, val size: Int) {
    init {
        require(start >= 0 && size >= 0 && start <= array.size - size)
    }

    constructor(array: ByteArray) : this(array, 0, array.size)

    /** Byte [at], 0 to 255. */
    operator fun get(at: Int): Int = array[place(at, 1)].toInt() and 255

    /** Byte [at], -128 to 127. */
    fun signed(at: Int): Byte = array[place(at, 1)]

    fun u16(at: Int): Int = get(at) or (get(at + 1) shl 8)

    /** 0 to 2^32 - 1. */
    fun u32(at: Int): Long = (u16(at).toLong()) or (u16(at + 2).toLong() shl 16)

    /** The bytes [from, to) of this run, not copied. */
    fun slice(from: Int, to: Int): Bytes {
        place(from, to - from)
        return Bytes(array, start + from, to - from)
    }

    fun copy(): ByteArray = array.copyOfRange(start, start + size)

    /** Calls [use] with the array, the first byte and the length. */
    fun <T> within(use: (ByteArray, Int, Int) -> T): T = use(array, start, size)

    private fun place(at: Int, length: Int): Int {
        if (at < 0 || length < 0 || at > size - length) {
            throw IndexOutOfBoundsException("bytes $at to ${at + length} of $size")
        }
        return start + at
    }
}

/**
 * Make the bytes [first, end) of [buffer] those that remain. By its type [java.nio.Buffer], since
 * ByteBuffer's own methods of these names came with API 34.
 */
internal fun select(buffer: java.nio.Buffer, first: Int, end: Int) {
    buffer.limit(end)
    buffer.position(first)
}
