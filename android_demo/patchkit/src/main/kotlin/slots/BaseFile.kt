package patchdeploy.patchkit.slots

import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.select
import patchdeploy.patchkit.sha256Hex

/**
 * A base file whose bytes were hashed and fit their slot table; what a runtime's models are made of.
 *
 * @property table of that file.
 */
public class BaseFile private constructor(private val bytes: ByteBuffer, public val table: SlotTable) {
    /**
     * @param file copied, so that the bytes which were hashed are those that are used.
     * @throws IntegrityException the file is not the one of its slot table.
     * @throws SlotTableException the table says of the file what is not so.
     */
    public constructor(file: ByteArray, table: SlotTable) : this(checked(file.copyOf(), table), table)

    /** Bytes of a model. */
    public val size: Int get() = bytes.capacity()

    /**
     * Write a model of one task at one resolution into [target]; where the file has views,
     * [resolution]'s signature alone is in reach.
     *
     * @param target of [size] bytes; its position and order are left as they were.
     * @throws patchdeploy.patchkit.UnknownResolutionException the file has no such signature.
     * @throws SlotTableException an array is shorter than the slots that it fills.
     */
    public fun renderInto(target: ByteBuffer, values: PatchValues, resolution: Int) {
        overlayInto(target, values, resolution)
        selectView(target, table, resolution)
    }

    /** A model as [renderInto] writes it, in memory of its own outside of the JVM's heap. */
    public fun render(values: PatchValues, resolution: Int): ByteBuffer =
        ByteBuffer.allocateDirect(size).order(ByteOrder.nativeOrder()).also { renderInto(it, values, resolution) }

    /**
     * SHA-256 of the file with [values] laid over it: what a patch's header names as its result.
     *
     * @throws patchdeploy.patchkit.UnknownResolutionException the file has no such signature.
     * @throws SlotTableException an array is shorter than the slots that it fills.
     */
    public fun resultSha256(values: PatchValues, resolution: Int): String =
        sha256Hex(ByteBuffer.allocate(size).also { overlayInto(it, values, resolution) })

    private fun overlayInto(target: ByteBuffer, values: PatchValues, resolution: Int) {
        val whole = target.duplicate().also { select(it, 0, it.capacity()) }
        require(whole.remaining() == size) { "a model of $size bytes into ${whole.remaining()}" }
        whole.put(bytes.duplicate())
        setSlots(target, table, resolution, values)
    }

    public companion object {
        /**
         * Over [file] itself, without a copy: for a mapping of a file that nothing can write to, as
         * that of an asset inside an installed APK.
         *
         * @param file from byte 0 to its capacity.
         * @throws IntegrityException the file is not the one of its slot table.
         * @throws SlotTableException the table says of the file what is not so.
         */
        public fun mapped(file: ByteBuffer, table: SlotTable): BaseFile {
            val whole = file.asReadOnlyBuffer().also { select(it, 0, it.capacity()) }
            checked(ByteArray(whole.remaining()).also { whole.duplicate().get(it) }, table)
            return BaseFile(whole, table)
        }

        private fun checked(file: ByteArray, table: SlotTable): ByteBuffer {
            checkHash(file, table)
            checkBase(file, table)
            return ByteBuffer.wrap(file).asReadOnlyBuffer()
        }
    }
}
