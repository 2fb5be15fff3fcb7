"""Bugs planted in patchkit, one at a time: vectors or the comparison with Python must find each.

In: the sources of patchkit and what `make android` built. Out: a line for each bug; exit status 1
where one was not found. The sources are copied and changed in a folder of their own.

    python tests/android/planted_bugs.py [--only WORD]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from jvm import JAR, ROOT

SOURCES = ROOT / "android_demo" / "patchkit" / "src" / "main" / "kotlin"
VECTORS = ROOT / "tests" / "patchfile"
REPOSITORY = Path.home() / ".m2" / "repository"


class Bug(NamedTuple):
    """``old`` of a file becomes ``new``; it stands there once."""

    file: str
    old: str
    new: str


BUGS = {
    "a key may sign twice": Bug("patchfile/Container.kt", "if (index in signedBy)", "if (false)"),
    "the threshold is one less": Bug(
        "patchfile/Container.kt", "signedBy.size < threshold", "signedBy.size < threshold - 1"
    ),
    "a revoked key counts as the next": Bug(
        "patchfile/Container.kt",
        "keys?.getOrNull(index)",
        "keys?.filterNotNull()?.getOrNull(index)",
    ),
    "the payload's hash is not compared": Bug(
        "patchfile/Container.kt", "if (found != header.payloadSha256)", "if (false)"
    ),
    "the floor is off by one": Bug(
        "patchfile/Container.kt", "sequence < policy.floor", "sequence < policy.floor - 1"
    ),
    "expiry is off by one": Bug(
        "patchfile/Container.kt", "in 1..policy.now", "in 1 until policy.now"
    ),
    "the engine is not looked at": Bug(
        "patchfile/Container.kt", "header.engine > policy.engine", "header.engine < 0"
    ),
    "keys may come twice": Bug("json/CanonicalJson.kt", "before >= key", "before > key"),
    "9 levels": Bug("json/CanonicalJson.kt", "MAX_DEPTH: Int = 8", "MAX_DEPTH: Int = 9"),
    "touching runs are taken": Bug(
        "patchfile/PatchHeader.kt", "least = first + count + 1", "least = first + count"
    ),
    "a stream may go on": Bug("patchfile/Parts.kt", "|| inflater.remaining > 0", ""),
    "parts below 128 are passed over": Bug(
        "patchfile/Parts.kt", "FIRST_IGNORED = 128", "FIRST_IGNORED = 10"
    ),
    "rows are rounded half up": Bug(
        "coding/Decode.kt",
        "Math.rint((beta + product) / unit)",
        "Math.floor((beta + product) / unit + 0.5)",
    ),
    "the shift is added last": Bug(
        "coding/Decode.kt", "(beta + product) / unit", "beta / unit + product / unit"
    ),
    "-128 is taken": Bug("coding/Decode.kt", "value == Byte.MIN_VALUE", "false"),
    "a scale may be subnormal": Bug("coding/Decode.kt", "scale >= SMALLEST_NORMAL", "scale > 0f"),
    "a kernel's axes stay": Bug("slots/SlotTable.kt", "OIHW(0, 3, 1, 2)", "OIHW(0, 1, 2, 3)"),
    "slots may overlap": Bug("slots/SlotTable.kt", "slot.offsetBytes < end ||", ""),
    "the margin is to the worst": Bug("cascade/Confidence.kt", "var d = 1", "var d = 2"),
    "a stage must be surer": Bug(
        "cascade/CascadeRule.kt",
        "stage.ratio) >= stage.threshold",
        "stage.ratio) > stage.threshold",
    ),
    "rows always first": Bug("image/Resize.kt", "image.height > height &&", "false &&"),
    "alpha is cut": Bug("image/Pixels.kt", " + (128 shl PRECISION)", ""),
    "a manifest's own hash is not compared": Bug(
        "bundle/ParseManifest.kt", "|| found != recorded.value || line.groupValues[1] != found", ""
    ),
    "a file may have two uses": Bug("bundle/ParseManifest.kt", "if (count > 1)", "if (count > 9)"),
    "a path may be hidden": Bug("bundle/ParseManifest.kt", " || it.startsWith('.')", ""),
    "a cascade's scores have no zero point": Bug(
        "engine/Engine.kt", "scale, values.activationZeroPoint[output])", "scale, 0)"
    ),
    "the last stage alone answers": Bug("engine/Engine.kt", "if (isSure) break", ""),
    "a floor forgets its signers": Bug(
        "store/Recover.kt", "checked.signedBy.sorted())", "emptyList())"
    ),
    "a revert lowers the floor": Bug(
        "store/StoreState.kt",
        "previous = previous + (task to active.getValue(task)),",
        "previous = previous + (task to active.getValue(task)), floors = floors - task,",
    ),
    "no self-test before the commit": Bug(
        "store/Store.kt",
        "hooks.selfTest(checked, hooks.decode(checked))\n        val before",
        "val before",
    ),
    "clean-up takes the previous patch": Bug(
        "store/StoreState.kt", "(active.values + previous.values)", "(active.values)"
    ),
}


def main(arguments: list[str]) -> int:
    """Plant each bug, compile, compare; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="bugs with this in their name")
    chosen = parser.parse_args(arguments).only
    missed = []
    for name, bug in BUGS.items():
        if chosen in name:
            found = try_bug(bug)
            sys.stdout.write(f"{'found' if found else 'NOT FOUND'}: {name}\n")
            sys.stdout.flush()
            missed += [] if found else [name]
    return 1 if missed else 0


def try_bug(bug: Bug) -> bool:
    """Whether the vectors or the comparison fail with ``bug`` planted."""
    with tempfile.TemporaryDirectory() as made:
        sources, classes = Path(made, "sources"), Path(made, "classes")
        shutil.copytree(SOURCES, sources)
        text = (sources / bug.file).read_text()
        assert text.count(bug.old) == 1, bug
        (sources / bug.file).write_text(text.replace(bug.old, bug.new))
        compile_sources(sources, classes)
        path = os.pathsep.join([str(classes), str(JAR)])
        judge = ["java", "-cp", path, "patchdeploy.cli.MainKt", "vectors", str(VECTORS)]
        if subprocess.run(judge, capture_output=True, check=False).returncode == 1:
            return True
        command = [sys.executable, str(Path(__file__).with_name("compare.py"))]
        command += ["--patches", "1000", "--others", "200"]
        environment = {**os.environ, "PATCHKIT_CLASSES": str(classes)}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode in (0, 1), run.stderr
        return run.returncode == 1


def compile_sources(sources: Path, classes: Path) -> None:
    """Kotlin's own compiler, as Maven has it."""
    names = (
        "kotlin-compiler-embeddable",
        "kotlin-stdlib",
        "kotlin-script-runtime",
        "kotlin-reflect",
    )
    wanted = [
        one for name in names for one in REPOSITORY.glob(f"org/jetbrains/kotlin/{name}/*/*.jar")
    ]
    wanted += REPOSITORY.glob("org/jetbrains/kotlin/kotlin-daemon-embeddable/*/*.jar")
    wanted += REPOSITORY.glob("org/jetbrains/kotlinx/kotlinx-coroutines-core-jvm/*/*.jar")
    wanted += REPOSITORY.glob("org/jetbrains/annotations/*/*.jar")
    libraries = ":".join(map(str, (JAR.parent / "lib").glob("*.jar")))
    command = ["java", "-cp", ":".join(map(str, wanted))]
    command += ["org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-no-stdlib", "-nowarn"]
    command += ["-jvm-target", "17", "-module-name", "patchkit"]
    command += ["-cp", libraries, "-d", str(classes), str(sources)]
    subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
