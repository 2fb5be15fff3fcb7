package patchdeploy.demo

import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.ProgressBar

/** Start, cancel, figures, export. */
internal class BenchmarkPage(private val root: View, private val demo: Demo, actions: Actions) {
    private val context = root.context
    private val groups: ViewGroup = root.part(R.id.benchmark_rows)
    private var shown: BenchmarkReport? = null

    init {
        root.text(R.id.benchmark_about).text = context.getString(R.string.benchmark_about, ROUNDS)
        root.text(R.id.benchmark_start).onTap(demo.benchmarks::start)
        root.text(R.id.benchmark_cancel).onTap(demo.benchmarks::cancel)
        root.text(R.id.benchmark_export).onTap(actions::exportBenchmark)
    }

    fun show(benchmark: BenchmarkState) {
        val running = benchmark as? BenchmarkState.Running
        root.text(R.id.benchmark_start).showIf(running == null)
        root.text(R.id.benchmark_cancel).showIf(running != null)
        root.text(R.id.benchmark_export).showIf(benchmark is BenchmarkState.Done)
        val bar = root.part<ProgressBar>(R.id.benchmark_bar)
        bar.showIf(running != null)
        if (running != null) bar.progress = 1000 * running.done / running.total
        val status = root.text(R.id.benchmark_status)
        status.showIf(running != null || benchmark is BenchmarkState.Failed)
        status.text = when (benchmark) {
            is BenchmarkState.Running -> context.getString(R.string.benchmark_running, benchmark.done + 1, benchmark.total)
            is BenchmarkState.Failed -> benchmark.problem.say(context)
            else -> ""
        }
        showReport((benchmark as? BenchmarkState.Done)?.report)
    }

    private fun showReport(report: BenchmarkReport?) {
        if (report === shown) return
        shown = report
        groups.removeAllViews()
        val inflater = LayoutInflater.from(context)
        for ((about, rows) in report?.rows.orEmpty().groupBy { Triple(it.task, it.runtime, it.threads) }) {
            val group = inflater.inflate(R.layout.group_benchmark, groups, false) as ViewGroup
            group.text(R.id.name).text = context.getString(R.string.benchmark_group, about.first, about.second, about.third)
            for (row in rows) showRow(inflater.inflate(R.layout.row_benchmark, group, false).also(group::addView), row)
            groups.addView(group)
        }
    }

    private fun showRow(view: View, row: Row) {
        val name = nameOf(row)
        view.text(R.id.name).text = name
        view.text(R.id.figures).text = context.getString(R.string.row_figures, number(row.medianMs), number(row.p90Ms))
        view.contentDescription = context.getString(R.string.row_description, name, number(row.medianMs), number(row.p90Ms))
    }

    private fun nameOf(row: Row): String = when {
        row.resolution == "cascade" -> context.getString(R.string.row_cascade)
        row.resolution == "largest" -> context.getString(R.string.row_largest)
        row.what == "cold" -> context.getString(R.string.row_cold, row.resolution)
        row.what == "resident" -> context.getString(R.string.row_resident, row.resolution)
        else -> context.getString(R.string.row_latency, row.resolution)
    }
}
