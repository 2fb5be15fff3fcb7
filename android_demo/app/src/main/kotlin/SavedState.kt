package patchdeploy.demo

import android.os.Bundle

/** [Wish] in a bundle of Android's, which outlives the process. */

internal fun write(wish: Wish, out: Bundle) {
    out.putString("page", wish.page.name)
    out.putString("task", wish.selection.task)
    out.putInt("resolution", wish.selection.resolution ?: 0)
    out.putString(
        "source",
        when (val source = wish.source) {
            is Source.Sample -> "sample:${source.name}"
            is Source.Picture -> "picture:${source.uri}"
            Source.Camera -> "camera:"
        },
    )
}

/** Null where there is none, or one of another version of the app. */
internal fun wishIn(saved: Bundle?): Wish? {
    val task = saved?.getString("task") ?: return null
    val page = Page.entries.find { it.name == saved.getString("page") } ?: return null
    val (kind, name) = saved.getString("source").orEmpty().split(':', limit = 2).takeIf { it.size == 2 } ?: return null
    val source = when (kind) {
        "sample" -> Source.Sample(name)
        "picture" -> Source.Picture(name)
        else -> Source.Camera
    }
    return Wish(page, Selection(task, saved.getInt("resolution").takeIf { it > 0 }), source)
}
