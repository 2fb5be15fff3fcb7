"""Run tests on another x86-64 processor than this one, by qemu-user (Debian: qemu-user).

``python tests/run_emulated.py [--cpu Haswell] [TEST ...]``: by default the test files that run ONNX
models, on a processor with AVX2 and without VNNI; about 40 minutes on a busy core. Other models:
``qemu-x86_64 -cpu help``; EPYC-Rome has AVX2 too, Nehalem has neither AVX nor VNNI. qemu emulates
no AVX512, so VNNI itself is tested on a processor that has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = (
    "tests/runtime/test_ort_kernels.py",
    "tests/runtime/test_engine.py",
    "tests/runtime/test_ort_format.py",
    "tests/converters/test_onnx_writer.py",
    "tests/converters/test_onnx_wire.py",
    "tests/converters/test_onnx_slots.py",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", default="Haswell", help="a CPU model of qemu-x86_64")
    parser.add_argument("tests", nargs="*", default=TESTS)
    options = parser.parse_args()
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if qemu is None:
        sys.exit("qemu-x86_64 is not installed; on Debian: apt-get install qemu-user")
    os.chdir(ROOT)
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options.tests]
    os.execv(qemu, [qemu, "-cpu", options.cpu, *pytest])


if __name__ == "__main__":
    main()
