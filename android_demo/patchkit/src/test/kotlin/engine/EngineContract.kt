package patchdeploy.patchkit.engine

import java.nio.file.Files
import java.nio.file.Path
import java.util.concurrent.ConcurrentLinkedQueue
import java.util.concurrent.atomic.AtomicBoolean
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertFalse
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.api.io.TempDir
import patchdeploy.patchkit.ConfigException
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.RefusalCode
import patchdeploy.patchkit.RuntimeBackendException
import patchdeploy.patchkit.UnknownResolutionException
import patchdeploy.patchkit.UnknownTaskException
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.bundle.BundleVectors
import patchdeploy.patchkit.bundle.MapFiles
import patchdeploy.patchkit.runtime.Backend
import patchdeploy.patchkit.slots.BaseFile

/**
 * What an Engine promises over any runtime; each back end's module runs it on its own.
 *
 * @param format of the base file.
 * @param mostLsb of a score, between this runtime's version and the integer executor.
 */
public abstract class EngineContract(private val format: String, private val mostLsb: Int) {
    private val images = BundleVectors.images
    private val bundle = Bundle.open(MapFiles(BundleVectors.files), format)

    /** The back end that is tried. */
    protected abstract fun makeBackend(base: BaseFile): Backend

    private fun open(budgetBytes: Long? = null) = Engine(bundle, makeBackend(bundle.base), budgetBytes)

    private val pairs = bundle.tasks.flatMap { task -> bundle.manifest.resolutions.map { task to it } }

    @Test
    public fun `every task at every side gives the scores that Python's executor gives`(): Unit = open().use { engine ->
        for ((task, px) in pairs) {
            val expected = BundleVectors.scores(format, task, px)
            val scale = engine.version(task).read(px).activationScale[bundle.table.outputIndex]
            for ((image, scores) in images.zip(expected)) {
                val found = engine.classify(image, task, px)
                val apart = scores.indices.maxOf { Math.round(Math.abs(scores[it] - found.scores[it]) / scale) }
                assertTrue(apart <= mostLsb) { "$task at $px px is $apart LSB away" }
                assertTrue(mostLsb > 0 || scores.contentEquals(found.scores))
                assertEquals(1.0, found.probabilities.sumOf { it.toDouble() }, 1e-6) // float32 rounds each by 6e-8
                assertEquals(found.label, found.top(2).first().label)
                assertTrue(found.top(2)[0].probability >= found.top(2)[1].probability)
                assertEquals(listOf(task, px), listOf(found.task, found.resolution))
            }
        }
    }

    @Test
    public fun `a cascade answers each image at the side where Python's does, with that side's scores`(): Unit =
        open().use { engine ->
            val found = images.map { engine.classifyByCascade(it, "first") }
            assertEquals(BundleVectors.stages(format), found.map { it.resolution })
            for ((image, answer) in images.zip(found)) {
                assertArrayEquals(engine.classify(image, "first", answer.resolution).scores, answer.scores)
            }
            val counts = BundleVectors.stages(format).groupingBy { it }.eachCount().mapValues { it.value.toLong() }
            assertEquals(counts, engine.cascadeCounts("first"))
            assertThrows<ConfigException> { engine.classifyByCascade(images[0], "second") }
            assertThrows<ConfigException> { engine.prewarmCascade("second") }
        }

    @Test
    public fun `a model that is loaded costs no swap, and the least recently used goes first`() {
        val one = open().use { it.prewarm("first", 16); it.residentBytes }
        open(budgetBytes = 2 * one).use { engine ->
            assertTrue(engine.prewarm("first", 16).totalMs > 0)
            assertEquals(0.0, engine.prewarm("first", 16).totalMs)
            assertEquals(0.0, engine.classify(images[0], "first", 16).times.swapMs)
            assertTrue(engine.classify(images[0], "second", 24).times.swapMs > 0)
            engine.classify(images[0], "first", 16)
            engine.prewarm("second", 16)
            assertEquals(listOf("first" to 16, "second" to 16), engine.residentKeys.map { it.task to it.resolution })
            assertEquals(2 * one, engine.residentBytes)
            engine.trim()
            assertEquals(listOf("second" to 16), engine.residentKeys.map { it.task to it.resolution })
            engine.evict("second", 16)
            assertEquals(0L, engine.residentBytes)
        }
    }

