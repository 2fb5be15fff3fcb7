"""What libFuzzer says at the end of a run, in Python's fuzzer and in the JVM's."""

from __future__ import annotations

import re
from typing import Any


def read_stats(log: str) -> dict[str, Any]:
    """Inputs tried, edges reached and inputs kept, as libFuzzer says at the end."""
    inputs = re.findall(r"number_of_executed_units:\s+(\d+)", log)
    reached = re.findall(r"cov: (\d+) .*? corp: (\d+)/", log)
    edges, kept = reached[-1] if reached else (0, 0)
    return {"inputs": int(inputs[-1]) if inputs else 0, "edges": int(edges), "kept": int(kept)}
