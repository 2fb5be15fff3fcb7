package patchdeploy.cli

import java.nio.ByteBuffer
import java.nio.file.Path
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.bundle.FolderFiles
import patchdeploy.patchkit.engine.Engine
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.image.Preprocessing
import patchdeploy.patchkit.image.ResizeKind
import patchdeploy.patchkit.image.resizeImage
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.sha256Hex
import patchdeploy.patchkit.slots.BaseFile
import patchdeploy.patchkit.slots.PatchValues
import patchdeploy.patchkit.slots.SlotTable

/**
 * Times of what patchkit does for each patch and each picture, in milliseconds: median and 90th
 * percentile of [ROUNDS] after [WARM_UP]; a swap beside the loading of a whole model, turn by turn.
 */
private const val WARM_UP = 300
private const val ROUNDS = 200
private const val LOADS = 60

internal fun bench(folder: String, task: String, runtime: RuntimeName, threads: Int): Map<String, Any?> {
    val bundle = Bundle.open(FolderFiles(Path.of(folder)), runtime.format)
    val patch = bundle.patchFile(task)
    val px = bundle.task(task).resolutions.last()
    val values = openPatch(patch, bundle.policy(task), bundle.table).patch.values.getValue(px)
    val target = ByteBuffer.allocateDirect(bundle.base.size)
    val camera = Pixels(640, 480, ByteArray(640 * 480 * 3) { (it * 31 % 251).toByte() })
    val found = mapOf(
        "java" to System.getProperty("java.vm.name") + " " + System.getProperty("java.version"),
        "processors" to Runtime.getRuntime().availableProcessors(),
        "task" to task,
        "px" to px,
        "threads" to threads,
        "patch_bytes" to patch.size,
        "base_bytes" to bundle.base.size,
        "open_bundle_ms" to times(WARM_UP / 10, ROUNDS / 10) { Bundle.open(FolderFiles(Path.of(folder)), runtime.format) },
        "check_and_decode_ms" to times { openPatch(patch, bundle.policy(task), bundle.table, px) },
        "overlay_ms" to times { bundle.base.renderInto(target, values, px) },
        "image_640x480_to_224_px_ms" to times { resizeImage(camera, 224, Preprocessing(ResizeKind.CROP)) },
    )
    return found + swaps(bundle, task, px, values, runtime, threads)
}

/** A swap to what is resident, a swap that loads, and the loading of the same model as a file alone. */
private fun swaps(
    bundle: Bundle,
    task: String,
    px: Int,
    values: PatchValues,
    runtime: RuntimeName,
    threads: Int,
): Map<String, Any?> {
    val whole = runtime.make(wholeModel(bundle.base, values, px), threads)
    Engine(bundle, runtime.make(bundle.base, threads)).use { engine ->
        val cold = DoubleArray(LOADS)
        val separate = DoubleArray(LOADS)
        for (round in -LOADS / 2 until LOADS) {
            engine.evict(task, px)
            val swap = milliseconds { engine.prewarm(task, px) }
            var resident: AutoCloseable? = null
            val load = milliseconds { resident = whole.load(values, px) }
            resident?.close()
            if (round >= 0) {
                cold[round] = swap
                separate[round] = load
            }
        }
        val ratios = DoubleArray(LOADS) { cold[it] / separate[it] }
        return mapOf(
            "runtime" to engine.runtime,
            "resident_swap_ms" to times { engine.prewarm(task, px) },
            "cold_swap_ms" to summary(cold),
            "separate_model_load_ms" to summary(separate),
            "cold_swap_over_separate_load" to summary(ratios),
        )
    }
}

/** The model of a task as a file that has no slots: what an app would ship for it alone. */
private fun wholeModel(base: BaseFile, values: PatchValues, px: Int): BaseFile {
    val model = ByteBuffer.allocate(base.size).also { base.renderInto(it, values, px) }.array()
    val table = mapOf(
        "format" to 1,
        "runtime" to "whole",
        "base_sha256" to sha256Hex(model),
        "base_bytes" to model.size,
        "resolutions" to emptyList<Int>(),
        "slot_fields" to SLOT_FIELDS,
        "slots" to emptyList<Any>(),
        "views" to emptyMap<String, Any>(),
    )
    return BaseFile(model, SlotTable.fromJson(toJson(table).toByteArray()))
}

private val SLOT_FIELDS = listOf(
    "site", "kind", "resolution", "offset_bytes", "start", "count", "dtype", "x_index", "layout", "shape", "name",
)

private fun milliseconds(work: () -> Unit): Double {
    val start = System.nanoTime()
    work()
    return (System.nanoTime() - start) / 1e6
}

private fun times(warmUp: Int = WARM_UP, rounds: Int = ROUNDS, work: () -> Unit): Map<String, Double> {
    repeat(warmUp) { work() }
    return summary(DoubleArray(rounds) { milliseconds(work) })
}

private fun summary(found: DoubleArray): Map<String, Double> {
    val sorted = found.sortedArray()
    return mapOf("median" to rounded(sorted[sorted.size / 2]), "p90" to rounded(sorted[sorted.size * 9 / 10]))
}

private fun rounded(ms: Double): Double = Math.rint(ms * 10_000) / 10_000
