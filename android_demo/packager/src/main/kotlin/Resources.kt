package patchdeploy.packager

import java.nio.file.Files
import java.nio.file.Path
import java.nio.file.StandardCopyOption

/** A tool that refused its input; the message is what it said. */
public class ToolException(message: String) : RuntimeException(message)

/**
 * Resources and manifest of an app as its APK has them.
 *
 * In: a folder `res`, a folder of assets, AndroidManifest.xml. Out: a zip with the compiled resources and
 * every asset, and R.java. The tool is aapt2, from apktool's jar.
 *
 * @property work for files that are made on the way.
 * @property androidJar the platform's classes and resources.
 */
public class Resources(private val work: Path, private val androidJar: Path, private val sdks: Sdks) {
    /** Every asset is stored without compression, so that it can be mapped. */
    public fun link(res: Path, assets: Path, manifest: Path, java: Path, out: Path) {
        Files.createDirectories(work)
        Files.createDirectories(java)
        val compiled = work.resolve("res.zip")
        val aapt2 = unpackTool()
        runTool(listOf(aapt2, "compile", "--dir", res, "-o", compiled))
        runTool(
            listOf(aapt2, "link", "-o", out, "-I", androidJar, "--manifest", manifest, "-A", assets) +
                listOf("--java", java, "--min-sdk-version", sdks.least, "--target-sdk-version", sdks.target) +
                listOf("--version-code", sdks.versionCode, "--version-name", sdks.versionName) +
                listOf("--auto-add-overlay", "--no-auto-version") + listedAssets(assets) + listOf(compiled),
        )
    }

    /** aapt2 stores what ends so: each ending that an asset has. */
    private fun listedAssets(assets: Path): List<String> = Files.walk(assets).use { files ->
        files.filter(Files::isRegularFile).map { it.fileName.toString().substringAfterLast('.', "") }
            .distinct().sorted().toList().flatMap { listOf("-0", it) }
    }

    private fun unpackTool(): Path {
        val tool = work.resolve("aapt2")
        if (Files.exists(tool)) return tool
        val packed = Resources::class.java.getResourceAsStream(TOOL)
            ?: throw ToolException("no $TOOL on the class path; the packager's pom names the jar that has it")
        packed.use { Files.copy(it, tool, StandardCopyOption.REPLACE_EXISTING) }
        tool.toFile().setExecutable(true)
        return tool
    }

    private companion object {
        const val TOOL = "/prebuilt/linux/aapt2_64"
    }
}

/**
 * @property least lowest Android API level.
 * @property target the level that the app was made for.
 */
public data class Sdks(val least: Int, val target: Int, val versionCode: Int, val versionName: String)

/** @throws ToolException it ended with another status than 0. */
public fun runTool(command: List<Any>) {
    val process = ProcessBuilder(command.map(Any::toString)).redirectErrorStream(true).start()
    val said = process.inputStream.bufferedReader().readText()
    val status = process.waitFor()
    if (status != 0) throw ToolException("${command.first()} ended with $status: $said")
}
