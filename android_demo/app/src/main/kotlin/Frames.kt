package patchdeploy.demo

import patchdeploy.patchkit.image.Pixels

/**
 * Pictures that come by themselves, as a camera's do.
 *
 * In: a listener. Out: frames on a thread of the source's own, until it is stopped.
 */
interface FrameSource {
    /** Frames come until [stop]; a source that cannot start says so to [listener]. */
    fun start(listener: FrameListener)

    /** No frame comes after this returns and the source's thread has ended its last call. */
    fun stop()
}

interface FrameListener {
    /** [frame] is this listener's to close. */
    fun onFrame(frame: Frame)

    /** The source has stopped. */
    fun onProblem(problem: Problem)
}

/** One picture, of which the source has few: close it soon. */
interface Frame : AutoCloseable {
    /** Upright RGB; nothing of the frame is kept. */
    fun toPixels(): Pixels
}
