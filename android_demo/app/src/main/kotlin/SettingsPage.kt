package patchdeploy.demo

import android.view.View

private val THREADS = listOf(1, 2, 4)

/** Runtime and threads; a change opens the bundle again. */
internal class SettingsPage(private val root: View, private val demo: Demo) {
    private val context = root.context

    fun show(state: UiState.Ready) {
        val settings = state.settings
        showChips(
            root.part(R.id.runtime_chips),
            state.runtimes.map { Chip(it.name, it.id == settings.runtime, it.isHere) { demo.changeSettings(settings.copy(runtime = it.id)) } },
        )
        val missing = state.runtimes.filter { !it.isHere }.map { context.getString(R.string.runtime_missing, it.name) }
        root.text(R.id.runtime_text).text =
            (listOf(context.getString(R.string.runtime_running, state.runtime)) + missing).joinToString(" ")
        showChips(
            root.part(R.id.thread_chips),
            THREADS.map { Chip("$it", it == settings.threads) { demo.changeSettings(settings.copy(threads = it)) } },
        )
    }
}
