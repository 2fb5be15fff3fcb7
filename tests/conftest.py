"""What all tests share: the case tables' place, and one thread.

Several threads on small arrays spin more than they compute, and differ in speed by ten where
cores are busy; results are the same.
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# onnxruntime sends telemetry otherwise, and tests import it before patchdeploy.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# New examples every time at a desk, the same ones every time in CI, where a failure must repeat.
settings.register_profile("repeatable", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

# A shell that starts a job in the background makes it ignore SIGINT, and so all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest runs in importlib mode, which adds no folder of its own.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, whatever OMP_NUM_THREADS says: batches as small as a test's lose more to
    waiting for a second one than they gain by it."""
    import torch  # the bare environments have none

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