    @Test
    public fun `each task passes its own golden images`(): Unit = open().use { engine ->
        for (task in engine.tasks) assertTrue(engine.selfTest(task)!! <= mostLsb)
        assertThrows<UnknownTaskException> { engine.selfTest("third") }
    }

    @Test
    public fun `what is not there is said by name`(): Unit = open().use { engine ->
        assertThrows<UnknownTaskException> { engine.classify(images[0], "third") }
        val error = assertThrows<UnknownResolutionException> { engine.classify(images[0], "first", 32) }
        assertTrue("16, 24" in error.message!!)
        assertEquals(24, engine.classify(images[0], "first").resolution) // its largest
    }

    @Test
    public fun `a closed engine runs nothing`() {
        val engine = open()
        engine.prewarm("first", 16)
        engine.close()
        engine.close()
        assertThrows<RuntimeBackendException> { engine.classify(images[0], "first", 16) }
        assertEquals(0L, engine.residentBytes)
    }

    @Test
    public fun `a backend of another format is refused`() {
        val other = Bundle.open(MapFiles(BundleVectors.files), if (format == "onnx") "tflite" else "onnx")
        assertThrows<ConfigException> { Engine(other, makeBackend(bundle.base)) }
    }

    /** 250 swaps in each of 4 threads over one place for a model, so that most of them load. */
    @Test
    public fun `a thousand swaps under four threads give the answers of one, and memory stays`() {
        val expected = open().use { engine ->
            pairs.associateWith { (task, px) -> engine.classify(images[0], task, px).scores }
        }
        open(budgetBytes = 1).use { engine ->
            val failures = ConcurrentLinkedQueue<Throwable>()
            fun swaps(count: Int) = List(4) { thread ->
                Thread {
                    runCatching {
                        repeat(count) { k ->
                            val (task, px) = pairs[(k * (thread + 1) + thread) % pairs.size]
                            val scores = engine.classify(images[0], task, px).scores
                            assertArrayEquals(expected.getValue(task to px), scores)
                        }
                    }.onFailure(failures::add)
                }.apply { start() }
            }.forEach(Thread::join)
            repeat(3) { swaps(250) } // until the compiler and the allocators have what they need
            val before = heldBytes()
            repeat(2) { swaps(250) }
            assertEquals(emptyList<Throwable>(), failures.toList())
            // A model that leaks leaves at least its file's bytes, 7 kB: 2,000 of them 14 MB. The heap is
            // of one size (the module's pom); the JVM itself was seen to move by less than 2 MB.
            assertTrue(heldBytes() - before < 6 shl 20) { "${heldBytes() - before} bytes more" }
            assertEquals(1, engine.residentKeys.size)
        }
    }

    /** Private memory of this process after a collection; Linux alone says so. */
    private fun heldBytes(): Long {
        repeat(3) { System.gc() }
        val line = Files.readAllLines(Path.of("/proc/self/status")).first { it.startsWith("RssAnon") }
        return Regex("[0-9]+").find(line)!!.value.toLong() shl 10
    }

    @Test
    public fun `a store's patch takes the place of the bundle's, and a revert gives it back`(@TempDir folder: Path) {
        val backend = makeBackend(bundle.base)
        val store = openStore(folder.resolve("store"), bundle, backend)
        Engine(bundle, backend, store = store).use { engine ->
            val old = engine.classify(images[0], "first", 16)
            assertEquals(emptyList<String>(), engine.refresh())
            store.install(BundleVectors.updates.getValue("first"))
            store.install(BundleVectors.updates.getValue("third"))
            assertArrayEquals(old.scores, engine.classify(images[0], "first", 16).scores)
            assertEquals(listOf("first", "third"), engine.refresh())
            val new = engine.classify(images[0], "first", 16)
            assertEquals(0.0, new.times.swapMs) // loaded before the old one went
            assertFalse(old.scores.contentEquals(new.scores))
            assertEquals(listOf(5L, true), engine.version("first").let { listOf(it.sequence, it.fromStore) })
            assertTrue(engine.classify(images[0], "third").scores.isNotEmpty())
            assertEquals(24, engine.classifyByCascade(images[0], "first").resolution) // the update has none
            store.revert("first")
            assertEquals(listOf("first"), engine.refresh())
            assertArrayEquals(old.scores, engine.classify(images[0], "first", 16).scores)
        }
    }

