package patchdeploy.demo

import android.graphics.Bitmap
import android.graphics.Color
import android.view.View
import android.view.ViewGroup
import android.widget.TextView
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment
import org.robolectric.annotation.Config

private const val PHONE = "w360dp-h760dp-mdpi"

/** Every form of the screen, drawn; pictures in target/screenshots, the docs' are copied from there. */
@RunWith(RobolectricTestRunner::class)
@Config(qualifiers = PHONE)
class ScreensTest {
    private fun shoot(name: String, page: Page = Page.CLASSIFY, look: (Screen, Bitmap) -> Unit) = Screen.open().use { screen ->
        screen.awaitAnswer()
        if (page != Page.CLASSIFY) {
            screen.demo.showPage(page)
            screen.await("the page") { screen.ready.page == page }
        }
        assertEveryTapIsNamedAndLargeEnough(screen)
        look(screen, screen.picture(name))
    }

    /** TalkBack reads a description or a text; a finger needs 48 dp. */
    private fun assertEveryTapIsNamedAndLargeEnough(screen: Screen) {
        val least = (48 * screen.activity.resources.displayMetrics.density).toInt()
        for (view in all(screen.view<ViewGroup>(R.id.root)).filter { it.isShown && it.hasOnClickListeners() }) {
            val words = view.contentDescription ?: (view as? TextView)?.text
            assertFalse("${view.javaClass.simpleName} ${view.id} has a name", words.isNullOrBlank())
            assertTrue("'$words' is ${view.width} x ${view.height} px, at least $least", minOf(view.width, view.height) >= least)
        }
    }

    private fun all(view: View): List<View> =
        listOf(view) + ((view as? ViewGroup)?.let { group -> (0 until group.childCount).flatMap { all(group.getChildAt(it)) } } ?: emptyList())

    @Test
    fun `a sample picture is answered at once, with no permission given`() = shoot("phone") { screen, picture ->
        val answer = screen.ready.answer as Answer.Found
        assertEquals("T-shirt/top", answer.prediction.label) // the first sample's name
        assertNotNull("the picture is shown", screen.ready.picture)
        assertTrue("the patch's scores are those of its maker", (screen.ready.parity as Parity.Passed).worstLsb!! <= 8)
        assertTrue("light", brightness(picture) > 128)
    }

    @Test
    @Config(qualifiers = "w760dp-h360dp-land-mdpi")
    fun `in landscape picture and answers lie side by side`() = shoot("landscape") { screen, _ ->
        val picture = IntArray(2).also(screen.view<View>(R.id.picture)::getLocationOnScreen)
        val bars = IntArray(2).also(screen.view<View>(R.id.bars)::getLocationOnScreen)
        assertTrue("${picture[0]} < ${bars[0]}", picture[0] + screen.view<View>(R.id.picture).width <= bars[0])
    }

    @Test
    @Config(qualifiers = "w360dp-h760dp-night-mdpi")
    fun `at night the screen is dark`() = shoot("dark") { _, picture -> assertTrue(brightness(picture) < 64) }

    @Test
    fun `letters of double size leave nothing out`() {
        RuntimeEnvironment.setFontScale(2f)
        shoot("font-scale-2") { screen, _ ->
            for (view in all(screen.view(R.id.page_classify)).filterIsInstance<TextView>().filter { it.isShown && it.text.isNotEmpty() }) {
                assertTrue("'${view.text}' fits", view.layout.height <= view.height && view.layout.getEllipsisCount(view.lineCount - 1) == 0)
            }
        }
    }

    @Test
    @Config(qualifiers = "ar-ldrtl-$PHONE")
    fun `from right to left the first chip is the rightmost`() = shoot("right-to-left") { screen, _ ->
        val chips = screen.view<ViewGroup>(R.id.resolution_chips)
        assertTrue(chips.getChildAt(0).left > chips.getChildAt(1).left)
    }

    @Test
    @Config(qualifiers = "de-$PHONE")
    fun `tasks in German`() = shoot("tasks-german", Page.TASKS) { screen, _ ->
        assertEquals("Aufgaben", screen.text(R.id.tab_tasks))
        assertTrue("kam mit der App" in screen.view<ViewGroup>(R.id.task_rows).getChildAt(0).text(R.id.about).text)
    }

    @Test
    fun `tasks with version, size, signer and expiry`() = shoot("tasks", Page.TASKS) { screen, _ ->
        val about = screen.view<ViewGroup>(R.id.task_rows).getChildAt(0).text(R.id.about).text
        val task = screen.ready.tasks.first()
        for (part in listOf("Version ${task.sequence}", "10 classes at 32, 48 px", "with auto", task.signers.single(), "No expiry date")) {
            assertTrue("'$part' in '$about'", part in about)
        }
    }

    @Test
    fun `settings offer both runtimes`() = shoot("settings", Page.SETTINGS) { screen, _ ->
        screen.tap(screen.child(R.id.runtime_chips, "ONNX Runtime"))
        screen.await("the other runtime") { screen.ready.runtime.startsWith("ONNX Runtime") }
        screen.awaitAnswer()
        assertEquals("T-shirt/top", (screen.ready.answer as Answer.Found).prediction.label)
    }

    private fun brightness(picture: Bitmap): Int = picture.getPixel(picture.width / 2, 4).let { (Color.red(it) + Color.green(it) + Color.blue(it)) / 3 }
}
