package patchdeploy.demo

import android.app.Application

/** Holds the [Demo], which outlives every activity. */
class DemoApplication : Application() {
    /** Made when the first activity asks; tests put another in its place before. */
    val demo: Demo by lazy { makeDemo(this) }

    companion object {
        /** How a [Demo] is made; a test gives it other parts of the device. */
        var makeDemo: (Application) -> Demo = { Demo(Platform.of(it)) }
    }
}
