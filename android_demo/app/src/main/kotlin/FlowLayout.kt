package patchdeploy.demo

import android.content.Context
import android.util.AttributeSet
import android.view.View
import android.view.ViewGroup

/** Children in lines, from the reading direction's start, as many to a line as fit. */
class FlowLayout(context: Context, attributes: AttributeSet?) : ViewGroup(context, attributes) {
    private val gap = resources.getDimensionPixelSize(R.dimen.half_gap)

    private val shown: List<View> get() = (0 until childCount).map(::getChildAt).filter { it.visibility != GONE }

    override fun onMeasure(widthSpec: Int, heightSpec: Int) {
        val width = MeasureSpec.getSize(widthSpec)
        val most = MeasureSpec.makeMeasureSpec(width, MeasureSpec.AT_MOST)
        val free = MeasureSpec.makeMeasureSpec(0, MeasureSpec.UNSPECIFIED)
        for (child in shown) child.measure(getChildMeasureSpec(most, 0, child.layoutParams.width), free)
        setMeasuredDimension(width, lines(width).sumOf(::heightOf))
    }

    private fun heightOf(line: List<View>): Int = line.maxOf { it.measuredHeight }

    private fun lines(width: Int): List<List<View>> {
        val lines = ArrayList<ArrayList<View>>()
        var used = 0
        for (child in shown) {
            if (lines.isEmpty() || used + child.measuredWidth > width) {
                lines.add(ArrayList())
                used = 0
            }
            lines.last().add(child)
            used += child.measuredWidth + gap
        }
        return lines
    }

    override fun onLayout(changed: Boolean, left: Int, top: Int, right: Int, bottom: Int) {
        val width = right - left
        var y = 0
        for (line in lines(width)) {
            var x = 0
            for (child in line) {
                val from = if (layoutDirection == LAYOUT_DIRECTION_RTL) width - x - child.measuredWidth else x
                child.layout(from, y, from + child.measuredWidth, y + child.measuredHeight)
                x += child.measuredWidth + gap
            }
            y += heightOf(line)
        }
    }
}
