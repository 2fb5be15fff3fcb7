package patchdeploy.demo

import org.junit.Assert.assertEquals
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

@RunWith(RobolectricTestRunner::class)
@GraphicsMode(GraphicsMode.Mode.NATIVE)
@Config(sdk = [35], qualifiers = "w411dp-h891dp-xhdpi")
class MainActivityTest {
    @Test
    fun `a sample picture is classified at once, with no permission given`() {
        Screen.open().use { screen ->
            screen.awaitAnswer()
            val answer = screen.ready.answer as Answer.Found
            assertEquals("${answer.prediction.resolution} px", screen.child(R.id.resolution_chips, "48 px").let { (it as android.widget.TextView).text })
            screen.picture("phone")
        }
    }
}
