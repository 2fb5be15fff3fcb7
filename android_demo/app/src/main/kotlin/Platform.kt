package patchdeploy.demo

import android.content.Context
import android.os.Build
import android.os.Debug
import android.os.PowerManager
import java.nio.file.Path
import java.util.concurrent.Executor
import patchdeploy.patchkit.bundle.BundleFiles
import patchdeploy.patchkit.store.DiskFiles
import patchdeploy.patchkit.store.Files

/**
 * What the app has of its device; tests give other parts.
 *
 * @property bundle the app's own.
 * @property storeFolder of patches that came later; its parent exists.
 * @property downloads for files that are on their way.
 * @property camera one use of the camera.
 * @property main runs on the main thread.
 */
class Platform(
    val bundle: BundleFiles,
    val pictures: Pictures,
    val storeFolder: Path,
    val downloads: Path,
    val settings: SettingsFile,
    val camera: () -> FrameSource,
    val main: Executor,
    val device: Device,
    val disk: Files = DiskFiles(),
) {
    companion object {
        fun of(context: Context): Platform = Platform(
            bundle = AssetFiles(context.assets, "bundle"),
            pictures = Pictures(context.assets, context.contentResolver),
            storeFolder = context.filesDir.toPath().resolve("store"),
            downloads = context.cacheDir.toPath().resolve("downloads"),
            settings = SettingsFile(context.getSharedPreferences("settings", Context.MODE_PRIVATE)),
            camera = { CameraSource(context) },
            main = context.mainExecutor(),
            device = Device(context),
        )
    }
}

/** [Context.getMainExecutor] is there from API 28 on. */
private fun Context.mainExecutor(): Executor = android.os.Handler(mainLooper).let { handler -> Executor { handler.post(it) } }

/** Names and states of the device, for benchmarks. */
class Device(private val context: Context) {
    /** As `patchdeploy.measure.describe_device` has them, where Android knows them. */
    fun describe(): Map<String, Any?> = mapOf(
        "model" to "${Build.MANUFACTURER} ${Build.MODEL}",
        "cpu" to (if (Build.VERSION.SDK_INT >= 31) Build.SOC_MODEL else Build.HARDWARE),
        "cores" to Runtime.getRuntime().availableProcessors(),
        "os" to "Android ${Build.VERSION.RELEASE} (API ${Build.VERSION.SDK_INT})",
        "machine" to Build.SUPPORTED_ABIS.firstOrNull(),
        "thermal_status" to thermalStatus(),
        "power_save" to context.getSystemService(PowerManager::class.java)!!.isPowerSaveMode,
    )

    /** 0 (none) to 6 (shutdown) as PowerManager has it; null before API 29. */
    fun thermalStatus(): Int? =
        if (Build.VERSION.SDK_INT >= 29) context.getSystemService(PowerManager::class.java)!!.currentThermalStatus else null

    /** Memory that this process alone holds (proportional set size). */
    fun memoryBytes(): Long = Debug.getPss() * 1024
}
