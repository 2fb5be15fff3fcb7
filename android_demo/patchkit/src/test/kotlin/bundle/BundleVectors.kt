package patchdeploy.patchkit.bundle

import java.io.FileNotFoundException
import java.util.Base64
import patchdeploy.patchkit.base64
import patchdeploy.patchkit.child
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.readVectors

/** The bundle of tests/patchfile/bundle_vectors.json, and what the integer executor says of its tasks. */
public object BundleVectors {
    private val document = readVectors("bundle_vectors.json")

    /** By path. */
    public val files: Map<String, ByteArray> =
        document.child("files").let { files -> files.keys.associateWith { files.base64(it) } }

    /** By task, a patch file of sequence 5: the first task is the bundle's, the third one is not. */
    public val updates: Map<String, ByteArray> =
        document.child("updates").let { updates -> updates.keys.associateWith { updates.base64(it) } }

    public val images: List<Pixels> = document.child("images").let { all ->
        (all.getValue("rgb") as List<*>).map {
            val rgb = Base64.getDecoder().decode(it as String)
            Pixels((all.getValue("width") as Long).toInt(), (all.getValue("height") as Long).toInt(), rgb)
        }
    }

    /** By image, the scores of [task] at [px] in the arithmetic of [format]'s runtime. */
    public fun scores(format: String, task: String, px: Int): List<FloatArray> {
        val rows = document.child("scores").child(format).child(task).getValue("$px") as List<*>
        return rows.map { row -> FloatArray((row as List<*>).size) { Float.fromBits((row[it] as Long).toInt()) } }
    }

    /** By image, the side at which the first task's cascade answers. */
    public fun stages(format: String): List<Int> =
        (document.child("stages").getValue(format) as List<*>).map { (it as Long).toInt() }
}

/** Files in memory. */
public class MapFiles(private val files: Map<String, ByteArray>) : BundleFiles {
    override val place: String get() = "a map"

    override fun read(path: String, most: Int): ByteArray {
        val data = files[path] ?: throw FileNotFoundException("no such file")
        return data.copyOf(minOf(data.size, most + 1))
    }
}
