package patchdeploy.demo

import android.content.res.Configuration
import android.os.Bundle
import com.sun.net.httpserver.HttpExchange
import com.sun.net.httpserver.HttpServer
import java.net.InetSocketAddress
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.RobolectricTestRunner
import org.robolectric.RuntimeEnvironment

@RunWith(RobolectricTestRunner::class)
class StateTest {
    @get:Rule
    val device = TestDevice()

    private fun words(id: Int, vararg arguments: Any): String = RuntimeEnvironment.getApplication().getString(id, *arguments)

    @Test
    fun `a rotation keeps task, resolution and picture`() = Screen.open().use { screen ->
        screen.awaitAnswer()
        screen.tap(screen.child(R.id.task_chips, "surfaces"))
        screen.awaitAnswer()
        val before = screen.ready
        RuntimeEnvironment.setQualifiers("+land")
        screen.controller.configurationChange(RuntimeEnvironment.getApplication().resources.configuration).visible()
        screen.awaitAnswer()
        assertEquals(Configuration.ORIENTATION_LANDSCAPE, screen.activity.resources.configuration.orientation)
        assertEquals(before.selection, screen.ready.selection)
        assertTrue(screen.child(R.id.task_chips, "surfaces").isSelected)
    }

    @Test
    fun `the end of the process keeps page, task, resolution and source`() {
        val saved = Bundle()
        val wish = Screen.open().use { screen ->
            screen.awaitAnswer()
            screen.demo.selectTask("surfaces")
            screen.demo.selectResolution(32)
            screen.demo.choose(Source.Sample("surfaces-1-grass.png"))
            screen.demo.showPage(Page.TASKS)
            screen.await("the choice") { screen.ready.page == Page.TASKS && screen.ready.selection.resolution == 32 }
            screen.controller.pause().stop().saveInstanceState(saved)
            screen.demo.save()!!
        }
        val app = RuntimeEnvironment.getApplication() as DemoApplication
        DemoApplication::class.java.getDeclaredField("demo\$delegate").apply { isAccessible = true }.set(app, lazy { DemoApplication.makeDemo(app) })
        Screen.open(saved).use { screen ->
            screen.awaitAnswer()
            assertEquals(wish, screen.demo.save())
        }
    }

    @Test
    fun `every frame is closed while the model is changed under them`() {
        val camera = FakeCamera()
        device.camera = { camera }
        Screen.open().use { screen ->
            screen.awaitAnswer()
            screen.demo.choose(Source.Camera)
            screen.await("the camera") { camera.listener != null }
            val sender = Thread { repeat(200) { camera.send { if (it % 10 == 3) throw IllegalStateException("bad frame") else grey(60 + it % 2, 40, it) } } }
            sender.start()
            repeat(20) {
                screen.demo.selectTask(if (it % 2 == 0) "surfaces" else "fashion")
                screen.demo.selectResolution(if (it % 3 == 0) 32 else 48)
                screen.await("the choice") { true }
            }
            sender.join()
            assertEquals(200, camera.closed.get())
            screen.awaitAnswer()
        }
    }

    @Test
    fun `a newer patch is installed and reverted`() = Screen.open().use { screen ->
        screen.awaitAnswer()
        val shipped = screen.ready.task!!.sequence!!
        screen.demo.installer.install { madePatch("fashion-newer").inputStream() }
        screen.awaitNotice(words(R.string.installed, "fashion", shipped + 1))
        assertTrue(screen.ready.task!!.let { it.isInstalled && it.canRevert && it.sequence == shipped + 1 })
        screen.demo.revert("fashion")
        screen.awaitNotice(words(R.string.reverted, "fashion", shipped))
        screen.demo.cleanUp()
        screen.awaitNotice(words(R.string.cleaned_up, 0)) // a revert can be reverted: both stay
    }

