package patchdeploy.demo

import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import org.json.JSONArray
import org.json.JSONObject

/**
 * A figure of the benchmark.
 *
 * @property what "latency", or a swap: "cold" or "resident".
 * @property resolution side in pixels, or "cascade", or "largest" as the cascade is compared with it.
 */
data class Row(
    val what: String,
    val task: String,
    val resolution: String,
    val runtime: String,
    val threads: Int,
    val medianMs: Double,
    val p90Ms: Double,
    val rounds: Int,
)

/** @property json as the files in benchmarks/results have it. */
class BenchmarkReport(val rows: List<Row>, val json: String)

/** Collects figures; percentiles are those of the nearest rank. */
internal class ReportBuilder(private val device: Device) {
    private val rows = ArrayList<Row>()
    private val memory = JSONArray()
    private val versions = LinkedHashMap<String, String>()
    private val thermalBefore = device.thermalStatus()

    fun version(runtime: String, version: String) {
        versions[runtime] = version
    }

    fun latency(task: String, resolution: String, runtime: String, threads: Int, ms: List<Double>): Unit =
        add("latency", task, resolution, runtime, threads, ms)

    fun swap(task: String, px: Int, runtime: String, threads: Int, kind: String, ms: List<Double>): Unit =
        add(kind, task, "$px", runtime, threads, ms)

    /** A round that was cancelled leaves no times, and no row. */
    private fun add(what: String, task: String, resolution: String, runtime: String, threads: Int, ms: List<Double>) {
        if (ms.isNotEmpty()) rows.add(Row(what, task, resolution, runtime, threads, percentile(ms, 50), percentile(ms, 90), ms.size))
    }

    fun memory(runtime: String, threads: Int, residentBytes: Long, processBytes: Long) {
        memory.put(
            JSONObject().put("runtime", runtime).put("threads", threads)
                .put("resident_bytes", residentBytes).put("process_bytes", processBytes),
        )
    }

    fun build(): BenchmarkReport {
        val about = JSONObject(device.describe()).put("versions", JSONObject(versions as Map<*, *>))
            .put("thermal_status_before", thermalBefore ?: JSONObject.NULL)
        val document = JSONObject()
            .put("benchmark", "android")
            .put("taken", SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ssZ", Locale.ROOT).format(Date()))
            .put("quick", false)
            .put("device", about)
            .put("goals", JSONArray())
            .put("warm_up_rounds", WARM_UP_ROUNDS)
            .put("latency", table(rows.filter { it.what == "latency" }))
            .put("swaps", table(rows.filter { it.what != "latency" }))
            .put("memory", memory)
        return BenchmarkReport(rows, document.toString(1))
    }

    private fun table(rows: List<Row>) = JSONArray(
        rows.map {
            JSONObject().put("what", it.what).put("task", it.task).put("resolution", it.resolution)
                .put("runtime", it.runtime).put("threads", it.threads)
                .put("median_ms", it.medianMs).put("p90_ms", it.p90Ms).put("rounds", it.rounds)
        },
    )
}

/** Nearest rank: the smallest value that [percent] % of [values] do not exceed. */
internal fun percentile(values: List<Double>, percent: Int): Double =
    values.sorted()[(percent * values.size + 99) / 100 - 1]
