package patchdeploy.demo

import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean
import patchdeploy.patchkit.bundle.Bundle
import patchdeploy.patchkit.engine.Engine
import patchdeploy.patchkit.image.Pixels

/** Rounds that warm caches and are not counted, and those that are. */
const val WARM_UP_ROUNDS: Int = 5
const val ROUNDS: Int = 30

private const val MANY_THREADS = 4

/** The benchmark page: one run at a time, on a thread of its own, until it is done or cancelled. */
internal class Benchmarks(private val platform: Platform, private val demo: Demo) {
    private val running = Executors.newSingleThreadExecutor { Thread(it, "benchmark") }
    private val isCancelled = AtomicBoolean(false)

    fun start() {
        isCancelled.set(false)
        demo.update { it.copy(benchmark = BenchmarkState.Running(0, 1)) }
        running.execute {
            val found = try {
                measure()
            } catch (error: Exception) {
                BenchmarkState.Failed(problemOf(error))
            } catch (error: OutOfMemoryError) {
                BenchmarkState.Failed(problemOf(error))
            }
            demo.update { it.copy(benchmark = found) }
        }
    }

    /** Ends after the round that runs. */
    fun cancel(): Unit = isCancelled.set(true)

    private fun measure(): BenchmarkState {
        val runtimes = RUNTIMES.filter { it.offer.isHere }
        val threads = listOf(1, minOf(MANY_THREADS, Runtime.getRuntime().availableProcessors())).distinct()
        val settings = runtimes.flatMap { kind -> threads.map { kind to it } }
        val report = ReportBuilder(platform.device)
        for ((done, setting) in settings.withIndex()) {
            demo.update { it.copy(benchmark = BenchmarkState.Running(done, settings.size)) }
            val (kind, count) = setting
            val bundle = Bundle.open(platform.bundle, kind.format)
            Engine(bundle, kind.open(bundle.base, count)).use { measure(it, kind.offer.name, count, report) }
            if (isCancelled.get()) return BenchmarkState.Idle
        }
        return BenchmarkState.Done(report.build())
    }

    private fun measure(engine: Engine, runtime: String, threads: Int, report: ReportBuilder) {
        report.version(runtime, engine.runtime)
        for (task in engine.tasks) {
            val pictures = picturesOf(task)
            for (px in engine.version(task).resolutions) {
                if (isCancelled.get()) return
                report.latency(task, "$px", runtime, threads, times { engine.classify(pictures[it % pictures.size], task, px).times.inferenceMs })
                report.swap(task, px, runtime, threads, "cold", times {
                    engine.evict(task, px)
                    engine.prewarm(task, px).totalMs
                })
                report.swap(task, px, runtime, threads, "resident", times { wall { engine.prewarm(task, px) } })
            }
            if (engine.version(task).cascade != null) cascade(engine, task, runtime, threads, pictures, report)
        }
        report.memory(runtime, threads, engine.residentBytes, platform.device.memoryBytes())
    }

    /** Whole answers, resizing included: what a user waits for. */
    private fun cascade(engine: Engine, task: String, runtime: String, threads: Int, pictures: List<Pixels>, report: ReportBuilder) {
        val largest = engine.version(task).resolutions.last()
        engine.prewarmCascade(task)
        report.latency(task, "cascade", runtime, threads, times { wall { engine.classifyByCascade(pictures[it % pictures.size], task) } })
        report.latency(task, "largest", runtime, threads, times { wall { engine.classify(pictures[it % pictures.size], task, largest) } })
    }

    private fun picturesOf(task: String): List<Pixels> {
        val all = platform.pictures.samples
        return all.filter { it.startsWith("$task-") }.ifEmpty { all }.map { platform.pictures.sample(it).toPixels() }
    }

    /** Milliseconds of each counted round. */
    private fun times(round: (Int) -> Double): List<Double> {
        for (k in 0 until WARM_UP_ROUNDS) if (!isCancelled.get()) round(k)
        return (0 until ROUNDS).mapNotNull { if (isCancelled.get()) null else round(it) }
    }

    private fun wall(work: () -> Unit): Double {
        val start = System.nanoTime()
        work()
        return (System.nanoTime() - start) / 1e6
    }
}
