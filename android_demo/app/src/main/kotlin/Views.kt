package patchdeploy.demo

import android.content.Context
import android.text.format.Formatter
import android.view.LayoutInflater
import android.view.View
import android.view.ViewGroup
import android.widget.Button
import android.widget.RadioButton
import android.widget.TextView
import java.text.NumberFormat

/** What pages have in common: texts, chips, figures in the language of the screen. */

/** A view that the layout has. */
internal fun <V : View> View.part(id: Int): V = findViewById<V>(id)!!

internal fun View.text(id: Int): TextView = part(id)

internal fun View.showIf(isShown: Boolean) {
    visibility = if (isShown) View.VISIBLE else View.GONE
}

/** Names in an accessibility service's words what a text that can be tapped is. */
internal fun View.announceAs(kind: Class<*>) {
    accessibilityDelegate = object : View.AccessibilityDelegate() {
        override fun onInitializeAccessibilityNodeInfo(host: View, info: android.view.accessibility.AccessibilityNodeInfo) {
            super.onInitializeAccessibilityNodeInfo(host, info)
            info.className = kind.name
            info.isCheckable = kind == RadioButton::class.java
            info.isChecked = kind == RadioButton::class.java && host.isSelected
        }
    }
}

internal fun View.onTap(action: () -> Unit) {
    if (accessibilityDelegate == null) announceAs(Button::class.java)
    setOnClickListener { action() }
}

/**
 * A choice.
 *
 * @property description what an accessibility service reads; null: the text.
 */
internal class Chip(val text: String, val isSelected: Boolean, val isEnabled: Boolean = true, val description: String? = null, val onTap: () -> Unit)

/** [chips] in [group], whose views stay where they are: what has the focus keeps it. */
internal fun showChips(group: ViewGroup, chips: List<Chip>) {
    keepCount(group, chips.size, R.layout.chip)
    for ((k, chip) in chips.withIndex()) {
        val view = group.getChildAt(k) as TextView
        view.text = chip.text
        view.contentDescription = chip.description
        view.isSelected = chip.isSelected
        view.isEnabled = chip.isEnabled
        view.alpha = if (chip.isEnabled) 1f else 0.45f
        view.announceAs(RadioButton::class.java)
        view.onTap(chip.onTap)
    }
}

/** Exactly [count] children of [layout]. */
internal fun keepCount(group: ViewGroup, count: Int, layout: Int) {
    while (group.childCount > count) group.removeViewAt(group.childCount - 1)
    val inflater = LayoutInflater.from(group.context)
    while (group.childCount < count) inflater.inflate(layout, group, true)
}

internal fun milliseconds(context: Context, ms: Double): String = context.getString(R.string.milliseconds, number(ms))

/** Two digits after the point below 10, one below 100, else none. */
internal fun number(value: Double): String = NumberFormat.getInstance().run {
    maximumFractionDigits = if (value < 10) 2 else if (value < 100) 1 else 0
    minimumFractionDigits = maximumFractionDigits
    format(value)
}

internal fun bytes(context: Context, count: Long): String = Formatter.formatShortFileSize(context, count)

internal fun percent(share: Float): String =
    NumberFormat.getPercentInstance().run {
        maximumFractionDigits = 1
        minimumFractionDigits = 1
        format(share.toDouble())
    }
