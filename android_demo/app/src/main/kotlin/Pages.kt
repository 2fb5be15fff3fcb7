package patchdeploy.demo

import android.graphics.Bitmap
import android.view.View

/** All pages and what is on each of them: which is shown, and the notice below. */
internal class Pages(private val root: View, private val demo: Demo, actions: Actions, sample: (String) -> Bitmap) {
    private val context = root.context
    private val classify = ClassifyPage(root.part(R.id.page_classify), demo, actions, sample)
    private val tasks = TasksPage(root.part(R.id.page_tasks), demo, actions)
    private val benchmark = BenchmarkPage(root.part(R.id.page_benchmark), demo, actions)
    private val settings = SettingsPage(root.part(R.id.page_settings), demo)
    private val views = mapOf(
        Page.CLASSIFY to (R.id.page_classify to R.id.tab_classify),
        Page.TASKS to (R.id.page_tasks to R.id.tab_tasks),
        Page.BENCHMARK to (R.id.page_benchmark to R.id.tab_benchmark),
        Page.SETTINGS to (R.id.page_settings to R.id.tab_settings),
    )

    init {
        for ((page, ids) in views) root.text(ids.second).onTap { demo.showPage(page) }
        root.text(R.id.notice_dismiss).onTap(demo::dismissNotice)
    }

    fun suggest(url: String): Unit = tasks.suggest(url)

    fun show(state: UiState) {
        val ready = state as? UiState.Ready
        root.part<View>(R.id.opening).showIf(ready == null)
        root.part<View>(R.id.tabs).showIf(ready != null)
        for ((page, ids) in views) {
            root.part<View>(ids.first).showIf(page == ready?.page)
            root.text(ids.second).isSelected = page == ready?.page
        }
        showNotice(ready?.notice)
        if (ready == null) showOpening((state as? UiState.Refused)?.problem) else showReady(ready)
    }

    private fun showReady(ready: UiState.Ready) {
        classify.show(ready)
        tasks.show(ready)
        benchmark.show(ready.benchmark)
        settings.show(ready)
    }

    private fun showOpening(problem: Problem?) {
        root.part<View>(R.id.opening_progress).showIf(problem == null)
        for (id in listOf(R.id.opening_title, R.id.opening_hint)) root.text(id).showIf(problem != null)
        root.text(R.id.opening_title).setText(R.string.refused_title)
        root.text(R.id.opening_hint).setText(R.string.refused_hint)
        root.text(R.id.opening_text).text = problem?.say(context) ?: context.getString(R.string.opening)
    }

    private fun showNotice(notice: Notice?) {
        val view = root.part<View>(R.id.notice)
        view.showIf(notice != null)
        val isBad = notice is Notice.Failed
        view.setBackgroundResource(if (isBad) R.drawable.warning_card else R.drawable.note_card)
        root.text(R.id.notice_text).setTextColor(context.getColor(if (isBad) R.color.warning else R.color.text))
        root.text(R.id.notice_text).text = when (notice) {
            is Notice.Failed -> notice.problem.say(context)
            is Notice.Done -> notice.words.say(context)
            null -> ""
        }
    }
}
