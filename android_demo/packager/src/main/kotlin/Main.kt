package patchdeploy.packager

import java.nio.file.Files

/**
 * What the Android Gradle plugin does elsewhere, for Maven: two commands, run by exec-maven-plugin.
 *
 * `resources` before the sources are compiled (it writes R.java), `apk` after.
 */
public fun main(arguments: Array<String>) {
    val rest = arguments.drop(1)
    when (arguments.firstOrNull()) {
        "resources" -> linkResources(rest)
        "apk" -> makeApk(rest)
        else -> throw UsageException("command '${arguments.firstOrNull()}'; there are resources and apk")
    }
}

private fun linkResources(arguments: List<String>) {
    val names = setOf(
        "work", "android-jar", "min-sdk", "target-sdk", "version-code", "version-name",
        "res", "assets", "manifest", "java", "out",
    )
    val options = Options(arguments, names)
    val sdks = Sdks(
        options.number("min-sdk"), options.number("target-sdk"), options.number("version-code"), options.text("version-name"),
    )
    Resources(options.path("work"), options.path("android-jar"), sdks).link(
        options.path("res"), options.path("assets"), options.path("manifest"), options.path("java"), options.path("out"),
    )
}

private fun makeApk(arguments: List<String>) {
    val names = setOf("work", "classes", "rules", "natives", "resources", "android-jar", "min-sdk", "keystore", "out")
    val options = Options(arguments, names)
    val work = options.path("work").also(Files::createDirectories)
    val leastSdk = options.number("min-sdk")
    val dex = shrinkToDex(options.paths("classes"), options.path("rules"), options.path("android-jar"), leastSdk, work)
    val unsigned = work.resolve("unsigned.apk")
    assemble(options.path("resources"), dex, options.paths("natives"), unsigned)
    sign(unsigned, DebugKey.loadOrMake(options.path("keystore")), leastSdk, options.path("out"))
}
