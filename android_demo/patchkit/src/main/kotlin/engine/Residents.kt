package patchdeploy.patchkit.engine

import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import patchdeploy.patchkit.runtime.Resident

/** A loaded model: a task at a resolution in pixels, as the patch file with [sha256] makes it. */
public data class ResidentKey(val task: String, val resolution: Int, val sha256: String)

/** A loaded model, and how its scores become integers. */
internal class LoadedModel(val resident: Resident, val scoreScale: Float, val scoreZeroPoint: Byte)

/**
 * Models within a byte budget: the least recently used goes first; the newest always stays.
 *
 * Each is loaded once however many threads ask, and none waits for the loading of another. A model
 * that goes while inferences use it is closed by the last of them.
 *
 * @param budgetBytes null: no limit.
 */
internal class Residents(private val budgetBytes: Long?) {
    private class Entry {
        val loading = ReentrantLock()

        @Volatile
        var model: LoadedModel? = null
        var users = 0
        var isOut = false
    }

    private val lock = ReentrantLock()
    private val entries = LinkedHashMap<ResidentKey, Entry>() // the least recently used first

    /** [work] on the model of [key], which [load] makes unless it is here. */
    fun <T> use(key: ResidentKey, load: () -> LoadedModel, work: (LoadedModel) -> T): T {
        val entry = enter(key)
        try {
            return work(entry.model ?: loadOnce(key, entry, load))
        } finally {
            leave(entry)
        }
    }

    private fun enter(key: ResidentKey): Entry = lock.withLock {
        val entry = entries.remove(key) ?: Entry()
        entries[key] = entry
        entry.users++
        entry
    }

    private fun loadOnce(key: ResidentKey, entry: Entry, load: () -> LoadedModel): LoadedModel =
        entry.loading.withLock {
            entry.model?.let { return it }
            try {
                load().also { entry.model = it }
            } catch (error: Throwable) {
                lock.withLock { if (entries[key] === entry) remove(key) }
                throw error
            }
        }.also { evictTo(budgetBytes, key) }

    private fun leave(entry: Entry) {
        val last = lock.withLock {
            entry.users--
            entry.isOut && entry.users == 0
        }
        if (last) entry.model?.resident?.close()
    }

    /** What is loaded, the least recently used first. */
    fun keys(): List<ResidentKey> = lock.withLock { entries.filterValues { it.model != null }.keys.toList() }

    /** Estimated memory of what is loaded. */
    fun bytes(): Long = lock.withLock { total() }

    private fun total(): Long = entries.values.sumOf { it.model?.resident?.residentBytes ?: 0L }

    /** Let go of each model whose key is [chosen]. */
    fun evict(chosen: (ResidentKey) -> Boolean) {
        close(lock.withLock { entries.keys.filter(chosen).map(::remove).filter { it.users == 0 } })
    }

    /** Let go of the oldest models but [newest] until [most] bytes are held; null: of none. */
    fun evictTo(most: Long?, newest: ResidentKey?) {
        if (most == null) return
        val gone = ArrayList<Entry>()
        lock.withLock {
            for (key in entries.keys.toList()) {
                if (total() <= most) break
                if (key != newest && entries.getValue(key).model != null) gone.add(remove(key))
            }
            gone.removeAll { it.users > 0 } // the last of them closes it
        }
        close(gone)
    }

    /** Nothing enters it any more. */
    private fun remove(key: ResidentKey): Entry = entries.remove(key)!!.also { it.isOut = true }

    private fun close(gone: List<Entry>): Unit = gone.forEach { it.model?.resident?.close() }
}
