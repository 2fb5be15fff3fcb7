package patchdeploy.cli

import java.io.IOException
import kotlin.system.exitProcess
import patchdeploy.patchkit.PatchRefusedException
import patchdeploy.patchkit.PatchkitException

/**
 * patchkit on the command line of any JVM: a way to use a bundle's files, and to compare patchkit
 * with the Python package. Every command prints JSON.
 *
 * Exit codes: 0 done, 1 refused or different, 2 asked wrongly.
 */

private const val USAGE = """patchkit-cli COMMAND ...
  check PATCH CODING-TABLE [KEYS | --unsigned]         checks 1 to 8 of docs/patch-format.md
  inspect PATCH                                        header, signatures, parts; nothing is trusted
  overlay BASE SLOTS CODING-TABLE PATCH PX OUT [KEYS | --unsigned]
                                                       the base with the patch laid over it
  vectors FOLDER                                       judge the vectors of tests/patchfile
  bench BUNDLE TASK [litert | onnxruntime]             times of decoding, laying over, swapping, resizing
  classify BUNDLE IMAGE... [--task NAME] [--resolution PX | --cascade]
           [--runtime litert | onnxruntime] [--threads N]
                                                       labels and probabilities of picture files
  answer                                               questions on stdin, for compare.py
KEYS is the list of trusted keys; files are checked for the task that they name"""

internal class WrongUse(message: String) : Exception(message)

public fun main(arguments: Array<String>) {
    exitProcess(
        try {
            run(arguments.toList())
        } catch (error: WrongUse) {
            System.err.println("${error.message}\n$USAGE")
            2
        } catch (error: IOException) {
            System.err.println("cannot read or write a file: ${error.message}; correct the path")
            2
        } catch (error: PatchRefusedException) {
            println(toJson(refusal(error)))
            1
        } catch (error: PatchkitException) {
            println(toJson(mapOf("error" to error.message)))
            1
        },
    )
}

private fun run(arguments: List<String>): Int {
    val rest = arguments.drop(1)
    when (arguments.firstOrNull()) {
        "check" -> println(toJson(check(rest.given(2), rest.trust(2))))
        "inspect" -> println(toJson(inspect(rest.given(1).single())))
        "overlay" -> println(toJson(overlayFile(rest.given(6), rest.trust(6))))
        "vectors" -> return judgeVectors(rest.given(1).single()).let { println(toJson(it.report)); it.exitCode }
        "bench" -> rest.given(2).let { (bundle, task) ->
            println(toJson(bench(bundle, task, RuntimeName.of(rest.getOrNull(2) ?: "litert"), threads = 1)))
        }
        "classify" -> println(toJson(classify(readClassifyOptions(rest))))
        "answer" -> answerQuestions(System.`in`, System.out)
        "--help", "-h" -> println(USAGE)
        else -> throw WrongUse("no command '${arguments.firstOrNull().orEmpty()}'")
    }
    return 0
}

/** The first [count] arguments; one more may follow, for [trust]. */
private fun List<String>.given(count: Int): List<String> {
    if (size !in count..count + 1) throw WrongUse("$size arguments; it must be $count, perhaps with keys")
    return take(count)
}

private fun List<String>.trust(place: Int): String? = getOrNull(place)
