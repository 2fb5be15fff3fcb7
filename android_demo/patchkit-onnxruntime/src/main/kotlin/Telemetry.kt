package patchdeploy.onnxruntime

import com.sun.jna.NativeLibrary
import com.sun.jna.Platform

private const val VARIABLE = "ORT_DISABLE_TELEMETRY"

/**
 * Switch ONNX Runtime's telemetry off before its library is loaded.
 *
 * From 1.29 on it sends on POSIX systems unless the environment of the process says not to, and its
 * API comes too late for what is sent at start. Its code also ends a JVM with a long command line. A
 * process cannot set its environment from Java, so libc does. A value that is there stays.
 */
internal fun switchTelemetryOff() {
    if (Platform.isWindows()) return
    NativeLibrary.getInstance(null).getFunction("setenv").invokeInt(arrayOf<Any>(VARIABLE, "1", 0))
}
