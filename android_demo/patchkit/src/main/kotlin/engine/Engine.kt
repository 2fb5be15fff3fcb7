package patchdeploy.patchkit.engine

import java.util.concurrent.locks.ReentrantLock
import java.util.logging.Logger
import kotlin.concurrent.withLock
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.UnknownTaskException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.image.resizeImage
import patchdeploy.patchkit.patchfile.decodeChecked
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.runtime.runSelfTest
import patchdeploy.patchkit.store.Store

private val LOGGER: Logger = Logger.getLogger("patchdeploy.engine")

/**
 * Pictures of any size in, labels and probabilities out, for any task of a bundle.
 *
 * A model of a task at a resolution is loaded when it is first asked for, and stays within a byte
 * budget. A loaded model never changes, so threads may classify while others swap, and while a new
 * patch takes the place of an old one.
 *
 * @param bundle opened for the format of [backend].
 * @param backend over the bundle's base file.
 * @param budgetBytes estimated memory that loaded models may hold; null: no limit. The newest always
 *   stays.
 * @param store patches that came later ([openStore]); its active patch of a task runs in the place of
 *   the bundle's unless that has a higher sequence. A store that cannot be read is logged, and the
 *   bundle's patches run.
 * @throws ConfigException [backend] runs another format.
 * @throws patchdeploy.patchkit.IntegrityException a patch of the bundle is not what its manifest says.
 */
