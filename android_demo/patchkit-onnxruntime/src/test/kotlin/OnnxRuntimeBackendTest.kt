package patchdeploy.onnxruntime

import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.bundle.BundleVectors
import patchdeploy.patchkit.bundle.MapFiles
import patchdeploy.patchkit.patchfile.openPatch
import patchdeploy.patchkit.runtime.runSelfTest
import patchdeploy.patchkit.sha256Hex

class OnnxRuntimeBackendTest {
    private val bundle = Bundle.open(MapFiles(BundleVectors.files), "onnx")
    private val patch = openPatch(bundle.patchFile("second"), bundle.policy("second"), bundle.table).patch

    /** tests/runtime/test_ort_kernels.py holds the same hash. */
    @Test
    fun `the probe is the model that Python probes with`() {
        assertEquals("e7724c12b859a3ffcee20decbc0816606f710e24dd0212b5582f1ad51b6f34dd", sha256Hex(probeModel()))
    }

    @Test
    fun `the self-test's scores are Python's to the bit, with either form of kernels`() {
        for (kernels in Kernels.entries.filter { runCatching { chooseKernels(it) }.isSuccess }) {
            for (threads in 1..2) {
                val backend = OnnxRuntimeBackend(bundle.base, threads, kernels)
                assertEquals(0, runSelfTest(backend, patch, bundle.table), "$kernels on $threads threads")
            }
        }
        assertTrue(runCatching { chooseKernels(Kernels.UNSIGNED) }.isSuccess) // exact on every processor
    }

    @Test
    fun `an image of another size is refused, and a closed model runs nothing`() {
        val resident = OnnxRuntimeBackend(bundle.base).load(patch.values.getValue(16), 16)
        val image = ByteArray(16 * 16 * 3) { it.toByte() }
        assertArrayEquals(resident.run(image), resident.run(image))
        assertThrows<RuntimeBackendException> { resident.run(ByteArray(24 * 24 * 3)) }
        resident.close()
        resident.close()
        assertThrows<RuntimeBackendException> { resident.run(image) }
    }

    @Test
    fun `a model that the runtime refuses is said with its version`() {
        val error = assertThrows<RuntimeBackendException> { openSession(ByteArray(100) { 7 }, 1) }
        assertTrue(environment.version in error.message!!)
    }

    /** The variable is there before the library is: its telemetry never starts. */
    @Test
    fun `telemetry is off in this process's environment`() {
        environment
        val setting = com.sun.jna.NativeLibrary.getInstance(null).getFunction("getenv")
            .invokeString(arrayOf<Any>("ORT_DISABLE_TELEMETRY"), false)
        assertEquals("1", setting)
    }
}
