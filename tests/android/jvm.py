"""patchkit in one JVM: questions in, answers out.

In: the jar that `make android` builds. Out: what Kotlin says to each question, a line of JSON and
bytes; android_demo/patchkit-cli/src/main/kotlin/Answer.kt has the questions.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from patchdeploy.patchfile import Policy

ROOT = Path(__file__).resolve().parents[2]
JAR = ROOT / "android_demo" / "patchkit-cli" / "target" / "patchkit-cli.jar"


class Patchkit:
    """A running JVM, to be used in a ``with`` statement."""

    def __init__(self, jar: Path = JAR) -> None:
        agent = os.environ.get("PATCHKIT_AGENT")  # of branches.py
        command = [
            "java",
            *([agent] if agent else []),
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xmx256m",
            "-cp",
        ]
        places = [os.environ.get("PATCHKIT_CLASSES"), str(jar)]  # planted_bugs.py sets the first
        path = os.pathsep.join(one for one in places if one)
        self._process = subprocess.Popen(
            [*command, path, "patchdeploy.cli.MainKt", "answer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a warning for each unsigned file
        )

    def ask(self, what: str, data: bytes = b"", **fields: Any) -> dict[str, Any]:
        """The answer to one question about ``data``.

        Raises:
            RuntimeError: the JVM ended instead.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        question = {"ask": what, "bytes": len(data), **fields}
        process.stdin.write(json.dumps(question).encode() + b"\n" + data)
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the JVM ended with {process.wait()} on {str(question)[:500]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End it where it is."""
        self._process.kill()

    def close(self) -> None:
        """End it once it has answered all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def policy_fields(policy: Policy) -> dict[str, Any]:
    """The demands in the form of the vectors."""
    trusted = policy.trusted
    keys = None if trusted is None else [None if k is None else k.hex() for k in trusted.keys]
    sides = None if policy.resolutions is None else sorted(policy.resolutions)
    fields = {name: getattr(policy, name) for name in ("allow_unsigned", "runtime", "task")}
    fields |= {name: getattr(policy, name) for name in ("floor", "now", "engine")}
    threshold = None if trusted is None else trusted.threshold
    return {**fields, "trusted": keys, "threshold": threshold, "resolutions": sides}
