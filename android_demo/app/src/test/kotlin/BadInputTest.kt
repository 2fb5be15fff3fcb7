package patchdeploy.demo

import android.Manifest
import android.content.ComponentCallbacks2
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import java.nio.file.Files
import java.nio.file.Path
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf

/** Every line of the "Bad input": in words, and the last good patch runs. */
@RunWith(RobolectricTestRunner::class)
class BadInputTest {
    @get:Rule
    val device = TestDevice()

    private fun words(id: Int, vararg arguments: Any): String = RuntimeEnvironment.getApplication().getString(id, *arguments)

    private fun refused(words: Int) = Screen.open().use { screen ->
        screen.await("the refusal", mayRefuse = true) { screen.demo.state is UiState.Refused }
        assertEquals(words(words), screen.text(R.id.opening_text))
        assertEquals(words(R.string.refused_title), screen.text(R.id.opening_title))
        assertFalse("nothing can be tapped", screen.view<android.view.View>(R.id.tabs).isShown)
    }

    @Test
    fun `a base with another hash starts nothing`() {
        device.changeBundle = { ChangedFile(it, "base.tflite") }
        refused(R.string.problem_integrity)
    }

    @Test
    fun `a patch with another hash starts nothing`() {
        device.changeBundle = { ChangedFile(it, "patches/surfaces.pdp") }
        refused(R.string.problem_integrity)
    }

    @Test
    fun `a truncated base starts nothing`() {
        device.changeBundle = { ShortFile(it, "base.tflite", 1000) }
        refused(R.string.problem_integrity)
    }

    @Test
    fun `a missing asset starts nothing`() {
        device.changeBundle = { ShortFile(it, "base.coding", null) }
        refused(R.string.problem_integrity)
    }

    @Test
    fun `a changed manifest starts nothing`() {
        device.changeBundle = { ShortFile(it, "manifest.json", 2000) }
        refused(R.string.problem_format)
    }

    private fun opened(work: (Screen) -> Unit) = Screen.open().use { screen ->
        screen.awaitAnswer()
        work(screen)
        screen.awaitAnswer() // the last good patch runs
    }

    private fun assertRefused(patch: ByteArray, words: String) = opened { screen ->
        val before = screen.ready.tasks.map { it.task to it.sequence }
        screen.demo.installer.install { patch.inputStream() }
        screen.awaitNotice(words)
        assertEquals(before, screen.ready.tasks.map { it.task to it.sequence })
    }

    @Test
    fun `a file that is no patch`() = assertRefused(ByteArray(500), words(R.string.refused_no_patch))

    @Test
    fun `a patch that was cut short`() = assertRefused(madePatch("faces").copyOf(4000), words(R.string.refused_damaged))

    @Test
    fun `a patch that was changed after it was signed`() =
        assertRefused(madePatch("faces").also { it[400] = (it[400] + 1).toByte() }, words(R.string.refused_signature))

    @Test
    fun `a patch of another base`() {
        val old = Files.list(MADE.resolve("old_store")).filter { it.toString().endsWith(".pdp") }.findFirst().get()
        assertRefused(Files.readAllBytes(old), words(R.string.refused_base))
    }

    @Test
    fun `an expired patch, or a clock that is wrong, with the date that this device has`() {
        val today = java.text.DateFormat.getDateInstance(java.text.DateFormat.LONG).format(java.util.Date())
        assertRefused(madePatch("fashion-expired"), words(R.string.refused_expired, today))
    }

    @Test
    fun `no space left`() {
        val disk = FullDisk()
        device.disk = disk
        opened { screen ->
            disk.isFull = true
            screen.demo.installer.install { madePatch("faces").inputStream() }
            screen.awaitNotice(words(R.string.problem_space))
            disk.isFull = false
            screen.demo.installer.install { madePatch("faces").inputStream() }
            screen.awaitNotice(words(R.string.installed, "faces", 1L))
        }
    }

    @Test
    fun `an old store after an update of the app with another base`() {
        copy(MADE.resolve("old_store"), RuntimeEnvironment.getApplication().filesDir.toPath().resolve("store"))
        opened { screen ->
            val task = screen.ready.tasks.single { it.task == "fashion" }
            assertEquals(words(R.string.refused_base), task.problem!!.say(screen.activity))
            assertFalse("the app's own patch runs", task.isInstalled)
        }
    }

    private fun copy(from: Path, to: Path) {
        Files.createDirectories(to)
        Files.list(from).forEach { Files.copy(it, to.resolve(it.fileName.toString())) }
    }

    @Test
    fun `a device without a camera`() = opened { screen ->
        shadowOf(RuntimeEnvironment.getApplication()).grantPermissions(Manifest.permission.CAMERA)
        screen.tap(R.id.camera)
        screen.awaitNotice(words(R.string.camera_none))
        assertTrue(screen.ready.source is Source.Sample)
    }

    @Test
    fun `the camera's permission is refused`() = opened { screen ->
        screen.tap(R.id.camera)
        val asked = shadowOf(screen.activity).lastRequestedPermission
        assertEquals(listOf(Manifest.permission.CAMERA), asked.requestedPermissions.toList())
        screen.activity.onRequestPermissionsResult(asked.requestCode, asked.requestedPermissions, intArrayOf(PackageManager.PERMISSION_DENIED))
        screen.awaitNotice(words(R.string.camera_refused))
    }

    @Test
    fun `the camera's permission is revoked while it runs`() {
        val camera = FakeCamera()
        device.camera = { camera }
        opened { screen ->
            screen.demo.choose(Source.Camera)
            screen.await("the camera") { camera.listener != null }
            camera.send { grey(64, 48, 90) }
            screen.await("a frame") { screen.ready.picture?.width == 64 }
            camera.listener!!.onProblem(Problem(Words(R.string.camera_refused), SecurityException("revoked")))
            screen.awaitNotice(words(R.string.camera_refused))
            screen.await("a sample") { screen.ready.picture?.width != 64 }
            assertEquals(1, camera.closed.get())
        }
    }

    @Test
    fun `low memory lets go of every model but the last`() = opened { screen ->
        screen.tap(screen.child(R.id.resolution_chips, "32 px"))
        screen.await("the smaller model") { (screen.ready.answer as? Answer.Found)?.prediction?.resolution == 32 }
        val both = (screen.ready.answer as Answer.Found).residentBytes
        @Suppress("DEPRECATION")
        screen.activity.onTrimMemory(ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW)
        screen.tap(screen.child(R.id.resolution_chips, "Auto: the smallest resolution that is sure"))
        screen.await("one model less") { (screen.ready.answer as? Answer.Found)?.let { it.prediction.resolution == 32 && it.residentBytes < both } == true }
    }

    @Test
    fun `a shared file that is no picture`() = opened { screen ->
        val file = Uri.parse("content://another.app/1")
        shadowOf(screen.activity.contentResolver).registerInputStreamSupplier(file) { "no picture".byteInputStream() }
        val intent = Intent(Intent.ACTION_SEND).setType("image/png").putExtra(Intent.EXTRA_STREAM, file)
        screen.controller.newIntent(intent)
        screen.await("the words") { (screen.ready.answer as? Answer.Failed)?.problem?.say(screen.activity) == words(R.string.problem_picture) }
        screen.demo.choose(Source.Sample(screen.ready.samples.first()))
    }
}
