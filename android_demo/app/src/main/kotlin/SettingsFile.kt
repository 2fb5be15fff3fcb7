package patchdeploy.demo

import android.content.SharedPreferences

private const val MOST_THREADS = 4

/** What the user chose, over restarts. What is not there or not possible here gives the default. */
class SettingsFile(private val stored: SharedPreferences) {
    fun read(): Settings {
        val here = RUNTIMES.map { it.offer }.filter { it.isHere }
        val runtime = here.find { it.id == stored.getString("runtime", null) } ?: here.firstOrNull() ?: RUNTIMES.first().offer
        return Settings(runtime.id, stored.getInt("threads", 1).coerceIn(1, MOST_THREADS))
    }

    fun write(settings: Settings) {
        stored.edit().putString("runtime", settings.runtime).putInt("threads", settings.threads).apply()
    }
}
