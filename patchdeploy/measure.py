"""Measuring that survives a noisy machine: interleaved rounds, ratios, and where they were taken.

In: callables by name, or a program to watch. Out: a `Measurement` of milliseconds per call with
ratios paired round by round, a `Memory` in bytes, and `describe_device`, without which a number
means nothing. Why interleaved: on a shared or throttling machine two measurements taken one
after the other differ more than the things measured; neighbours in one round share its noise.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdeploy.errors import ConfigError, RuntimeBackendError

PACKAGES = (
    "patchdeploy",
    "numpy",
    "ai-edge-litert",
    "tflite-runtime",
    "tensorflow-cpu",
    "tensorflow",
    "onnxruntime",
    "onnx",
    "torch",
    "torchvision",
)
NOTED_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
)
SMAPS_ROLLUP = "/proc/{pid}/smaps_rollup"
RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """Time of one candidate over another's, from the pairs of each round.

    Attributes:
        candidate, baseline: names.
        median: of the per-round ratios.
        low, high: 95% percentile bootstrap interval of that median.
    """

    candidate: str
    baseline: str
    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measurement:
    """Milliseconds per call.

    Attributes:
        samples_ms: float64 [rounds] by candidate; each the mean over ``inner`` calls in a row.
        warmup: calls per candidate before the first round.
        rounds: rounds; each calls every candidate once, in an order that changes.
        inner: calls per candidate and round.
        load_average: of the machine over one minute, before the first round; None if unknown.
    """

    samples_ms: Mapping[str, NDArray[np.float64]]
    warmup: int
    rounds: int
    inner: int
    load_average: float | None

    def median_ms(self, candidate: str) -> float:
        """Median over rounds.

        Raises:
            ConfigError: no such candidate.
        """
        return float(np.median(self._samples(candidate)))

    def ratio(self, candidate: str, baseline: str) -> Ratio:
        """``candidate`` / ``baseline``; below 1 the candidate is faster.

        Raises:
            ConfigError: no such candidate.
        """
        pairs = self._samples(candidate) / self._samples(baseline)
        low, high = bootstrap_interval(pairs)
        return Ratio(candidate, baseline, float(np.median(pairs)), low, high)

    def to_json(self, baseline: str) -> dict[str, Any]:
        """Plain values: settings, and per candidate its samples, quartiles and ratio.

        Raises:
            ConfigError: ``baseline`` is not a candidate.
        """
        rows = {}
        for name, samples in self.samples_ms.items():
            quartiles = np.percentile(samples, (0, 25, 50, 75))
            keys = ("min_ms", "q1_ms", "median_ms", "q3_ms")
            rows[name] = dict(zip(keys, map(float, quartiles), strict=True)) | {
                "ratio": asdict(self.ratio(name, baseline)),
                "samples_ms": [round(float(sample), 5) for sample in samples],
            }
        return {
            "baseline": baseline,
            "warmup": self.warmup,
            "rounds": self.rounds,
            "inner": self.inner,
            "load_average": self.load_average,
            "candidates": rows,
        }

    def _samples(self, candidate: str) -> NDArray[np.float64]:
        if candidate not in self.samples_ms:
            raise ConfigError(
                f"no candidate {candidate!r} was measured; those measured are "
                f"{', '.join(self.samples_ms)}; choose one of them"
            )
        return self.samples_ms[candidate]


def measure_interleaved(
    candidates: Mapping[str, Callable[[], object]],
    warmup: int = 10,
    rounds: int = 50,
    inner: int = 1,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> Measurement:
    """Time ``candidates`` in turn, round by round.

    Each round runs every candidate ``inner`` times in a row. The order is rotated by one each
    round and reversed in every other, so that no candidate always follows the same one.

    Raises:
        ConfigError: no candidates, or a count out of range.
    """
    if not candidates or warmup < 0 or rounds < 1 or inner < 1:
        raise ConfigError(
            f"{len(candidates)} candidates, warmup {warmup}, rounds {rounds}, inner {inner}; "
            "there must be a candidate, warmup at least 0, rounds and inner at least 1; "
            "change the one that is not"
        )
    load_average = read_load_average()
    for call in candidates.values():
        for _ in range(warmup):
            call()
    samples_ms = {name: np.empty(rounds, np.float64) for name in candidates}
    for index in range(rounds):
        for name in round_order(tuple(candidates), index):
            call = candidates[name]
            start = clock_ns()
            for _ in range(inner):
                call()
            samples_ms[name][index] = (clock_ns() - start) / inner / 1e6
    return Measurement(samples_ms, warmup, rounds, inner, load_average)


def round_order(names: tuple[str, ...], index: int) -> tuple[str, ...]:
    """The order of round ``index``: rotated by ``index`` places, reversed where it is odd."""
    shift = index % len(names)
    order = names[shift:] + names[:shift]
    return order[::-1] if index % 2 else order


def bootstrap_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the median of ``values`` [n].

    Efron's percentile method: the 2.5% and 97.5% points of the medians of resamples with
    replacement; deterministic for a seed.
    """
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.percentile(np.median(values[picks], axis=1), (2.5, 97.5))
    return float(low), float(high)


