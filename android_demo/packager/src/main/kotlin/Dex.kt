package patchdeploy.packager

import com.android.tools.r8.CompilationMode
import com.android.tools.r8.JdkClassFileProvider
import com.android.tools.r8.OutputMode
import com.android.tools.r8.R8
import com.android.tools.r8.R8Command
import com.android.tools.r8.origin.Origin
import java.nio.file.Files
import java.nio.file.Path
import java.util.zip.ZipFile
import java.util.zip.ZipOutputStream

/** Where the rules of a library lie in its jar. */
private const val LIBRARY_RULES = "META-INF/proguard/"

/**
 * Classes as Android runs them, less what nothing reaches.
 *
 * In: jars and folders of class files, ProGuard rules. Out: classes.dex and further ones in a folder.
 *
 * @param programs every class that the app may run.
 * @param rules what must stay by name; the rules inside of the jars count, too.
 */
public fun shrinkToDex(programs: List<Path>, rules: Path, androidJar: Path, leastSdk: Int, work: Path): List<Path> {
    val out = work.resolve("dex").also(::makeEmpty)
    val jars = programs.mapIndexed { k, place ->
        if (Files.isDirectory(place)) jarOf(place, work.resolve("classes-$k.jar")) else place
    }
    val command = R8Command.builder()
        .addProgramFiles(jars)
        .addLibraryFiles(androidJar)
        .addLibraryResourceProvider(JdkClassFileProvider.fromJdkHome(Path.of(System.getProperty("java.home"))))
        .addProguardConfigurationFiles(rules)
        .setMinApiLevel(leastSdk)
        .setMode(CompilationMode.RELEASE)
        .setOutput(out, OutputMode.DexIndexed)
    for (jar in jars) {
        val own = rulesInside(jar)
        if (own.isNotEmpty()) command.addProguardConfiguration(own, Origin.unknown())
    }
    R8.run(command.build())
    return Files.list(out).use { found -> found.filter { it.toString().endsWith(".dex") }.sorted().toList() }
}

private fun rulesInside(jar: Path): List<String> = ZipFile(jar.toFile()).use { zip ->
    zip.entries().asSequence()
        .filter { !it.isDirectory && it.name.startsWith(LIBRARY_RULES) }
        .flatMap { zip.getInputStream(it).bufferedReader().readLines() }
        .toList()
}

private fun jarOf(folder: Path, to: Path): Path {
    ZipOutputStream(Files.newOutputStream(to)).use { zip ->
        Files.walk(folder).use { files ->
            files.filter { it.toString().endsWith(".class") }.sorted().forEach {
                zip.addEntry(folder.relativize(it).joinToString("/"), Files.readAllBytes(it), isStored = true)
            }
        }
    }
    return to
}

private fun makeEmpty(folder: Path) {
    folder.toFile().deleteRecursively()
    Files.createDirectories(folder)
}
