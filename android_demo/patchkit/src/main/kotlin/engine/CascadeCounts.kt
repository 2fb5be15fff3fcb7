package patchdeploy.patchkit.engine

import java.util.concurrent.ConcurrentHashMap
import java.util.concurrent.atomic.AtomicLong

/** By patch file and resolution, how many images a cascade's stage has answered; thread-safe. */
internal class CascadeCounts {
    private val counts = ConcurrentHashMap<String, ConcurrentHashMap<Int, AtomicLong>>()

    fun add(sha256: String, resolution: Int) {
        counts.computeIfAbsent(sha256) { ConcurrentHashMap() }
            .computeIfAbsent(resolution) { AtomicLong() }.incrementAndGet()
    }

    fun of(sha256: String): Map<Int, Long> = counts[sha256].orEmpty().mapValues { it.value.get() }.toSortedMap()
}
