package patchdeploy.demo

import android.graphics.Bitmap
import java.util.concurrent.ExecutorService
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean
import patchdeploy.patchkit.image.Pixels

/**
 * The app without its screen: it owns the engine, and every change of [UiState] is made here.
 *
 * In: what the user does, frames, Android's calls. Out: states, on the main thread. Pictures are answered
 * on one thread, everything that changes or tests patches runs on another; neither is the main one.
 * It lives as long as the process, so a rotation does not touch it.
 */
class Demo(private val platform: Platform) {
    private val answering: ExecutorService = Executors.newSingleThreadExecutor { Thread(it, "answers") }
    private val changing: ExecutorService = Executors.newSingleThreadExecutor { Thread(it, "patches") }
    private val isBusy = AtomicBoolean(false)
    private var listener: ((UiState) -> Unit)? = null
    private var frames: FrameSource? = null
    private var isVisible = false
    private var wished: Wish? = null

    @Volatile
    private var session: Session? = null

    @Volatile
    private var selection: Selection? = null

    @Volatile
    private var lastPicture: Picture? = null

    @Volatile
    private var lastSwapMs = 0.0

    internal val installer = Installer(platform, this)
    internal val benchmarks = Benchmarks(platform, this)

    /** Main thread alone. */
    var state: UiState = UiState.Opening
        private set

    init {
        open(platform.settings.read())
    }

    /** [show] gets the state now and at every change; null: nobody looks. Main thread. */
    fun observe(show: ((UiState) -> Unit)?) {
        listener = show
        show?.invoke(state)
    }

    /** Any thread; [change] runs on the main one, and not where the bundle was refused. */
    internal fun update(change: (UiState.Ready) -> UiState.Ready) {
        platform.main.execute { (state as? UiState.Ready)?.let { set(change(it)) } }
    }

    private fun set(new: UiState) {
        state = new
        listener?.invoke(new)
    }

    /** On the thread that changes patches; what it throws becomes a notice. */
    internal fun change(work: (Session) -> Unit): Unit = changing.execute {
        try {
            session?.let(work)
        } catch (error: Exception) {
            fail(error)
        } catch (error: OutOfMemoryError) {
            fail(error)
        }
    }

    internal fun fail(error: Throwable): Unit = update { it.copy(notice = Notice.Failed(problemOf(error))) }

    // What the user chooses.

    fun showPage(page: Page): Unit = update { it.copy(page = page) }

    fun dismissNotice(): Unit = update { it.copy(notice = null) }

    fun say(words: Words): Unit = update { it.copy(notice = Notice.Done(words)) }

    fun selectTask(task: String): Unit = update { ready ->
        val info = ready.tasks.find { it.task == task && it.sequence != null } ?: return@update ready
        select(ready, Selection(task, keepResolution(info, ready.selection.resolution)))
    }

    fun selectResolution(resolution: Int?): Unit = update { select(it, it.selection.copy(resolution = resolution)) }

    private fun select(ready: UiState.Ready, chosen: Selection): UiState.Ready {
        if (chosen == ready.selection) return ready
        selection = chosen
        answerAgain()
        if (chosen.task != ready.selection.task) testParity()
        return ready.copy(selection = chosen)
    }

    /** Where pictures come from. The camera's permission is the activity's to ask for, before. */
    fun choose(source: Source): Unit = update { ready ->
        if (source != Source.Camera || ready.source != Source.Camera) {
            stopFrames()
            follow(source)
        }
        ready.copy(source = source)
    }

    fun changeSettings(settings: Settings) {
        update { it.copy(settings = settings) }
        platform.settings.write(settings)
        open(settings)
    }

    fun revert(task: String): Unit = change { session ->
        val done = session.revert(task)
        afterChange(session, Words(R.string.reverted, done.task, done.sequence))
    }

    fun cleanUp(): Unit = change { session ->
        afterChange(session, Words(R.string.cleaned_up, session.cleanUp()))
    }

    /** Every list again, the picture answered again, and [words] for the user. */
    internal fun afterChange(session: Session, words: Words) {
        val tasks = session.tasks()
        update { it.copy(tasks = tasks, notice = Notice.Done(words)).let(::withValidSelection) }
        answerAgain()
        testParity()
    }

    // What Android says.

    /** The screen is there: a camera that was chosen runs. */
    fun onVisible() {
        isVisible = true
        update { ready -> ready.also { if (it.source == Source.Camera && frames == null) follow(Source.Camera) } }
    }

    fun onHidden() {
        isVisible = false
        stopFrames()
    }

    /** Android runs low: every model but the last goes. */
    fun onLowMemory(): Unit = changing.execute { session?.engine?.trim() }

    fun onCameraRefused(): Unit = onSourceLost(Problem(Words(R.string.camera_refused)))

    /** Back to a picture that ships. */
    internal fun onSourceLost(problem: Problem) {
        platform.main.execute { stopFrames() }
        update { ready ->
            val sample = sampleFor(ready.selection.task)
            if (sample != null) follow(sample)
            ready.copy(source = sample ?: ready.source, notice = Notice.Failed(problem))
        }
    }

    /** What [restore] takes after the process has ended. */
    fun save(): Wish? = (state as? UiState.Ready)?.let { Wish(it.page, it.selection, it.source) }

    /** A state of an earlier process; what of it is possible no more is left out. */
    fun restore(wish: Wish) {
        wished = wish
        update { grant(it) }
    }

