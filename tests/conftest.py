"""What all tests share: the case tables' place, and one thread.

Several threads on small arrays spin more than they compute, and differ in speed by ten where
cores are busy; results are the same.
"""

import os
import signal
import sys
from pathlib import Path

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# New examples every time at a desk, the same ones every time in CI, where a failure must repeat.
settings.register_profile("repeatable", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

# A shell that starts a job in the background makes it ignore SIGINT, and so all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest runs in importlib mode, which adds no folder of its own.
sys.path.insert(0, str(Path(__file__).parent))
