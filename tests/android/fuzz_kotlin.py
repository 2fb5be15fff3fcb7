"""Coverage-guided fuzzing of patchkit's readers with Jazzer (libFuzzer on the JVM).

In: what `make android` built, and the corpus of tests/faults. Out: a line for each target; what is
found on the way is kept in out/fuzz-kotlin. Exit status 1 where a target failed. Every file of the
corpus is also a test of its own (FuzzCorpusTest), which needs no Jazzer.

    python tests/android/fuzz_kotlin.py [--seconds 60] [header payload trusted bundle]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jvm import JAR, ROOT

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "faults"))

from fuzz_stats import read_stats  # noqa: E402

CORPUS = HERE.parent / "faults" / "corpus"
TARGETS = ("header", "payload", "trusted", "bundle")
PATCHKIT = ROOT / "android_demo" / "patchkit" / "target"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
LONGEST_BYTES = 8192
SLOWEST_SECONDS = 30
"""The first input loads and instruments every class, seconds on a busy machine."""


def main(arguments: list[str]) -> int:
    """Fuzz the targets one after the other; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz-kotlin")
    options = parser.parse_args(arguments)
    reason = _missing()
    if reason is not None:
        sys.stdout.write(f"Kotlin was not fuzzed: {reason}\n")
        return 0
    libraries = options.out / "lib"
    command = ["mvn", "-B", "-ntp", "-q", "-f", str(HERE / "jazzer" / "pom.xml"), COPY]
    subprocess.run([*command, f"-DoutputDirectory={libraries}"], check=True)
    return max(fuzz_target(name, options.seconds, options.out) for name in options.targets)


def _missing() -> str | None:
    """Why it cannot be done here; None where it can."""
    absent = [name for name in ("java", "mvn") if shutil.which(name) is None]
    if absent:
        return f"no {absent[0]} here"
    return None if (PATCHKIT / "test-classes").is_dir() else "make android comes first"


def fuzz_target(name: str, seconds: int, out: Path) -> int:
    """One target in a JVM; 1 where it failed."""
    found = out / name
    found.mkdir(parents=True, exist_ok=True)
    places = [PATCHKIT / "test-classes", PATCHKIT / "classes"]
    places += [*(out / "lib").glob("*.jar"), *(JAR.parent / "lib").glob("*.jar")]
    command = ["java", f"-Dpatchdeploy.repository={ROOT}", "-Xmx512m"]
    command += ["-cp", os.pathsep.join(map(str, places)), "com.code_intelligence.jazzer.Jazzer"]
    command += [f"--target_class=patchdeploy.patchkit.fuzz.{name.capitalize()}Target"]
    command += ["--instrumentation_includes=patchdeploy.**", str(found), str(CORPUS / name)]
    command += [f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}"]
    command += [f"-timeout={SLOWEST_SECONDS}", f"-artifact_prefix={out}/{name}-"]
    command += ["-print_final_stats=1"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    result = read_stats(done.stderr) | {"seconds": round(time.perf_counter() - start)}
    result["result"] = "held" if done.returncode == 0 else "FAILED"
    sys.stdout.write(f"fuzz {name} in Kotlin: {result}\n")
    if done.returncode:
        sys.stdout.write(done.stdout[-3000:] + done.stderr[-3000:])
    sys.stdout.flush()
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