    @Test
    fun `a download that breaks is resumed where it stopped`() {
        val file = madePatch("faces")
        val asked = ArrayList<String?>()
        serve({ exchange ->
            asked.add(exchange.requestHeaders.getFirst("Range"))
            exchange.responseHeaders.add("ETag", "\"one\"")
            val from = asked.last()?.removePrefix("bytes=")?.removeSuffix("-")?.toInt()
            if (from == null) {
                exchange.sendResponseHeaders(200, file.size.toLong())
                exchange.responseBody.write(file, 0, 9000)
                exchange.responseBody.flush()
            } else {
                exchange.responseHeaders.add("Content-Range", "bytes $from-${file.size - 1}/${file.size}")
                exchange.sendResponseHeaders(206, (file.size - from).toLong())
                exchange.responseBody.write(file, from, file.size - from)
            }
            exchange.close()
        }) { url ->
            Screen.open().use { screen ->
                screen.awaitAnswer()
                screen.demo.showPage(Page.TASKS)
                screen.demo.installer.install(url)
                screen.await("the break") { screen.ready.transfer?.failure != null }
                assertTrue(words(R.string.problem_network) in screen.text(R.id.transfer_text))
                screen.tap(R.id.resume)
                screen.awaitNotice(words(R.string.installed, "faces", 1L))
                assertEquals(listOf(null, "bytes=9000-"), asked)
                screen.demo.selectTask("faces")
                screen.awaitAnswer()
            }
        }
    }

    @Test
    fun `a server without the file, and an address that is none`() = serve({ it.sendResponseHeaders(404, -1) }) { url ->
        Screen.open().use { screen ->
            screen.awaitAnswer()
            screen.demo.installer.install(url)
            screen.awaitNotice(words(R.string.problem_http, 404))
            screen.demo.installer.install("nowhere")
            screen.awaitNotice(words(R.string.problem_address))
        }
    }

    private fun serve(answer: (HttpExchange) -> Unit, work: (String) -> Unit) {
        val server = HttpServer.create(InetSocketAddress("127.0.0.1", 0), 0)
        server.createContext("/", answer)
        server.start()
        try {
            work("http://127.0.0.1:${server.address.port}/faces.pdp")
        } finally {
            server.stop(0)
        }
    }

    @Test
    fun `the benchmark can be cancelled, and says what it measured`() = Screen.open().use { screen ->
        screen.awaitAnswer()
        screen.demo.benchmarks.start()
        screen.await("its start") { screen.ready.benchmark is BenchmarkState.Running }
        screen.demo.benchmarks.cancel()
        screen.await("its end") { screen.ready.benchmark is BenchmarkState.Idle }
    }

    @Test
    fun `percentiles are those of the nearest rank`() {
        val ten = (1..10).map { it.toDouble() }.shuffled()
        assertArrayEquals(doubleArrayOf(5.0, 9.0, 1.0, 10.0), doubleArrayOf(percentile(ten, 50), percentile(ten, 90), percentile(ten, 1), percentile(ten, 100)), 0.0)
    }

    @Test
    fun `a report has the parts of the files in benchmarks`() {
        val report = ReportBuilder(Device(RuntimeEnvironment.getApplication()))
        report.latency("digits", "32", "LiteRT", 1, listOf(3.0, 1.0, 2.0))
        report.memory("LiteRT", 1, 10, 20)
        val found = JSONObject(report.build().json)
        assertEquals(listOf("benchmark", "taken", "quick", "device", "goals"), found.keys().asSequence().toList().take(5))
        val row = found.getJSONArray("latency").getJSONObject(0)
        assertEquals(2.0, row.getDouble("median_ms"), 0.0)
        assertEquals(3.0, row.getDouble("p90_ms"), 0.0)
        assertTrue(found.getJSONObject("device").has("thermal_status"))
    }

    @Test
    fun `a picture is upright whatever way the phone is held`() {
        // back camera, sensor mounted at 90 degrees, as in nearly every phone
        assertEquals(listOf(90, 0, 270, 180), listOf(0, 90, 180, 270).map { uprightRotation(90, false, it) })
        assertEquals(listOf(270, 0, 90, 180), listOf(0, 90, 180, 270).map { uprightRotation(270, true, it) })
    }
}
