"""The scripts of benchmarks/paper import each other by their bare names; so do these tests."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = HERE.parents[1] / "benchmarks" / "paper"
for folder in (str(HERE), str(SCRIPTS)):
    if folder not in sys.path:
        sys.path.insert(0, folder)