    private fun grant(ready: UiState.Ready): UiState.Ready {
        val wish = wished ?: return ready
        wished = null
        val wanted = ready.copy(page = wish.page, selection = wish.selection, source = wish.source)
        return withValidSelection(wanted).also {
            selection = it.selection
            if (it.source != Source.Camera) stopFrames()
            follow(it.source)
            testParity()
        }
    }

    // Opening.

    private fun open(settings: Settings): Unit = changing.execute {
        try {
            val kind = RUNTIMES.first { it.offer.id == settings.runtime }
            val new = Session(platform.bundle, kind, settings.threads, platform.storeFolder, platform.disk)
            val old = session
            session = new
            old?.let { answering.execute(it::close) }
            val tasks = new.tasks()
            platform.main.execute { set(grant(readyWith(new, settings, tasks))) }
        } catch (error: Exception) {
            platform.main.execute { refuse(error) }
        }
    }

    private fun refuse(error: Exception) {
        val ready = state as? UiState.Ready
        set(if (ready == null) UiState.Refused(problemOf(error)) else ready.copy(notice = Notice.Failed(problemOf(error))))
    }

    private fun readyWith(session: Session, settings: Settings, tasks: List<TaskInfo>): UiState.Ready {
        val before = state as? UiState.Ready
        val storeProblem = session.engine.storeProblem?.let { Notice.Failed(problemOf(it)) }
        val ready = if (before == null) {
            val task = tasks.first { it.sequence != null }
            val first = Selection(task.task, task.resolutions.last())
            val sample = sampleFor(task.task) ?: Source.Camera
            follow(sample)
            UiState.Ready(
                Page.CLASSIFY, settings, RUNTIMES.map { it.offer }, session.engine.runtime, tasks,
                platform.pictures.samples, first, sample, notice = storeProblem,
            )
        } else {
            before.copy(settings = settings, runtime = session.engine.runtime, tasks = tasks, notice = storeProblem ?: before.notice)
        }
        return withValidSelection(ready).also {
            selection = it.selection
            answerAgain()
            testParity()
        }
    }

    private fun sampleFor(task: String): Source.Sample? = platform.pictures.samples
        .let { all -> all.find { it.startsWith("$task-") } ?: all.firstOrNull() }?.let(Source::Sample)

    // Pictures and answers.

    private fun follow(source: Source) {
        if (source == Source.Camera) {
            if (isVisible) frames = platform.camera().also { it.start(CameraListener()) }
        } else {
            answering.execute { show(source) }
        }
    }

    private fun stopFrames() {
        frames?.stop()
        frames = null
    }

    private fun show(source: Source) {
        try {
            val bitmap = if (source is Source.Sample) platform.pictures.sample(source.name) else platform.pictures.picked((source as Source.Picture).uri)
            answer(Picture(bitmap.toPixels(), bitmap))
        } catch (error: Exception) {
            update { it.copy(picture = null, answer = Answer.Failed(Problem(Words(R.string.problem_picture), error))) }
        }
    }

    private fun answerAgain(): Unit = answering.execute { lastPicture?.let(::answer) }

    private fun answer(picture: Picture) {
        lastPicture = picture
        val asked = selection ?: return
        val found = try {
            val session = session ?: return
            val prediction = session.classify(picture.pixels, asked)
            if (prediction.times.swapMs > 0) lastSwapMs = prediction.times.swapMs
            Answer.Found(prediction, lastSwapMs, session.engine.residentBytes)
        } catch (error: Exception) {
            Answer.Failed(problemOf(error))
        } catch (error: OutOfMemoryError) {
            session?.engine?.trim()
            Answer.Failed(problemOf(error))
        }
        update { if (it.selection == asked) it.copy(answer = found, picture = picture.bitmap) else it }
    }

    private fun testParity(): Unit = changing.execute {
        val task = selection?.task ?: return@execute
        update { it.copy(parity = Parity.Running) }
        val found = try {
            Parity.Passed(session?.engine?.selfTest(task))
        } catch (error: Exception) {
            Parity.Failed(problemOf(error))
        }
        update { if (it.selection.task == task) it.copy(parity = found) else it }
    }

    /** A frame that comes while another is answered is dropped; each is closed whatever happens. */
    private inner class CameraListener : FrameListener {
        override fun onFrame(frame: Frame) {
            val pixels = frame.use { if (isBusy.compareAndSet(false, true)) convert(it) else null } ?: return
            answering.execute {
                try {
                    answer(Picture(pixels, pixels.toBitmap()))
                } finally {
                    isBusy.set(false)
                }
            }
        }

        /** Null, and a notice, for a frame that is none. */
        private fun convert(frame: Frame): Pixels? = try {
            frame.toPixels()
        } catch (error: RuntimeException) {
            isBusy.set(false)
            fail(error)
            null
        }

        override fun onProblem(problem: Problem): Unit = onSourceLost(problem)
    }
}

/** What the engine gets, and the same for the screen. */
private class Picture(val pixels: Pixels, val bitmap: Bitmap)

/** What a screen showed, so that another process can show it again. */
data class Wish(val page: Page, val selection: Selection, val source: Source)

private fun keepResolution(task: TaskInfo, resolution: Int?): Int? = when {
    resolution == null && task.hasCascade -> null
    resolution in task.resolutions -> resolution
    else -> task.resolutions.last()
}

/** A task that is there, at a resolution that it has. */
private fun withValidSelection(ready: UiState.Ready): UiState.Ready {
    val task = ready.tasks.find { it.task == ready.selection.task && it.sequence != null }
        ?: ready.tasks.first { it.sequence != null }
    return ready.copy(selection = Selection(task.task, keepResolution(task, ready.selection.resolution)))
}
