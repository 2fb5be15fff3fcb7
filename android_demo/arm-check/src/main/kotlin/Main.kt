package patchdeploy.armcheck

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import kotlin.system.exitProcess

private const val LIBRARY = "lib/arm64-v8a/libjnitensorflowlite.so"

/**
 * `arm-check ROOT JOBS`: ROOT is the emulated process's folder; JOBS has a line for each model:
 * the .tflite file, pixels of a side, a file of images (uint8 [n, px, px, 3]), a file for the scores
 * (float32 [n, rows], little-endian), with tabs between. Prints the library's version and hash.
 */
fun main(arguments: Array<String>) {
    val (root, jobs) = arguments.map(::File)
    val library = unpackLibrary(root)
    LiteRt(library, root).use { runtime ->
        println("${runtime.version} ${sha256(library.readBytes())}")
        for (line in jobs.readLines()) {
            val (model, px, images, scores) = line.split('\t')
            File(scores).writeBytes(run(runtime.interpreter(File(model).readBytes()), px.toInt(), File(images)))
        }
    }
    System.out.flush()
    exitProcess(0) // unidbg leaves threads behind
}

private fun run(interpreter: LiteRt.Interpreter, px: Int, images: File): ByteArray {
    val bytes = images.readBytes()
    val size = px * px * 3
    val found = (0 until bytes.size / size).map { interpreter.run(bytes.copyOfRange(it * size, (it + 1) * size)) }
    val buffer = ByteBuffer.allocate(found.sumOf { it.size } * Float.SIZE_BYTES).order(ByteOrder.LITTLE_ENDIAN)
    found.forEach { scores -> scores.forEach(buffer::putFloat) }
    return buffer.array()
}

/** The file that an APK carries, out of the jar on the class path. */
private fun unpackLibrary(root: File): File {
    val stream = LiteRt::class.java.classLoader.getResourceAsStream(LIBRARY)
    val bytes = checkNotNull(stream) { "no $LIBRARY on the class path" }.use { it.readBytes() }
    return File(root, "libjnitensorflowlite.so").also { it.writeBytes(bytes) }
}

private fun sha256(bytes: ByteArray): String =
    MessageDigest.getInstance("SHA-256").digest(bytes).joinToString("") { "%02x".format(it) }
