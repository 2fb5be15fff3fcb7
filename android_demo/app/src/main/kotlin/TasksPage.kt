package patchdeploy.demo

import android.view.View
import android.view.ViewGroup
import android.widget.EditText
import android.widget.ProgressBar
import java.text.DateFormat
import java.util.Date

/** What is installed, and ways to install more. */
internal class TasksPage(private val root: View, private val demo: Demo, private val actions: Actions) {
    private val context = root.context
    private val rows: ViewGroup = root.part(R.id.task_rows)
    private val address: EditText = root.part(R.id.address)

    init {
        root.text(R.id.download).onTap { demo.installer.install(address.text.toString().trim()) }
        root.text(R.id.from_file).onTap(actions::pickPatch)
        root.text(R.id.clean_up).onTap(demo::cleanUp)
        root.text(R.id.transfer_dismiss).onTap(demo.installer::dismiss)
    }

    /** An address from a link; the user taps what it is for. */
    fun suggest(url: String): Unit = address.setText(url)

    fun show(state: UiState.Ready) {
        keepCount(rows, state.tasks.size, R.layout.row_task)
        for ((k, task) in state.tasks.withIndex()) showTask(rows.getChildAt(k), task, task.task == state.selection.task)
        showTransfer(state.transfer)
    }

    private fun showTask(row: View, task: TaskInfo, isSelected: Boolean) {
        row.text(R.id.name).text = task.task
        row.text(R.id.about).text = if (task.sequence == null) context.getString(R.string.none_runs) else about(task, task.sequence)
        row.text(R.id.problem).showIf(task.problem != null)
        row.text(R.id.problem).text = task.problem?.let { context.getString(R.string.not_used, it.say(context)) }
        val use = row.text(R.id.use)
        use.isEnabled = task.sequence != null && !isSelected
        use.contentDescription = context.getString(R.string.use_description, task.task)
        use.onTap {
            demo.selectTask(task.task)
            demo.showPage(Page.CLASSIFY)
        }
        val revert = row.text(R.id.revert)
        revert.showIf(task.canRevert)
        revert.contentDescription = context.getString(R.string.revert_description, task.task)
        revert.onTap { demo.revert(task.task) }
    }

    private fun about(task: TaskInfo, sequence: Long): String = listOf(
        context.getString(R.string.version, sequence) + ", " +
            context.getString(if (task.isInstalled) R.string.from_store else R.string.from_app),
        context.getString(
            R.string.task_line, task.labels, task.resolutions.joinToString(),
            context.getString(if (task.hasCascade) R.string.with_cascade else R.string.without_cascade),
        ),
        context.getString(R.string.size_line, bytes(context, task.patchBytes.toLong()), bytes(context, task.wholeBytes.toLong())),
        if (task.signers.isEmpty()) context.getString(R.string.unsigned) else context.getString(R.string.signed_by, task.signers.joinToString()),
        if (task.expires == 0L) context.getString(R.string.expires_never) else context.getString(R.string.expires, date(task.expires)),
    ).joinToString("\n")

    private fun date(seconds: Long): String = DateFormat.getDateInstance(DateFormat.LONG).format(Date(seconds * 1000))

    private fun showTransfer(transfer: Transfer?) {
        root.part<View>(R.id.transfer).showIf(transfer != null)
        if (transfer == null) return
        val bar = root.part<ProgressBar>(R.id.transfer_bar)
        bar.isIndeterminate = transfer.totalBytes == null && transfer.failure == null
        bar.progress = if (transfer.totalBytes == null) 0 else (1000 * transfer.bytes / maxOf(transfer.totalBytes, 1)).toInt()
        val done = bytes(context, transfer.bytes)
        root.text(R.id.transfer_text).text = when {
            transfer.failure != null -> context.getString(R.string.transfer_stopped, done, transfer.failure.say(context))
            transfer.totalBytes == null -> context.getString(R.string.transfer_running, done)
            else -> context.getString(R.string.transfer_of, done, bytes(context, transfer.totalBytes))
        }
        for (id in listOf(R.id.resume, R.id.transfer_dismiss)) root.text(id).showIf(transfer.failure != null)
        root.text(R.id.resume).onTap { demo.installer.install(transfer.url) }
    }
}
