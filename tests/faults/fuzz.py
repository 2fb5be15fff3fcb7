"""Coverage-guided fuzzing of what reads untrusted bytes, with atheris (libFuzzer).

Each target runs in a process of its own, from the corpus in this folder; what it finds on the way
is kept in out/fuzz, an input that fails too, and its counts beside the results of the fault rows.
Exit status 1 where a target failed. Every file of the corpus is also a test of its own
(test_fuzz_corpus.py), which needs no atheris.

    python tests/faults/fuzz.py [--seconds 60] [header payload trusted]
    python tests/faults/fuzz.py --write-seeds
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from fuzz_stats import read_stats  # noqa: E402

CORPUS = HERE / "corpus"
RESULTS = HERE / "results"
TARGETS = ("header", "payload", "trusted", "bundle")
LONGEST_BYTES = 8192
SLOWEST_SECONDS = 5
MOST_MIB = 2048


def main(arguments: list[str]) -> int:
    """Fuzz the targets one after the other; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "fuzz")
    parser.add_argument("--write-seeds", action="store_true")
    options = parser.parse_args(arguments)
    if options.write_seeds:
        return write_seeds()
    if importlib.util.find_spec("atheris") is None:
        print("not fuzzed: atheris is not installed (it has no wheel for every Python)")  # noqa: T201
        return 0
    return max(fuzz_target(name, options.seconds, options.out) for name in options.targets)


def fuzz_target(name: str, seconds: int, out: Path) -> int:
    """One target in a process of its own; 1 where it failed."""
    found = out / name
    found.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "fuzz_child.py"), name, str(found), str(CORPUS / name)]
    command += [f"-max_total_time={seconds}", f"-max_len={LONGEST_BYTES}"]
    command += [f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MOST_MIB}"]
    command += [f"-artifact_prefix={out}/{name}-", "-print_final_stats=1"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = read_stats(done.stderr)
    result |= {"target": name, "seconds": round(time.perf_counter() - start)}
    result["result"] = "held" if done.returncode == 0 else "FAILED"
    result["date"] = time.strftime("%Y-%m-%d")
    (RESULTS / f"fuzz-{name}.json").write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    print(f"fuzz {name}: {result}")  # noqa: T201
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-3000:])  # noqa: T201
    return 1 if done.returncode else 0


def write_seeds() -> int:
    """The seeds of every target into the corpus; other files there stay."""
    for name in TARGETS:
        target = importlib.import_module(f"fuzz_{name}")
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for seed, data in target.seeds().items():
            (folder / seed).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
