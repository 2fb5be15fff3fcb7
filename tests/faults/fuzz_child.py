"""The process of one fuzz target: the package is instrumented while the target imports it."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import atheris


def main() -> None:
    """Fuzz the target that the first argument names; libFuzzer takes the others, and exits."""
    name, *options = sys.argv[1:]
    logging.getLogger("patchdeploy").setLevel(logging.ERROR)  # a line for each unsigned file
    with atheris.instrument_imports(include=["patchdeploy"]):
        target = importlib.import_module(f"fuzz_{name}")
    atheris.Setup([sys.argv[0], *options], target.fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
