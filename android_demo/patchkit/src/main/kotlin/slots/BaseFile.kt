package patchdeploy.patchkit.slots

import java.nio.ByteBuffer
import java.nio.ByteOrder
import patchdeploy.patchkit.IntegrityException
import patchdeploy.patchkit.SlotTableException
import patchdeploy.patchkit.sha256Hex

/**
 * A base file whose bytes were hashed and fit their slot table; what a runtime's models are made of.
 *
 * @param file copied, so that the bytes which were hashed are those that are used.
 * @param table of that file.
 * @throws IntegrityException the file is not the one of its slot table.
 * @throws SlotTableException the table says of the file what is not so.
 */
public class BaseFile(file: ByteArray, private val table: SlotTable) {
    private val bytes: ByteArray = file.copyOf()

    init {
        checkHash(bytes, table)
        checkBase(bytes, table)
    }

    /** Bytes of a model. */
    public val size: Int get() = bytes.size

    /**
     * A model of one task at one resolution, in memory of its own outside of the JVM's heap; where the
     * file has views, [resolution]'s signature alone is in reach.
     *
     * @throws patchdeploy.patchkit.UnknownResolutionException the file has no such signature.
     * @throws SlotTableException an array is shorter than the slots that it fills.
     */
    public fun render(values: PatchValues, resolution: Int): ByteBuffer {
        val model = ByteBuffer.allocateDirect(bytes.size).order(ByteOrder.nativeOrder())
        model.duplicate().put(bytes)
        setSlots(model, table, resolution, values)
        selectView(model, table, resolution)
        return model
    }
}