public class Engine(
    private val bundle: Bundle,
    private val backend: Backend,
    budgetBytes: Long? = null,
    private val store: Store? = null,
) : AutoCloseable {
    private val finder = VersionFinder(bundle, store)
    private val refreshing = ReentrantLock()
    private val residents = Residents(budgetBytes)
    private val counts = CascadeCounts()

    @Volatile
    private var versions: Versions

    @Volatile
    private var isClosed = false

    /** Why the store could not be read at the last look; null where it could. */
    @Volatile
    public var storeProblem: PatchkitException? = null
        private set

    init {
        checkFormat(bundle, backend)
        val own = finder.shipped(bundle.policy())
        versions = try {
            finder.find(own)
        } catch (error: PatchkitException) {
            LOGGER.warning("the store is not read, the bundle's patches run: ${error.message}")
            storeProblem = error
            own
        }
    }

    /** The runtime and its version. */
    public val runtime: String get() = "${backend.name} ${backend.version}"

    /** Names of the tasks that can run, sorted. */
    public val tasks: List<String> get() = versions.running.keys.sorted()

    /** By task, why a patch of it cannot be used; an older one of the task may run. */
    public val problems: Map<String, PatchkitException> get() = versions.problems

    /** What is loaded, the least recently used first. */
    public val residentKeys: List<ResidentKey> get() = residents.keys()

    /** Estimated memory of what is loaded. */
    public val residentBytes: Long get() = residents.bytes()

    /**
     * What [task] runs now.
     *
     * @throws UnknownTaskException no such task.
     * @throws patchdeploy.patchkit.PatchRefusedException none of its patches may be used.
     */
    public fun version(task: String): TaskVersion {
        val now = versions
        return now.running[task] ?: throw now.problems[task] ?: UnknownTaskException(
            "no task '${task.take(80)}' in ${bundle.place}; it has ${tasks.joinToString().ifEmpty { "none" }}; " +
                "choose one of them or install a patch of it",
        )
    }

    /**
     * Classify one image.
     *
     * @param resolution side in pixels; null: the base's own where the task has it, else its largest.
     * @throws UnknownTaskException [version] has the rest.
     * @throws UnknownResolutionException the task's patch lacks it.
     * @throws RuntimeBackendException the runtime failed, or the engine is closed.
     */
    public fun classify(image: Pixels, task: String, resolution: Int? = null): Prediction {
        val version = version(task)
        return classify(image, version, choose(version, resolution))
    }

    /**
     * Classify one image by the cascade that the task's patch carries: at the first resolution that is
     * sure of it. Over a store, where a newer patch may have lost it, the default resolution answers
     * then.
     *
     * @throws ConfigException its patch has none, and there is no store.
     * @throws RuntimeBackendException as [classify].
     */
    public fun classifyByCascade(image: Pixels, task: String): Prediction {
        val version = version(task)
        if (version.cascade == null && store != null) return classify(image, version, choose(version, null))
        val rule = requireCascade(version).rule
        var times = Times(0.0, 0.0, 0.0, 0.0)
        lateinit var answer: StageAnswer
        for (stage in rule.stages) {
            answer = score(image, version, stage.resolution)
            val start = System.nanoTime()
            val isSure = rule.isSure(stage, answer.codes())
            times += answer.times.copy(postMs = answer.times.postMs + millisecondsSince(start))
            if (isSure) break
        }
        counts.add(version.sha256, answer.resolution)
        return answer.toPrediction(times)
    }

    /** By resolution, the images that this stage of [task]'s cascade has answered, of its patch of now. */
    public fun cascadeCounts(task: String): Map<Int, Long> = counts.of(version(task).sha256)

    /**
     * Load a model unless it is loaded; what runs meanwhile is not touched.
     *
     * @throws UnknownTaskException, UnknownResolutionException, RuntimeBackendException as [classify].
     */
    public fun prewarm(task: String, resolution: Int? = null): LoadTimes {
        val version = version(task)
        return load(version, choose(version, resolution)) { _, times -> times }
    }

    /** [prewarm] of every stage of [task]'s cascade; the sum of their times. */
    public fun prewarmCascade(task: String): LoadTimes {
        val version = version(task)
        val all = requireCascade(version).rule.resolutions.map { px -> load(version, px) { _, times -> times } }
        return LoadTimes(all.sumOf { it.patchMs }, all.sumOf { it.loadMs })
    }

    /**
     * The golden images of the patch that [task] runs, on this runtime.
     *
     * @return the largest difference in LSB of the scores; null where the patch carries none.
     * @throws UnknownTaskException [version] has the rest.
     * @throws patchdeploy.patchkit.PatchRefusedException codes "load" and "self_test".
     */
    public fun selfTest(task: String): Int? =
        runSelfTest(backend, decodeChecked(version(task).checked, bundle.table), bundle.table)

    /** Let go of a model; an inference that runs ends first. */
    public fun evict(task: String, resolution: Int): Unit =
        residents.evict { it.task == task && it.resolution == resolution }

    /** Let go of every model but the last used one: for Android's onTrimMemory. */
    public fun trim(): Unit = residents.evictTo(0, residents.keys().lastOrNull())

    /**
     * Look at the store, and take over what it has active: after an install, an activation, a revert.
     *
     * What is loaded of a task is loaded from the new patch before the old one is let go. An inference
     * that runs ends with the patch that it began with.
     *
     * @return the tasks that changed, sorted.
     * @throws patchdeploy.patchkit.StorageException the store's folder cannot be read; all stays as it is.
     * @throws PatchkitException its list of keys does not go with the app's; likewise.
     */
    public fun refresh(): List<String> = refreshing.withLock {
        val before = versions
        val after = try {
            finder.find(before)
        } catch (error: PatchkitException) {
            storeProblem = error
            throw error
        }
        storeProblem = null
        val kept = prewarmLike(before, after)
        versions = kept
        val current = kept.running.values.map { it.task to it.sha256 }.toSet()
        residents.evict { (it.task to it.sha256) !in current }
        (before.running.keys + kept.running.keys).filter { kept.running[it] !== before.running[it] }.sorted()
    }

    /** [after], less the tasks whose new patch cannot be loaded at the sides that are loaded now. */
    private fun prewarmLike(before: Versions, after: Versions): Versions {
        val running = after.running.toMutableMap()
        val problems = after.problems.toMutableMap()
        for ((task, px) in residents.keys().map { it.task to it.resolution }) {
            val new = running[task] ?: continue
            val old = before.running[task]
            if (new === old) continue
            try {
                load(new, nearestResolution(px, new.resolutions)) { _, _ -> }
            } catch (error: PatchkitException) {
                LOGGER.warning("task $task stays as it is: ${error.message}")
                problems[task] = error
                if (old == null) running.remove(task) else running[task] = old
            }
        }
        return Versions(running, problems)
    }

    private fun choose(version: TaskVersion, resolution: Int?): Int {
        val held = version.resolutions
        val own = bundle.manifest.inputSize
        val chosen = resolution ?: if (own in held) own else held.last()
        if (chosen !in held) {
            throw UnknownResolutionException(
                "task '${version.task}' was not exported at $chosen px; it has ${held.joinToString()}; choose " +
                    "one of them or export it again",
            )
        }
        return chosen
    }

    private fun requireCascade(version: TaskVersion) = version.cascade ?: throw ConfigException(
        "the patch of task '${version.task}' has no cascade; fit one with patchdeploy cascade, or classify at " +
            "one resolution",
    )

    private fun classify(image: Pixels, version: TaskVersion, px: Int): Prediction =
        score(image, version, px).let { it.toPrediction(it.times) }

    private fun score(image: Pixels, version: TaskVersion, px: Int): StageAnswer {
        val start = System.nanoTime()
        val input = resizeImage(image, px, bundle.manifest.preprocessing)
        val preMs = millisecondsSince(start)
        return load(version, px) { model, times ->
            val before = System.nanoTime()
            val scores = model.resident.run(input).copyOf(version.labels.size)
            StageAnswer(version, px, model, scores, Times(preMs, times.totalMs, millisecondsSince(before), 0.0))
        }
    }

    private fun <T> load(version: TaskVersion, px: Int, work: (LoadedModel, LoadTimes) -> T): T {
        if (isClosed) throw RuntimeBackendException("the engine is closed and runs nothing; open another")
        var times = LoadTimes(0.0, 0.0)
        val load = {
            val start = System.nanoTime()
            val values = version.read(px)
            val patchMs = millisecondsSince(start)
            val middle = System.nanoTime()
            val output = bundle.table.outputIndex
            val scale = values.activationScale[output]
            LoadedModel(backend.load(values, px), scale, values.activationZeroPoint[output])
                .also { times = LoadTimes(patchMs, millisecondsSince(middle)) }
        }
        return residents.use(ResidentKey(version.task, px, version.sha256), load) { work(it, times) }
    }

    /** Let go of every model; an inference that runs ends first. */
    override fun close() {
        isClosed = true
        residents.evict { true }
    }
}
