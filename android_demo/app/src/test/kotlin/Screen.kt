package patchdeploy.demo

import android.app.Activity
import android.graphics.Bitmap
import android.graphics.Canvas
import android.os.Bundle
import android.os.Looper
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import java.io.File
import org.junit.Assert.assertTrue
import org.robolectric.Robolectric
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController

/** How long background work may take on a busy machine before a test gives up. */
private const val PATIENCE_MS = 30_000L

/** The activity as a person sees it: texts, taps, pictures of the screen. */
class Screen(val controller: ActivityController<MainActivity>) : AutoCloseable {
    val activity: MainActivity get() = controller.get()
    val demo: Demo get() = (activity.application as DemoApplication).demo
    val ready: UiState.Ready get() = demo.state as UiState.Ready

    /** Run the main thread until [holds]. */
    fun await(what: String, mayRefuse: Boolean = false, holds: () -> Boolean) {
        val end = System.nanoTime() + PATIENCE_MS * 1_000_000
        while (!holds()) {
            if (!mayRefuse) (demo.state as? UiState.Refused)?.let { throw AssertionError("the app refused to start", it.problem.cause) }
            assertTrue("waited in vain for $what; the state is ${demo.state}", System.nanoTime() < end)
            shadowOf(Looper.getMainLooper()).idle()
            Thread.sleep(5)
        }
        shadowOf(Looper.getMainLooper()).idle()
    }

    fun awaitAnswer() = await("an answer and the self-test") {
        val ready = demo.state as? UiState.Ready
        val answer = ready?.answer as? Answer.Found
        answer != null && answer.prediction.task == ready.selection.task && ready.parity != Parity.Running &&
            ready.parity != Parity.Unknown
    }

    fun <V : View> view(id: Int): V = activity.window.decorView.part(id)

    fun text(id: Int): String = view<TextView>(id).text.toString()

    fun tap(id: Int) = tap(view<View>(id))

    fun tap(view: View) {
        assertTrue("${view.contentDescription ?: (view as? TextView)?.text} is shown", view.isShown)
        view.performClick()
        shadowOf(Looper.getMainLooper()).idle()
    }

    /** The view in [group] with this text or description. */
    fun child(group: Int, words: String): View = view<ViewGroup>(group).let { views ->
        (0 until views.childCount).map(views::getChildAt)
            .first { words == (it as? TextView)?.text?.toString() || words == it.contentDescription?.toString() }
    }

    fun awaitNotice(words: String) = await("the notice '$words', not '${text(R.id.notice_text)}'") { text(R.id.notice_text) == words }

    /** Into the folder that the build names, and as pixels. */
    fun picture(name: String): Bitmap {
        val view = activity.window.decorView
        assertTrue("the screen has a size: ${view.width} x ${view.height}", view.width > 0 && view.height > 0)
        val bitmap = Bitmap.createBitmap(view.width, view.height, Bitmap.Config.ARGB_8888)
        view.draw(Canvas(bitmap))
        val file = File(System.getProperty("screenshots")!!, "$name.png")
        file.parentFile!!.mkdirs()
        file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
        return bitmap
    }

    override fun close() = controller.close()

    companion object {
        fun open(saved: Bundle? = null): Screen =
            Screen(Robolectric.buildActivity(MainActivity::class.java).apply { if (saved == null) setup() else setup(saved) })
    }
}
