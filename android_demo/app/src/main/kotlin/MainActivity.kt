package patchdeploy.demo

import android.Manifest
import android.app.Activity
import android.content.ComponentCallbacks2
import android.content.Intent
import android.content.pm.PackageManager
import android.net.Uri
import android.os.Build
import android.os.Bundle
import android.view.View
import android.view.WindowInsets
import java.io.FileNotFoundException
import java.io.IOException

private const val ASK_CAMERA = 1
private const val PICK_PICTURE = 2
private const val PICK_PATCH = 3
private const val CREATE_EXPORT = 4

/**
 * The screen: shows [UiState], passes on what the user does, and asks Android what only an activity may.
 */
class MainActivity : Activity(), Actions {
    private lateinit var demo: Demo
    private lateinit var pages: Pages

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        demo = (application as DemoApplication).demo
        setContentView(R.layout.main)
        val root = window.decorView.part<View>(R.id.root)
        keepOffSystemBars(root)
        pages = Pages(root, demo, this) { Platform.of(this).pictures.sample(it) }
        wishIn(saved)?.let(demo::restore)
        if (saved == null) take(intent)
    }

    override fun onStart() {
        super.onStart()
        demo.observe(pages::show)
        demo.onVisible()
    }

    override fun onStop() {
        demo.observe(null)
        if (!isChangingConfigurations) demo.onHidden()
        super.onStop()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        demo.save()?.let { write(it, out) }
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        if (level >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND || level in LOW_LEVELS) demo.onLowMemory()
    }

    override fun onNewIntent(intent: Intent) {
        super.onNewIntent(intent)
        take(intent)
    }

    /** A picture that was shared, a patch file that was opened, a link to one. */
    private fun take(intent: Intent) {
        val data = intent.data
        when {
            intent.action == Intent.ACTION_SEND -> shared(intent)?.let { demo.choose(Source.Picture(it.toString())) }
            intent.action != Intent.ACTION_VIEW || data == null -> Unit
            data.scheme == "content" -> install(data)
            data.scheme == "patchdeploy" -> {
                demo.showPage(Page.TASKS)
                pages.suggest(data.getQueryParameter("url").orEmpty())
            }
        }
    }

    @Suppress("DEPRECATION") // the typed one is there from API 33 on
    private fun shared(intent: Intent): Uri? = intent.getParcelableExtra(Intent.EXTRA_STREAM)

    private fun install(file: Uri) {
        demo.showPage(Page.TASKS)
        demo.installer.install { contentResolver.openInputStream(file) ?: throw FileNotFoundException(file.toString()) }
    }

    override fun useCamera() {
        if (checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED) {
            demo.choose(Source.Camera)
        } else {
            requestPermissions(arrayOf(Manifest.permission.CAMERA), ASK_CAMERA)
        }
    }

    override fun onRequestPermissionsResult(code: Int, permissions: Array<String>, results: IntArray) {
        when {
            code != ASK_CAMERA || results.isEmpty() -> Unit // no result: the question was interrupted
            results.first() == PackageManager.PERMISSION_GRANTED -> demo.choose(Source.Camera)
            else -> demo.onCameraRefused()
        }
    }

    override fun pickPicture(): Unit = ask(Intent(Intent.ACTION_OPEN_DOCUMENT).setType("image/*"), PICK_PICTURE)

    override fun pickPatch(): Unit = ask(Intent(Intent.ACTION_OPEN_DOCUMENT).setType("*/*"), PICK_PATCH)

    override fun exportBenchmark(): Unit = ask(
        Intent(Intent.ACTION_CREATE_DOCUMENT).setType("application/json").putExtra(Intent.EXTRA_TITLE, "android.json"),
        CREATE_EXPORT,
    )

    @Suppress("DEPRECATION") // what takes its place is AndroidX
    private fun ask(intent: Intent, code: Int): Unit =
        startActivityForResult(intent.addCategory(Intent.CATEGORY_OPENABLE), code)

    override fun onActivityResult(code: Int, result: Int, answer: Intent?) {
        val uri = answer?.data
        if (result != RESULT_OK || uri == null) return
        when (code) {
            PICK_PICTURE -> demo.choose(Source.Picture(uri.toString()))
            PICK_PATCH -> install(uri)
            CREATE_EXPORT -> export(uri)
        }
    }

    private fun export(to: Uri) {
        val report = ((demo.state as? UiState.Ready)?.benchmark as? BenchmarkState.Done)?.report ?: return
        demo.change {
            val out = contentResolver.openOutputStream(to) ?: throw FileNotFoundException(to.toString())
            out.use { it.write(report.json.toByteArray()) }
            demo.say(Words(R.string.exported))
        }
    }

    private companion object {
        @Suppress("DEPRECATION") // no more sent from API 34 on, but by the systems before
        val LOW_LEVELS = ComponentCallbacks2.TRIM_MEMORY_RUNNING_LOW..ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL
    }
}

private fun keepOffSystemBars(root: View): Unit = root.setOnApplyWindowInsetsListener { view, insets ->
    if (Build.VERSION.SDK_INT >= 30) {
        val bars = insets.getInsets(WindowInsets.Type.systemBars() or WindowInsets.Type.displayCutout() or WindowInsets.Type.ime())
        view.setPadding(bars.left, bars.top, bars.right, bars.bottom)
    } else {
        @Suppress("DEPRECATION") // what takes its place is there from API 30 on
        view.setPadding(insets.systemWindowInsetLeft, insets.systemWindowInsetTop, insets.systemWindowInsetRight, insets.systemWindowInsetBottom)
    }
    insets
}
