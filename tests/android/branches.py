"""Branches of patchkit's readers and store that its tests and the comparison with Python reach.

In: what Kover's agent noted while `make android` ran the tests and compare.py (PATCHKIT_AGENT, as
``--agent`` prints it). Out: the lines with a branch that was not reached; exit status 1 where there
are more than `MOST_LINES`. (JaCoCo does not see a branch that ends in a call that throws, as most
of a reader's do.)

    python tests/android/branches.py [--agent]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "android_demo" / "patchkit" / "target"
AGENT = TARGET / "coverage" / "kover-jvm-agent.jar"
NOTES = TARGET / "coverage" / "branches.ic"
PACKAGES = ("bundle", "cascade", "coding", "image", "json", "patchfile", "slots", "store")
MOST_LINES = 160
"""Lines that still have such a branch; whoever reaches some lowers it."""


def main(arguments: list[str]) -> int:
    """Report, and the exit status; or what a JVM needs to note what it runs."""
    if arguments == ["--agent"]:
        options = TARGET / "test-classes" / "coverage.args"
        sys.stdout.write(f"-javaagent:{AGENT}=file:{options}\n")
        return 0
    command = ["java", "-cp", str(AGENT), str(HERE / "BranchReport.java"), str(NOTES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    missed = missed_lines(done.stdout, TARGET / "classes")
    for line in missed:
        sys.stdout.write(f"not reached: {line}\n")
    sys.stdout.write(f"{len(missed)} lines have such a branch; at most {MOST_LINES} may\n")
    return 1 if len(missed) > MOST_LINES else 0


def missed_lines(report: str, classes: Path) -> list[str]:
    """Class, line, and how many of its branches were not reached; of ``classes`` alone."""
    missed, seen = [], 0
    for row in report.splitlines():
        name, line, not_reached, branches = row.rsplit(" ", 3)
        package = name.split(".")[2]
        if package not in PACKAGES or not (classes / f"{name.replace('.', '/')}.class").exists():
            continue
        seen += 1
        if not_reached != "0":
            missed.append(f"{name}:{line}, {not_reached} of {branches} branches")
    if not seen:
        sys.exit(f"nothing of {', '.join(PACKAGES)} was noted; make android comes first")
    return sorted(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
