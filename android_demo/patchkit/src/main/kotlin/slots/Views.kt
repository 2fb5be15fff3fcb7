package patchdeploy.patchkit.slots

import patchdeploy.patchkit.Bytes
import patchdeploy.patchkit.SlotTableException

/**
 * The views of a .tflite: which words leave one signature in reach, read off the file itself, so
 * that an edited view in a slot table is found. docs/slots.md has why. Field numbers are those of
 * TensorFlow's schema.fbs, version 3.
 */

private const val IDENTIFIER = "TFL3"
private const val MODEL_SUBGRAPHS = 2
private const val MODEL_SIGNATURES = 7
private const val SIGNATURE_KEY = 2
private const val SIGNATURE_SUBGRAPH = 4

/**
 * Check that the views of [table] are those that its .tflite, [data], has.
 *
 * @throws SlotTableException no .tflite, signatures of other resolutions, or another view.
 */
internal fun checkViews(data: Bytes, table: SlotTable) {
    val expected = try {
        ViewFinder(FlatBuffer(data)).find(table.resolutions)
    } catch (error: NotRead) {
        throw SlotTableException(
            "base file of ${data.size} bytes (${error.message?.take(200)}); it must be a .tflite with a " +
                "signature for each of ${table.resolutions.joinToString()} px; export the base again",
            error,
        )
    }
    for (px in expected.keys + table.views.keys) {
        if (table.views[px].orEmpty().toSet() != expected[px].orEmpty().toSet()) {
            throw SlotTableException(
                "slot table has another view of $px px than its base file; a view must leave " +
                    "classify_$px in reach and change nothing else; export the base again",
            )
        }
    }
}

private class ViewFinder(private val file: FlatBuffer) {
    private val model = file.root(IDENTIFIER)
    private val subgraphs = file.required(model, MODEL_SUBGRAPHS)
    private val signatures = file.required(model, MODEL_SIGNATURES)

    fun find(resolutions: List<Int>): Map<Int, List<Edit>> {
        val places = file.tables(signatures)
        val byName = places.associateBy { file.text(file.required(it, SIGNATURE_KEY)) }
        val names = resolutions.associateBy { "classify_$it" }
        if (byName.size < places.size || byName.keys != names.keys || names.isEmpty()) {
            throw NotRead("its signatures are ${byName.keys.sorted()}")
        }
        return names.entries.associate { (name, px) -> px to view(byName.getValue(name)) }
    }

    private fun view(signature: Long): List<Edit> {
        val indexPlace = file.fieldPlace(signature, SIGNATURE_SUBGRAPH)
            ?: throw NotRead("a signature does not name its subgraph")
        val index = file.u32(indexPlace)
        val places = file.vector(subgraphs, 4)
        if (index >= (places.last + 1 - places.first) / 4) throw NotRead("a signature names subgraph $index")
        val subgraph = file.follow(places.first + 4 * index)
        return only(subgraphs, subgraph) + only(signatures, signature) + Edit(indexPlace.toInt(), 0)
    }

    /** Make the vector of tables at byte [vector] hold just the table at byte [table]. */
    private fun only(vector: Long, table: Long): List<Edit> =
        listOf(Edit(vector.toInt(), 1), Edit(vector.toInt() + 4, (table - (vector + 4)) and 0xFFFFFFFFL))
}
