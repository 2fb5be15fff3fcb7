package patchdeploy.demo

import java.nio.file.Path
import patchdeploy.patchkit.PatchkitException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.bundle.BundleFiles
import patchdeploy.patchkit.engine.Engine
import patchdeploy.patchkit.engine.Prediction
import patchdeploy.patchkit.engine.openStore
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.store.Files
import patchdeploy.patchkit.store.Installed
import patchdeploy.patchkit.store.PatchStatus

/** Memory that loaded models may hold together. */
private const val BUDGET_BYTES = 64L shl 20
private const val KEY_DIGITS = 8

/**
 * The bundle, its engine and its store, over one runtime.
 *
 * In: files of the bundle, settings. Out: answers, and the list of tasks. Everything here may take its
 * time and throws patchkit's exceptions; [Demo] calls it away from the main thread.
 *
 * @throws PatchkitException the bundle, the runtime or a patch of the bundle cannot be used.
 */
class Session(files: BundleFiles, kind: RuntimeKind, threads: Int, storeFolder: Path, disk: Files) : AutoCloseable {
    val bundle: Bundle = Bundle.open(files, kind.format)
    private val backend = kind.open(bundle.base, threads)
    private val store = openStore(storeFolder, bundle, backend, files = disk)
    val engine: Engine = Engine(bundle, backend, BUDGET_BYTES, store)

    /** By the cascade where [Selection.resolution] is null. */
    fun classify(pixels: Pixels, selection: Selection): Prediction = selection.resolution.let {
        if (it == null) engine.classifyByCascade(pixels, selection.task) else engine.classify(pixels, selection.task, it)
    }

    /** Check, keep, make active, and run from now on. */
    fun install(data: ByteArray): Installed = store.install(data).also { engine.refresh() }

    /** Back to the patch before. */
    fun revert(task: String): Installed = store.revert(task).also { engine.refresh() }

    /** Remove every patch file that is neither active nor the one before; how many. */
    fun cleanUp(): Int = if (store.isThere) store.cleanUp().size else 0

    /** Every task that runs or could not, sorted. */
    fun tasks(): List<TaskInfo> {
        val revertible = previousTasks()
        return (engine.tasks + engine.problems.keys).distinct().sorted().map { info(it, it in revertible) }
    }

    private fun previousTasks(): Set<String> = try {
        if (!store.isThere) emptySet() else store.list().filter { it.status == PatchStatus.PREVIOUS }.mapNotNull { it.task }.toSet()
    } catch (_: PatchkitException) { // engine.storeProblem has it
        emptySet()
    }

    private fun info(task: String, canRevert: Boolean): TaskInfo {
        val problem = engine.problems[task]?.let(::problemOf)
        val version = if (task in engine.tasks) engine.version(task) else null
        return TaskInfo(
            task = task,
            sequence = version?.sequence,
            labels = version?.labels?.size ?: 0,
            resolutions = version?.resolutions.orEmpty(),
            hasCascade = version?.cascade != null,
            patchBytes = version?.patchBytes ?: 0,
            wholeBytes = bundle.base.size,
            signers = version?.signedBy.orEmpty().mapNotNull(::keyDigits),
            expires = version?.expires ?: 0,
            isInstalled = version?.fromStore == true,
            canRevert = canRevert,
            problem = problem,
        )
    }

    private fun keyDigits(index: Int): String? = bundle.manifest.trusted?.keys?.getOrNull(index)?.hex?.take(KEY_DIGITS)

    override fun close(): Unit = engine.close()
}
