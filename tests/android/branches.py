"""Branches of patchkit's readers and store that its tests and the comparison with Python reach.

In: what JaCoCo noted while `make android` ran the tests and compare.py (PATCHKIT_AGENT, which
``--agent`` prints). Out: the lines with a branch that was not reached; exit status 1 where there is
one.

    python tests/android/branches.py [--agent]
"""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1] / "android_demo"
TARGET = PROJECT / "patchkit" / "target"
NOTES = TARGET / "jacoco.exec"
PACKAGES = ("bundle", "cascade", "coding", "image", "json", "patchfile", "slots", "store")
VERSION = "0.8.14"
AGENT = Path.home() / f".m2/repository/org/jacoco/org.jacoco.agent/{VERSION}"
GOAL = f"org.jacoco:jacoco-maven-plugin:{VERSION}:report"


def main(arguments: list[str]) -> int:
    """Report, and the exit status; or what a JVM needs to note what it runs."""
    if arguments == ["--agent"]:
        jar = AGENT / f"org.jacoco.agent-{VERSION}-runtime.jar"
        sys.stdout.write(f"-javaagent:{jar}=destfile={NOTES},append=true,includes=patchdeploy.*\n")
        return 0
    command = ["mvn", "-B", "-ntp", "-q", "-o", "-pl", "patchkit", GOAL]
    subprocess.run(command, cwd=PROJECT, check=True)
    missed = missed_lines(TARGET / "site" / "jacoco" / "jacoco.xml")
    for line in missed:
        sys.stdout.write(f"not reached: {line}\n")
    sys.stdout.write(f"{len(missed)} lines of {', '.join(PACKAGES)} have such a branch\n")
    return 1 if missed else 0


def missed_lines(report: Path) -> list[str]:
    """File, line, and how many of its branches were not reached."""
    missed = []
    for package in ET.fromstring(report.read_text()).iter("package"):
        name = package.get("name", "").rpartition("/")[2]
        if name not in PACKAGES:
            continue
        for source in package.iter("sourcefile"):
            for line in source.iter("line"):
                branches = int(line.get("mb", "0")) + int(line.get("cb", "0"))
                if line.get("mb") != "0" and branches:
                    place = f"{name}/{source.get('name')}:{line.get('nr')}"
                    missed.append(f"{place}, {line.get('mb')} of {branches} branches")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
