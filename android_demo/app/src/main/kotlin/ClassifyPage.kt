package patchdeploy.demo

import android.graphics.Bitmap
import android.view.View
import android.view.ViewGroup
import android.widget.ImageView
import android.widget.LinearLayout
import android.widget.ProgressBar

private const val SHOWN_ANSWERS = 5

/** Picture, choices, answers and what they cost. */
internal class ClassifyPage(private val root: View, private val demo: Demo, private val actions: Actions, sample: (String) -> Bitmap) {
    private val context = root.context
    private val picture: ImageView = root.part(R.id.picture)
    private val bars: ViewGroup = root.part(R.id.bars)
    private val costs: ViewGroup = root.part(R.id.costs)
    private val samples = Samples(root.part(R.id.samples), sample) { demo.choose(Source.Sample(it)) }

    init {
        root.text(R.id.camera).onTap(actions::useCamera)
        root.text(R.id.gallery).onTap(actions::pickPicture)
    }

    fun show(state: UiState.Ready) {
        picture.setImageBitmap(state.picture)
        samples.show(state.samples, (state.source as? Source.Sample)?.name)
        root.text(R.id.camera).isSelected = state.source == Source.Camera
        root.text(R.id.gallery).isSelected = state.source is Source.Picture
        showChoices(state)
        when (val answer = state.answer) {
            null -> showNothing(context.getString(R.string.waiting))
            is Answer.Failed -> showNothing(answer.problem.say(context))
            is Answer.Found -> showAnswer(state, answer)
        }
        showPatch(state)
    }

    private fun showChoices(state: UiState.Ready) {
        showChips(
            root.part(R.id.task_chips),
            state.tasks.filter { it.sequence != null }.map { Chip(it.task, it.task == state.selection.task) { demo.selectTask(it.task) } },
        )
        val task = state.task ?: return
        val chosen = state.selection.resolution
        val sides = task.resolutions.map { px ->
            Chip(context.getString(R.string.pixels, px), px == chosen) { demo.selectResolution(px) }
        }
        val description = context.getString(R.string.auto_description)
        val auto = Chip(context.getString(R.string.auto), chosen == null, task.hasCascade, description) { demo.selectResolution(null) }
        showChips(root.part(R.id.resolution_chips), sides + auto)
    }

    private fun showNothing(words: String) {
        root.text(R.id.answer_title).text = words
        keepCount(bars, 0, R.layout.row_bar)
        keepCount(costs, 0, R.layout.item_figure)
    }

    private fun showAnswer(state: UiState.Ready, answer: Answer.Found) {
        val prediction = answer.prediction
        val title = if (state.selection.resolution == null) R.string.answer_by_cascade else R.string.answer_at
        root.text(R.id.answer_title).text = context.getString(title, prediction.resolution)
        val best = prediction.top(SHOWN_ANSWERS)
        keepCount(bars, best.size, R.layout.row_bar)
        for ((k, one) in best.withIndex()) {
            val row = bars.getChildAt(k)
            row.text(R.id.label).text = one.label
            row.text(R.id.share).text = percent(one.probability)
            row.part<ProgressBar>(R.id.bar).progress = Math.round(one.probability * 1000)
            row.contentDescription = context.getString(R.string.answer_description, one.label, percent(one.probability))
        }
        showCosts(answer)
    }

    private fun showCosts(answer: Answer.Found) {
        val times = answer.prediction.times
        val figures = listOf(
            R.string.cost_prepare to milliseconds(context, times.preMs),
            R.string.cost_inference to milliseconds(context, times.inferenceMs),
            R.string.cost_finish to milliseconds(context, times.postMs),
            R.string.cost_swap to milliseconds(context, answer.swapMs),
            R.string.cost_loaded to bytes(context, answer.residentBytes),
        )
        keepCount(costs, figures.size, R.layout.item_figure)
        for ((k, figure) in figures.withIndex()) {
            val (name, value) = figure
            val item = costs.getChildAt(k)
            item.text(R.id.name).setText(name)
            item.text(R.id.value).text = value
        }
    }

    private fun showPatch(state: UiState.Ready) {
        val task = state.task ?: return
        root.part<ProgressBar>(R.id.patch_share).progress = (1000L * task.patchBytes / task.wholeBytes).toInt().coerceAtLeast(1)
        root.text(R.id.patch_beside_model).text = context.getString(
            R.string.patch_beside_model, bytes(context, task.patchBytes.toLong()), bytes(context, task.wholeBytes.toLong()),
        )
        root.text(R.id.parity).text = when (val parity = state.parity) {
            Parity.Unknown, Parity.Running -> context.getString(R.string.parity_running, state.runtime)
            is Parity.Failed -> context.getString(R.string.parity_failed, parity.problem.say(context))
            is Parity.Passed -> parity.worstLsb?.let { context.getString(R.string.parity_passed, state.runtime, it) }
                ?: context.getString(R.string.parity_none)
        }
    }
}

/** Thumbnails of the pictures that ship, behind the other sources. */
private class Samples(private val row: LinearLayout, private val load: (String) -> Bitmap, private val onTap: (String) -> Unit) {
    private var shown: List<String>? = null

    fun show(names: List<String>, selected: String?) {
        if (names != shown) fill(names)
        for (k in 0 until row.childCount) row.getChildAt(k).let { if (it.tag != null) it.isSelected = it.tag == selected }
    }

    private fun fill(names: List<String>) {
        shown = names
        val px = row.resources.getDimensionPixelSize(R.dimen.sample)
        val gap = row.resources.getDimensionPixelSize(R.dimen.half_gap)
        for (name in names) {
            val view = ImageView(row.context).apply {
                tag = name
                setImageBitmap(load(name))
                setBackgroundResource(R.drawable.sample_frame)
                setPadding(gap / 2, gap / 2, gap / 2, gap / 2)
                scaleType = ImageView.ScaleType.CENTER_CROP
                isFocusable = true
                contentDescription = context.getString(R.string.sample, spoken(name))
                announceAs(android.widget.RadioButton::class.java)
                setOnClickListener { onTap(name) }
            }
            row.addView(view, LinearLayout.LayoutParams(px, px).apply { marginEnd = gap })
        }
    }
}

/** "digits-2-7.png" as "digits, 7". */
internal fun spoken(name: String): String =
    name.removeSuffix(".png").split('-', limit = 3).let { parts -> if (parts.size == 3) "${parts[0]}, ${parts[2]}" else parts[0] }
