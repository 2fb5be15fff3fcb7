package patchdeploy.demo

import android.content.res.AssetManager
import java.io.FileInputStream
import java.io.FileNotFoundException
import java.nio.ByteBuffer
import java.nio.channels.FileChannel
import patchdeploy.patchkit.bundle.BundleFiles
import patchdeploy.patchkit.bundle.readAtMost

/** A bundle in a folder of the app's assets; files that the APK stores uncompressed are mapped. */
class AssetFiles(private val assets: AssetManager, private val folder: String) : BundleFiles {
    override val place: String get() = "assets/$folder"

    override fun read(path: String, most: Int): ByteArray = assets.open("$folder/$path").use { readAtMost(it, most) }

    override fun map(path: String): ByteBuffer? = try {
        assets.openFd("$folder/$path").use { part -> // it owns the descriptor, the stream does not
            FileInputStream(part.fileDescriptor).channel.map(FileChannel.MapMode.READ_ONLY, part.startOffset, part.declaredLength)
        }
    } catch (_: FileNotFoundException) { // compressed: it can only be read
        null
    }
}