@dataclass(frozen=True)
class Memory:
    """Memory of one process, bytes (Linux, proc(5): smaps_rollup).

    Attributes:
        pss_bytes: proportional set: shared pages divided among those who map them.
        private_bytes: pages that no other process maps, clean and dirty.
        anonymous_bytes: pages with no file behind them: what a phone cannot drop and re-read.
    """

    pss_bytes: int
    private_bytes: int
    anonymous_bytes: int


def read_memory(pid: int | str = "self") -> Memory:
    """The memory of process ``pid`` now.

    Raises:
        ConfigError: the system has no smaps_rollup (Linux 4.14 and newer have).
    """
    path = SMAPS_ROLLUP.format(pid=pid)
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(
            f"memory is read from {path}, which cannot be read here ({error.strerror}); "
            "measure memory on Linux 4.14 or newer, on a process of your own"
        ) from error
    rows = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    kib = {row[0].rstrip(":"): int(row[1]) for row in rows}
    return Memory(
        pss_bytes=1024 * kib["Pss"],
        private_bytes=1024 * (kib["Private_Clean"] + kib["Private_Dirty"]),
        anonymous_bytes=1024 * kib["Anonymous"],
    )


_PROBE = """
import ctypes, gc, json, sys
from patchdeploy.measure import read_memory
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
def mark(name):
    gc.collect()
    if _trim is not None:
        _trim(0)
    memory = read_memory()
    print("\\0" + json.dumps([name, vars(memory)]), flush=True)
arguments = sys.argv[1:]
"""


def probe_memory(program: str, arguments: Sequence[str] = ()) -> dict[str, Memory]:
    """Run Python source in a process of its own; its memory at each ``mark(name)`` it calls.

    The source sees ``arguments`` (list of str) and ``mark``, which first collects garbage and
    gives free heap pages back to the system, so that a difference between two marks is what is
    in use.

    Raises:
        RuntimeBackendError: the program failed; the message ends with its last words.
    """
    result = subprocess.run(
        [sys.executable, "-c", _PROBE + program, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeBackendError(
            f"the watched program ended with exit code {result.returncode}; it must end with 0; "
            f"mend it, its last words were: {result.stderr.strip()[-400:]}"
        )
    rows = (json.loads(line[1:]) for line in result.stdout.splitlines() if line.startswith("\0"))
    return {name: Memory(**values) for name, values in rows}


def describe_device() -> dict[str, Any]:
    """What a number was measured on: processor, memory, system, Python and package versions.

    Keys: cpu, cores, flags (of NOTED_FLAGS), memory_bytes, os, machine, python, load_average,
    versions (by package, the installed ones of PACKAGES).
    """
    cpu, flags = _read_cpuinfo()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "flags": flags,
        "memory_bytes": _physical_memory_bytes(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load_average": read_load_average(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def read_load_average() -> float | None:
    """Runnable processes, averaged over the last minute; None where the system has none."""
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _read_cpuinfo() -> tuple[str, list[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown", []
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    present = set((fields.get("flags") or fields.get("Features") or "").split())
    name = fields.get("model name") or platform.processor() or "unknown"
    return name, [flag for flag in NOTED_FLAGS if flag in present]


def _physical_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
