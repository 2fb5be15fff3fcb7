package patchdeploy.demo

import android.app.Application
import android.content.Context
import java.io.IOException
import java.nio.ByteBuffer
import java.nio.file.Path
import java.util.concurrent.atomic.AtomicInteger
import org.junit.rules.ExternalResource
import patchdeploy.patchkit.bundle.BundleFiles
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.store.DiskFiles
import patchdeploy.patchkit.store.Files
import patchdeploy.patchkit.store.NewFile

/** What `make_bundle.py` has left. */
val MADE: Path = Path.of(System.getProperty("made")!!)

fun madePatch(name: String): ByteArray = java.nio.file.Files.readAllBytes(MADE.resolve("patches/$name.pdp"))

/** A test's changes to the device, undone after it. */
class TestDevice : ExternalResource() {
    var changeBundle: (BundleFiles) -> BundleFiles = { it }
    var camera: (() -> FrameSource)? = null
    var disk: Files = DiskFiles()
    private val default = DemoApplication.makeDemo

    override fun before() {
        DemoApplication.makeDemo = { Demo(platform(it)) }
    }

    override fun after() {
        DemoApplication.makeDemo = default
    }

    /** The device as it is, but for what the test gives. */
    private fun platform(app: Application): Platform = Platform.of(app as Context).let {
        Platform(
            changeBundle(it.bundle), it.pictures, it.storeFolder, it.downloads, it.settings,
            camera ?: it.camera, it.main, it.device, disk,
        )
    }
}

/** A bundle of which one file has another last byte. */
class ChangedFile(private val files: BundleFiles, private val changed: String) : BundleFiles by files {
    override fun map(path: String): ByteBuffer? = if (path == changed) null else files.map(path)

    override fun read(path: String, most: Int): ByteArray =
        files.read(path, most).also { if (path == changed) it[it.size - 1] = (it.last() + 1).toByte() }
}

/** A bundle of which one file is cut short, or is not there. */
class ShortFile(private val files: BundleFiles, private val short: String, private val bytes: Int?) : BundleFiles by files {
    override fun map(path: String): ByteBuffer? = if (path == short) null else files.map(path)

    override fun read(path: String, most: Int): ByteArray = when {
        path != short -> files.read(path, most)
        bytes == null -> throw IOException("no such file")
        else -> files.read(path, most).copyOf(bytes)
    }
}

/** A disk that is full once [isFull]. */
class FullDisk(private val files: Files = DiskFiles()) : Files by files {
    @Volatile
    var isFull = false

    override fun create(path: Path): NewFile = if (isFull) throw IOException("No space left on device") else files.create(path)
}

/** A camera that gives what a test hands it, and counts what was closed. */
class FakeCamera : FrameSource {
    @Volatile
    var listener: FrameListener? = null
    val closed = AtomicInteger()

    override fun start(listener: FrameListener) {
        this.listener = listener
    }

    override fun stop() {
        listener = null
    }

    fun send(make: () -> Pixels) {
        listener?.onFrame(object : Frame {
            override fun toPixels() = make()

            override fun close() {
                closed.incrementAndGet()
            }
        })
    }
}

fun grey(width: Int, height: Int, value: Int) = Pixels.fromGrey(width, height, ByteArray(width * height) { value.toByte() })
