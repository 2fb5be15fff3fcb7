package patchdeploy.patchkit.fuzz

import java.nio.file.Files
import java.nio.file.Path
import kotlin.random.Random
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.DynamicTest
import org.junit.jupiter.api.DynamicTest.dynamicTest
import org.junit.jupiter.api.TestFactory

/** The corpus that Jazzer starts from and what it found, each file by itself and with bytes changed. */
class FuzzCorpusTest {
    private val targets: Map<String, (ByteArray) -> Unit> = mapOf(
        "header" to HeaderTarget::fuzzerTestOneInput,
        "payload" to PayloadTarget::fuzzerTestOneInput,
        "trusted" to TrustedTarget::fuzzerTestOneInput,
        "bundle" to BundleTarget::fuzzerTestOneInput,
    )

    private fun corpus(name: String): List<Path> {
        val folder = Path.of(System.getProperty("patchdeploy.repository"), "tests", "faults", "corpus", name)
        return Files.newDirectoryStream(folder).use { it.sorted() }
    }

    @TestFactory
    fun `a reader takes or refuses every file of the corpus, and 50 neighbours of it`(): List<DynamicTest> =
        targets.flatMap { (name, target) ->
            val files = corpus(name)
            assertTrue(files.size > 5) { name }
            files.map { file ->
                dynamicTest("$name: ${file.fileName}") {
                    val data = Files.readAllBytes(file)
                    val random = Random(data.contentHashCode())
                    target(data)
                    repeat(50) { target(neighbour(data, random)) }
                }
            }
        }

    private fun neighbour(data: ByteArray, random: Random): ByteArray {
        val changed = data.copyOf(random.nextInt(data.size + 1).takeIf { random.nextInt(4) == 0 } ?: data.size)
        repeat(random.nextInt(1, 4)) {
            if (changed.isNotEmpty()) changed[random.nextInt(changed.size)] = random.nextInt().toByte()
        }
        return changed
    }
}
