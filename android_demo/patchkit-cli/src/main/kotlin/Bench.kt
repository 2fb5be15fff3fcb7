package patchdeploy.cli

import java.nio.ByteBuffer
import patchdeploy.patchkit.coding.CodingTable
import patchdeploy.patchkit.image.Pixels
import patchdeploy.patchkit.image.Preprocessing
import patchdeploy.patchkit.image.Plane
import patchdeploy.patchkit.image.ResizeKind
import patchdeploy.patchkit.image.Yuv420
import patchdeploy.patchkit.image.resizeImage
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.slots.SlotTable
import patchdeploy.patchkit.slots.setSlots

/**
 * Times of what patchkit does for each patch and each picture, warm, in milliseconds: median and
 * 90th percentile of [ROUNDS] after [WARM_UP], one resolution as an app takes it.
 */
private const val WARM_UP = 300
private const val ROUNDS = 200

internal fun bench(paths: List<String>, trust: String?): Map<String, Any?> {
    val patch = readPatch(paths[0])
    val table = CodingTable.fromBytes(read(paths[1]))
    val base = read(paths[2])
    val slots = SlotTable.fromJson(read(paths[3]))
    val policy = policy(trust)
    val opened = openPatch(patch, policy, table)
    val px = opened.checked.header.resolutions.first()
    val values = opened.patch.values.getValue(px)
    val target = ByteBuffer.allocateDirect(base.size)
    val camera = Pixels(640, 480, ByteArray(640 * 480 * 3) { (it * 31 % 251).toByte() })
    val frame = Yuv420(
        camera.width, camera.height, Plane(samples(640, 480), 640, 1),
        Plane(samples(640, 240), 640, 2), Plane(samples(640, 240), 640, 2),
    )
    return mapOf(
        "java" to System.getProperty("java.vm.name") + " " + System.getProperty("java.version"),
        "processors" to Runtime.getRuntime().availableProcessors(),
        "patch_bytes" to patch.size,
        "base_bytes" to base.size,
        "px" to px,
        "check_and_decode_ms" to times { openPatch(patch, policy, table, px) },
        "overlay_ms" to times {
            val copy = target.duplicate()
            copy.put(base)
            setSlots(target, slots, px, values)
        },
        "frame_640x480_turned_to_rgb_ms" to times { frame.toPixels(rotationDegrees = 90) },
        "image_640x480_to_224_px_ms" to times { resizeImage(camera, 224, Preprocessing(ResizeKind.CROP)) },
    )
}

private fun samples(width: Int, height: Int): ByteBuffer =
    ByteBuffer.allocateDirect(width * height).apply { for (k in 0 until capacity()) put(k, (k * 31 % 251).toByte()) }

private fun times(work: () -> Unit): Map<String, Double> {
    repeat(WARM_UP) { work() }
    val found = DoubleArray(ROUNDS) {
        val start = System.nanoTime()
        work()
        (System.nanoTime() - start) / 1e6
    }
    found.sort()
    return mapOf("median" to rounded(found[ROUNDS / 2]), "p90" to rounded(found[ROUNDS * 9 / 10]))
}

private fun rounded(ms: Double): Double = Math.rint(ms * 1000) / 1000
