"""``make arm``: a demo bundle on emulated ARM processors, every score compared, into docs/arm.md.

In: a demo bundle (made if there is none) and a folder for Debian's packages, wheels and qemu
(``--cache``, about 600 MB). Out: a file for each part in ``results`` and docs/arm.md from them.
Parts: ``scores`` (Engine and verify of each processor), ``operators`` (all pairs of codes, one
operator a model), ``instructions`` (which products were really run), ``golden`` (how far the two
arithmetics are apart), ``android`` (the .so of the APK over bionic). A part that is not chosen
keeps the result that it has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arm_page import write_page
from compare_scores import compare_scores, executor_scores, make_images
from golden_gap import measure_gaps
from instructions import count_products
from machine import REPOSITORY, Arm, device, emulate, missing, prepare, say, versions
from on_arm import main as ask
from over_bionic import compare as compare_over_bionic
from processors import PROCESSORS

RESULTS = Path(__file__).parent / "results"
PAGE = REPOSITORY / "docs/arm.md"
OPERATOR_TESTS = "tests/quantize/test_runtime_arithmetic.py"


def main(arguments: list[str]) -> None:
    options = _options(arguments)
    lacking = missing()
    if lacking is not None:
        sys.exit(f"make arm cannot run here: {lacking}")
    prepare(options.cache)
    _make_bundle(options.bundle)
    work = options.cache / "work"
    work.mkdir(exist_ok=True)
    arms = [emulate(one, options.cache) for one in PROCESSORS]
    parts: Mapping[str, Callable[[], Any]] = {
        "scores": lambda: _run_scores(arms, options.bundle, work),
        "operators": lambda: {arm.processor.name: _run_operators(arm) for arm in arms},
        "instructions": lambda: {
            arm.processor.name: count_products(arm, options.bundle, work) for arm in arms
        },
        "golden": lambda: measure_gaps(options.bundle),
        "android": lambda: compare_over_bionic(options.bundle, work),
    }
    unknown = [part for part in options.parts if part not in parts]
    if unknown:
        sys.exit(f"part {unknown[0]!r}; there is {', '.join(parts)}; choose of these")
    for part in options.parts or parts:
        say(f"{part} ...")
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        seen = {"at": now, "device": device(), **versions(options.cache), "found": parts[part]()}
        say(json.dumps(seen["found"], indent=1))
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps(seen, indent=1)
        (RESULTS / f"{part}.json").write_text(f"{text}\n")
        write_page(RESULTS, PAGE)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help="all without any")
    parser.add_argument("--cache", type=Path, default=REPOSITORY / "out/arm")
    parser.add_argument("--bundle", type=Path, default=REPOSITORY / "out/demo/bundle")
    options = parser.parse_args(arguments)
    options.cache, options.bundle = options.cache.resolve(), options.bundle.resolve()
    return options


def _make_bundle(bundle: Path) -> None:
    """``make demo``'s bundle, where it is not there."""
    if not bundle.exists():
        command = [REPOSITORY / ".venv/bin/patchdeploy", "demo", "--out", bundle.parent]
        subprocess.run([str(one) for one in command], check=True, cwd=REPOSITORY)


def _run_scores(arms: list[Arm], bundle: Path, work: Path) -> dict[str, Any]:
    """Counts by processor, and what `verify` says there; all on the same images."""
    images = make_images(bundle, work / "images.npz")
    ask(str(bundle), str(images), str(work / "x86-64"))
    executor = executor_scores(bundle, images)
    found = {}
    for arm in arms:
        out = work / arm.processor.name
        arm.run(REPOSITORY / "tests/arm/on_arm.py", bundle.resolve(), images, out)
        said = json.loads(out.with_suffix(".json").read_text())
        checks = [one["passed"] for one in said.pop("verify")["checks"]]
        counts = {word: checks.count(value) for word, value in OUTCOMES.items()}
        here = work / "x86-64.npz"
        compared = compare_scores(bundle, out.with_suffix(".npz"), here, executor)
        found[arm.processor.name] = {**said, "verify": counts, "scores": compared}
        say(json.dumps({arm.processor.name: found[arm.processor.name]}))
    return found


OUTCOMES = {"passed": True, "failed": False, "skipped": None}


def _run_operators(arm: Arm) -> str:
    """pytest's last line: every test compares one operator with its runtime on many inputs."""
    lines = arm.run("-m", "pytest", "-q", "-p", "no:cacheprovider", OPERATOR_TESTS).splitlines()
    return lines[-1].split(" in ")[0].strip("= ")


if __name__ == "__main__":
    main(sys.argv[1:])