    @Test
    public fun `an inference beside an update is of one version`(@TempDir folder: Path) {
        val backend = makeBackend(bundle.base)
        val store = openStore(folder.resolve("store"), bundle, backend)
        Engine(bundle, backend, store = store).use { engine ->
            val byHash = HashMap<String, FloatArray>()
            fun remember() = engine.classify(images[0], "first", 16).let { byHash[it.version.sha256] = it.scores }
            remember()
            store.install(BundleVectors.updates.getValue("first"))
            engine.refresh()
            remember()
            val stop = AtomicBoolean()
            val failures = ConcurrentLinkedQueue<Throwable>()
            val threads = List(3) {
                Thread {
                    runCatching {
                        while (!stop.get()) {
                            val found = engine.classify(images[0], "first", 16)
                            assertArrayEquals(byHash.getValue(found.version.sha256), found.scores)
                        }
                    }.onFailure(failures::add)
                }.apply { start() }
            }
            repeat(20) {
                store.revert("first")
                assertEquals(listOf("first"), engine.refresh())
            }
            stop.set(true)
            threads.forEach(Thread::join)
            assertEquals(emptyList<Throwable>(), failures.toList())
            assertEquals(2, byHash.size)
        }
    }

    @Test
    public fun `a damaged store leaves the bundle's patches running, and says why`(@TempDir folder: Path) {
        val backend = makeBackend(bundle.base)
        val place = folder.resolve("store")
        val store = openStore(place, bundle, backend)
        val installed = store.install(BundleVectors.updates.getValue("first"))
        val file = place.resolve("${installed.sha256}.pdp")
        Files.write(file, Files.readAllBytes(file).also { it[it.size - 1] = (it.last() + 1).toByte() })
        Engine(bundle, backend, store = store).use { engine ->
            assertEquals(false, engine.version("first").fromStore)
            assertTrue("SHA-256" in engine.problems.getValue("first").message!!)
            assertTrue(engine.classify(images[0], "first", 16).scores.isNotEmpty())
            store.install(BundleVectors.updates.getValue("first"))
            assertEquals(listOf("first"), engine.refresh())
            assertTrue(engine.problems.isEmpty())
        }
    }

    @Test
    public fun `a base that was changed together with its hashes runs no signed patch`() {
        val path = bundle.manifest.converters.getValue(format).file
        val engine = Engine(Bundle.open(MapFiles(withOtherBase(path)), format), makeBackend(bundle.base))
        val error = assertThrows<PatchRefusedException> { engine.classify(images[0], "first", 16) }
        assertEquals(RefusalCode.RESULT, error.code)
        engine.close()
    }

    /** The last kernel byte of the base is another; slot table and manifest know its hash. */
    private fun withOtherBase(path: String): Map<String, ByteArray> {
        val files = BundleVectors.files.toMutableMap()
        val old = files.getValue(path)
        val covered = bundle.base.table.slots.flatMap { it.offsetBytes until it.endBytes.toInt() }.toSet()
        val words = bundle.base.table.views.values.flatten().flatMap { it.offsetBytes until it.offsetBytes + 4 }
        val views = bundle.base.table.views.isNotEmpty()
        val at = old.indices.last { it !in covered && it !in words && (views || it < old.size / 2) && old[it] in -99..-9 }
        files[path] = old.copyOf().also { it[at]++ }
        val slots = bundle.manifest.converters.getValue(format).slots
        rehash(files, path, old)
        val before = BundleVectors.files.getValue(slots)
        files[slots] = String(before).replace(sha(old), sha(files.getValue(path))).toByteArray()
        rehash(files, slots, before)
        return files
    }

    private fun sha(data: ByteArray) = patchdeploy.patchkit.sha256Hex(data)

    private fun rehash(files: MutableMap<String, ByteArray>, path: String, old: ByteArray) {
        val line = Regex("\n  \"manifest_sha256\": \"([0-9a-f]{64})\",")
        val text = String(files.getValue("manifest.json")).replace(sha(old), sha(files.getValue(path)))
        val own = line.find(text)!!.groupValues[1]
        files["manifest.json"] = text.replace(own, sha(line.replace(text, "").toByteArray())).toByteArray()
    }
}
