package patchdeploy.demo

import android.graphics.Bitmap
import patchdeploy.patchkit.engine.Prediction

/** All that the screen shows; a value. */
sealed interface UiState {
    /** The bundle is being opened. */
    data object Opening : UiState

    /** Nothing runs: the app's own bundle cannot be used. */
    data class Refused(val problem: Problem) : UiState

    /**
     * @property answer null before the first picture.
     * @property notice what just happened or went wrong, until it is dismissed.
     * @property samples names of the pictures that ship.
     */
    data class Ready(
        val page: Page,
        val settings: Settings,
        val runtimes: List<RuntimeOffer>,
        val runtime: String,
        val tasks: List<TaskInfo>,
        val samples: List<String>,
        val selection: Selection,
        val source: Source,
        val picture: Bitmap? = null,
        val answer: Answer? = null,
        val parity: Parity = Parity.Unknown,
        val notice: Notice? = null,
        val transfer: Transfer? = null,
        val benchmark: BenchmarkState = BenchmarkState.Idle,
    ) : UiState {
        val task: TaskInfo? get() = tasks.find { it.task == selection.task }
    }
}

enum class Page { CLASSIFY, TASKS, BENCHMARK, SETTINGS }

/** @property resolution side in pixels; null: the cascade chooses. */
data class Selection(val task: String, val resolution: Int?)

/** Where pictures come from. */
sealed interface Source {
    data class Sample(val name: String) : Source
    data class Picture(val uri: String) : Source
    data object Camera : Source
}

/** @property runtime as [RuntimeOffer.id] has it. */
data class Settings(val runtime: String, val threads: Int)

/**
 * A task, and the patch that it runs.
 *
 * @property sequence of its patch; null where none of the task runs.
 * @property signers the first digits of each key.
 * @property expires Unix seconds; 0: never.
 * @property isInstalled it came after the app.
 * @property canRevert a patch before it is there.
 * @property wholeBytes of the model that the patch takes the place of.
 * @property problem why a patch of it is not used.
 */
data class TaskInfo(
    val task: String,
    val sequence: Long?,
    val labels: Int,
    val resolutions: List<Int>,
    val hasCascade: Boolean,
    val patchBytes: Int,
    val wholeBytes: Int,
    val signers: List<String>,
    val expires: Long,
    val isInstalled: Boolean,
    val canRevert: Boolean,
    val problem: Problem?,
)

/** What came of a picture. */
sealed interface Answer {
    /**
     * @property swapMs of the last model that had to be loaded.
     * @property residentBytes estimated memory of all loaded models.
     */
    data class Found(val prediction: Prediction, val swapMs: Double, val residentBytes: Long) : Answer
    data class Failed(val problem: Problem) : Answer
}

/** The self-test that travels with the task's patch, on the runtime of this phone. */
sealed interface Parity {
    data object Unknown : Parity
    data object Running : Parity

    /** @property worstLsb largest difference of a score; null where the patch carries no self-test. */
    data class Passed(val worstLsb: Int?) : Parity
    data class Failed(val problem: Problem) : Parity
}

/** A line for the user. */
sealed interface Notice {
    data class Done(val words: Words) : Notice
    data class Failed(val problem: Problem) : Notice
}

/**
 * A download.
 *
 * @property totalBytes null where the server does not say.
 * @property failure null while it runs; else why it stopped: it can be resumed.
 */
data class Transfer(val url: String, val bytes: Long, val totalBytes: Long?, val failure: Problem? = null)

sealed interface BenchmarkState {
    data object Idle : BenchmarkState
    data class Running(val done: Int, val total: Int) : BenchmarkState
    data class Done(val report: BenchmarkReport) : BenchmarkState
    data class Failed(val problem: Problem) : BenchmarkState
}
